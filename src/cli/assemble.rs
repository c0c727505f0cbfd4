//! A model directory put together from the files its parts were published in.

use std::path::PathBuf;

use tpo_core::weights::file_name;

use super::shared::{End, Outcome, Precision, loading};
use crate::export::{ExportOptions, check_target};
use crate::model::assemble::{
    AssembleOptions, Assembly, BaseFiles, PartFiles, Published, assemble,
};
use crate::model::read_config;

/// Put a model together from published files: the start of the paper's recipes.
///
/// Mistral, UMT, the Q-Former and SAM 2 become one directory with the names and shapes of the published
/// VideoChat-TPO, the seven task tokens (ids 32000 to 32006, their rows the mean of the words') and heads
/// that are yet to be trained. Every tensor of every part must be there in its size; what is not taken of
/// a file is said. Tensors go from file to file one at a time: 2.6 GB of memory, 16.2 GB of disk, a minute.
///
/// With --base, a LLaVA-OneVision (0.5B or 7B, as lmms-lab or llava-hf published it) and SAM 2 become a
/// LLaVA-OV-TPO: the task tokens take the spare ids 151648 to 151654, new adapters are on all linear layers of
/// the language model and its output layer, and the temporal head reads the model's own words and pictures; with
/// --temporal its own words and InternVideo2-CLIP's videos, for which CG-DETR was trained.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Directory of Mistral-7B-Instruct v0.2: config.json, safetensors (also in shards), tokenizer.model
    #[arg(long, value_name = "DIR", required_unless_present = "base")]
    llm: Option<PathBuf>,
    /// VideoChat2's stage 3, in which encoder, Q-Former, projection and adapters are one file
    #[arg(long, value_name = "FILE", required_unless_present_any = ["base", "vision"],
        conflicts_with_all = ["vision", "qformer"])]
    videochat2: Option<PathBuf>,
    /// UMT-L with the norm after it: vision_encoder.encoder.*, vision_layernorm.*
    #[arg(long, value_name = "FILE", requires = "qformer")]
    vision: Option<PathBuf>,
    /// Q-Former and projection: qformer.bert.*, query_tokens, project_up.* (or mistral_proj.*)
    #[arg(long, value_name = "FILE", requires = "vision")]
    qformer: Option<PathBuf>,
    /// Directory of a LLaVA-OneVision: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR", conflicts_with_all = ["llm", "videochat2", "vision", "qformer"])]
    base: Option<PathBuf>,
    /// With --base: a VideoChat-TPO, or a file of its CG-DETR (cg_model), with which the temporal head begins
    #[arg(long, value_name = "PATH", requires = "base")]
    temporal: Option<PathBuf>,
    /// SAM 2.0 with Hiera-L
    #[arg(long, value_name = "FILE")]
    sam2: PathBuf,
    /// Directory of the model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Model directory of which the sizes are taken [default: the published sizes, those of --base]
    #[arg(long, value_name = "DIR")]
    sizes: Option<PathBuf>,
    /// Number format of all weights; auto: as in the files
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Precision,
    /// Seed of what is in no file: heads, task tokens, adapters
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Replace a model that is in --out
    #[arg(long)]
    overwrite: bool,
}

const HELP: &str = "\
Files of PyTorch are rewritten first: python tools/pth_to_safetensors.py FILE.pth FILE.safetensors

Examples, and where the files are from:
  hf download mistralai/Mistral-7B-Instruct-v0.2 --local-dir mistral
  hf download OpenGVLab/VideoChat2_stage3_Mistral_7B videochat2_mistral_7b_stage3.pth --local-dir .
  curl -LO https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_large.pt
  tpo assemble --llm mistral --videochat2 videochat2_mistral_7b_stage3.safetensors \\
      --sam2 sam2_hiera_large.safetensors --out models/videochat2
  tpo assemble --llm mistral --vision umt.safetensors --qformer qformer.safetensors \\
      --sam2 sam2_hiera_large.safetensors --out models/videochat2
  tpo train --explain recipes/videochat_tpo/stage1.toml         which start from models/videochat2
  hf download lmms-lab/llava-onevision-qwen2-0.5b-ov --local-dir onevision
  tpo assemble --base onevision --sam2 sam2_hiera_large.safetensors --out models/onevision
  tpo assemble --base onevision --sam2 sam2_hiera_large.safetensors --temporal VideoChat-TPO --out models/onevision

The projection to the language model must be in the Q-Former's file: umt_l16_qformer.pth, of before the
language model, has none, VideoChat2's stages 2 and 3 do. v0.3 of Mistral has other words and is refused.";

pub(super) fn run(args: Args) -> Outcome {
    let files = match (args.base, args.llm) {
        (Some(base), _) => Published::OneVision(BaseFiles {
            base,
            sam2: args.sam2,
            temporal: args.temporal,
        }),
        (None, llm) => {
            // clap sees to it that there is one or both of the others.
            let file =
                |own: Option<PathBuf>| own.or_else(|| args.videochat2.clone()).unwrap_or_default();
            Published::VideoChat(PartFiles {
                llm: llm.unwrap_or_default(),
                vision: file(args.vision),
                qformer: file(args.qformer),
                sam2: args.sam2,
            })
        }
    };
    if let Some(sizes) = &args.sizes {
        check_target(&args.out, &[sizes], true, args.overwrite)?;
    }
    let options = AssembleOptions {
        sizes: args.sizes.as_deref().map(read_config).transpose()?,
        seed: args.seed,
        export: ExportOptions {
            dtype: args.dtype.float(),
            overwrite: args.overwrite,
            ..ExportOptions::default()
        },
    };
    let done = loading(|heard| assemble(files, &args.out, &options, Some(heard)))?;
    report(&done);
    let (dir, gb) = (args.out.display(), done.saved.bytes as f64 / 1e9);
    println!("{dir}: {} tensors, {gb:.2} GB", done.saved.tensors);
    Ok(End::Fine)
}

fn report(done: &Assembly) {
    for part in &done.parts {
        let (gb, file) = (part.bytes as f64 / 1e9, part.file.display());
        println!(
            "{:16}{:5} tensors, {gb:.2} GB of {file}",
            part.part, part.tensors
        );
        for (key, why) in &part.ignored {
            println!("{:16}not used: {key} ({why})", "");
        }
    }
    for (file, names, count) in &done.not_taken {
        println!(
            "{:16}{count:5} tensors {names}.* of {}",
            "not taken",
            file_name(file)
        );
    }
    for (paths, count) in &done.drawn {
        println!("{:16}{count:5} tensors {paths}", "from the seed");
    }
}
