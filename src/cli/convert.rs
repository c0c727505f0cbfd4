//! A model directory in another number format.

use std::path::PathBuf;

use clap::ValueEnum;
use tpo_core::head::HeadSet;

use super::shared::{End, Outcome, Precision, QuantizeArgs, loading};
use crate::export::{ExportOptions, LoraExport, convert_model};
use crate::model::Names;

/// Write a model in another number format: smaller on the disk and in memory.
///
/// With --quantize the linear layers of the language model, with --quantize-vision those of the vision
/// encoder, are stored in blocks of 32 weights with one scale (q8_0: 8.5 bits a weight, q4_0: 4.5 bits).
/// What comes out opens like every other model; chat --quantize gives the same answers from the
/// unquantised directory, but reads all of it each time.
///
/// With --layout a LLaVA-OV-TPO gets the names and the config.json of its base, as lmms-lab or llava-hf published
/// it: the base's own code then reads the directory, passing over the heads, and so does tpo, with them.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo convert VideoChat-TPO models/tpo-q8 --quantize q8_0       9.5 GB instead of 16.2 GB
  tpo convert models/mine models/mine-bf16 --dtype bf16 --merge
  tpo export models/onevision exported --layout hugging-face --merge
  tpo chat --model models/tpo-q8 --video clip.mp4 --ask 'Where is the dog?'")]
pub(super) struct Args {
    /// Model directory
    model: PathBuf,
    /// Directory of the result
    out: PathBuf,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// Number format of all other weights; auto: as they are
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    /// Add the LoRA adapters to the weights
    #[arg(long)]
    merge: bool,
    /// Names of the tensors and config.json of a published LLaVA-OneVision (with --merge) [default: own]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Replace a model that is in OUT
    #[arg(long)]
    overwrite: bool,
}

/// Whose files a LLaVA-OV-TPO is written like.
#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// Of lmms-lab, for LLaVA-NeXT's code
    Original,
    /// Of llava-hf, for transformers
    HuggingFace,
}

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    let options = ExportOptions {
        lora: if args.merge {
            LoraExport::Merged
        } else {
            LoraExport::Adapters
        },
        dtype: args.dtype.float(),
        overwrite: args.overwrite,
        layout: args.layout.map(|layout| match layout {
            Layout::Original => Names::Original,
            Layout::HuggingFace => Names::HuggingFace,
        }),
        ..ExportOptions::default()
    };
    let quantize = args.quantize.parts();
    let report = loading(|heard| {
        convert_model::<H>(&args.model, &args.out, quantize, &options, Some(heard))
    })?;
    let (dir, gb) = (args.out.display(), report.bytes as f64 / 1e9);
    println!("{dir}: {} tensors, {gb:.2} GB", report.tensors);
    Ok(End::Fine)
}
