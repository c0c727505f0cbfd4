//! What a checkpoint holds, and what is wrong with it, from its headers alone.
//!
//! ```text
//! cargo run --release --example inspect_checkpoint -- path/to/checkpoint
//! cargo run --release --example inspect_checkpoint -- --write-sparse full-size
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tpo_core::weights::inspect::{LayoutChoice, inspect};
use tpo_core::weights::{Manifest, Result, videochat_tpo_layout, write_sparse};

/// Inspect a safetensors checkpoint.
///
/// Reads the headers of all files (no tensor data), checks them against the lengths of the files
/// and against the index, lists parts, parameters, data types and LoRA adapters, and compares
/// names and shapes with a known layout. The exit code is 0 when everything fits, 1 when
/// something is missing, unexpected, of another shape or damaged, and 2 for wrong arguments.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// A directory with model.safetensors.index.json or model.safetensors, or a .safetensors file.
    checkpoint: PathBuf,
    /// What to compare the tensors with.
    #[arg(long, value_enum, default_value_t = Layout::Auto)]
    layout: Layout,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Instead of inspecting, write a checkpoint of full size without its data (sparse files of
    /// zeros) to the directory, to test tools with.
    #[arg(long, conflicts_with_all = ["json", "layout"])]
    write_sparse: bool,
    /// The tensors to write, as {"tensors": {name: {"shape", "dtype", "shard"}}}; without it
    /// those of VideoChat-TPO.
    #[arg(long, requires = "write_sparse")]
    manifest: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// A language model by its config.json, VideoChat-TPO or InternVideo2-CLIP by names and sizes,
    /// or none.
    Auto,
    /// The published VideoChat-TPO checkpoint.
    VideochatTpo,
    /// InternVideo2-CLIP-1B, its published files merged.
    Internvideo2Clip,
    /// No comparison; files and index are checked all the same.
    None,
}

fn main() -> ExitCode {
    sigpipe::reset();
    let args = Args::parse();
    let done = if args.write_sparse {
        write(&args.checkpoint, args.manifest.as_deref())
    } else {
        show(&args)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if args.json {
                println!("{}", serde_json::json!({ "error": error.to_string() }));
            }
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &Path, manifest: Option<&Path>) -> Result<bool> {
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
    Ok(true)
}

/// Prints the inspection; whether nothing was wrong.
fn show(args: &Args) -> Result<bool> {
    let choice = match args.layout {
        Layout::Auto => LayoutChoice::Auto,
        Layout::VideochatTpo => LayoutChoice::VideoChatTpo,
        Layout::Internvideo2Clip => LayoutChoice::InternVideo2Clip,
        Layout::None => LayoutChoice::None,
    };
    let found = inspect(&args.checkpoint, choice)?;
    if args.json {
        let mut value = serde_json::json!(found);
        value["fine"] = found.is_fine().into();
        println!("{value:#}");
    } else {
        print!("{found}");
    }
    for problem in found.problems() {
        eprintln!("error: {problem}");
    }
    Ok(found.is_fine())
}
