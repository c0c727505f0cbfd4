//! What a checkpoint holds, and what is wrong with it, from its headers alone.

use std::path::{Path, PathBuf};

use serde_json::json;
use tpo_core::weights::{Manifest, write_sparse};

use crate::model::inspect::{LayoutChoice, inspect, videochat_tpo_layout};

use super::shared::{End, Outcome};

/// Inspect a safetensors checkpoint or a GGUF file.
///
/// Reads the headers of all files (no tensor data), checks them against the lengths of the files
/// and against the index, lists parts, parameters, data types and LoRA adapters, and compares
/// names and shapes with a known layout. The exit code is 0 when everything fits, and 1 when
/// something is missing, unexpected, of another shape or damaged. Of a GGUF file, sizes,
/// tokenizer and chat template are checked too; what tpo does not compute is a note.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo inspect VideoChat-TPO
  tpo inspect models/mine --json
  tpo inspect mistral.Q4_K_M.gguf
  tpo inspect --write-sparse full-size        a checkpoint of full size without data")]
pub(super) struct Args {
    /// A directory with model.safetensors.index.json or model.safetensors, a .safetensors file, or a
    /// GGUF file (by its content, whatever it is called)
    checkpoint: PathBuf,
    /// What to compare the tensors with
    #[arg(long, value_enum, default_value_t = LayoutChoice::Auto)]
    layout: LayoutChoice,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Instead of inspecting, write a checkpoint of full size without its data (sparse files of
    /// zeros) to the directory, to test tools with
    #[arg(long, conflicts_with_all = ["json", "layout"])]
    write_sparse: bool,
    /// The tensors to write, as {"tensors": {name: {"shape", "dtype", "shard"}}}; without it
    /// those of VideoChat-TPO
    #[arg(long, requires = "write_sparse")]
    manifest: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Outcome {
    if args.write_sparse {
        return write(&args.checkpoint, args.manifest.as_deref());
    }
    let found = match inspect(&args.checkpoint, args.layout) {
        Ok(found) => found,
        Err(error) => {
            if args.json {
                println!("{}", json!({ "error": error.to_string() }));
            }
            // What cannot be read is damaged, and that is what was asked.
            eprintln!("error: {error}");
            return Ok(End::Wrong);
        }
    };
    if args.json {
        let mut value = json!(found);
        value["fine"] = found.is_fine().into();
        println!("{value:#}");
    } else {
        print!("{found}");
    }
    for problem in found.problems() {
        eprintln!("error: {problem}");
    }
    Ok(End::fine_if(found.is_fine()))
}

fn write(dir: &Path, manifest: Option<&Path>) -> Outcome {
    let manifest = match manifest {
        Some(path) => Manifest::read(path)?,
        None => videochat_tpo_layout()?,
    };
    write_sparse(&manifest, dir)?;
    println!(
        "{}: {} tensors, {} bytes (sparse) of {}",
        dir.display(),
        manifest.tensors.len(),
        manifest.bytes(),
        manifest.name
    );
    Ok(End::Fine)
}
