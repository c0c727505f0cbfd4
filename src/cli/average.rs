//! The mean of several models.

use std::path::PathBuf;

use burn::tensor::FloatDType;

use super::shared::{End, Outcome};
use crate::export::ExportOptions;
use crate::model::average::average_models;

/// Write the mean of models that continued from the same weights: a model soup.
///
/// Runs from one start with other data, seeds or lengths end in one valley of the loss. The mean of
/// their weights costs no more than one of them and is often better than each, most of all on data
/// unlike that of training (Wortsman et al. 2022, arXiv 2203.05482). Models that were drawn or
/// pretrained apart have no useful mean; evaluate what comes out.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo train recipe.toml seed=1 --export models/one --merge
  tpo train recipe.toml name=other seed=2 --export models/two --merge
  tpo average models/one models/two --out models/mean
  tpo evaluate --model models/mean --synthetic 200 --out runs/mean")]
pub(super) struct Args {
    /// Model directories, two or more, of one configuration and with one tokenizer
    #[arg(required = true, num_args = 2.., value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Directory of the mean
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Weights of 16 bits (f16), whatever the models have
    #[arg(long)]
    half: bool,
    /// Replace a model that is in --out
    #[arg(long)]
    overwrite: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let options = ExportOptions {
        dtype: args.half.then_some(FloatDType::F16),
        overwrite: args.overwrite,
        ..ExportOptions::default()
    };
    let report = average_models(&args.models, &args.out, &options)?;
    println!(
        "mean of {} models in {}: {} tensors, {} bytes",
        args.models.len(),
        args.out.display(),
        report.tensors,
        report.bytes
    );
    Ok(End::Fine)
}
