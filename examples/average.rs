//! The mean of several models.
//!
//! `cargo run --release --example average -- --out models/mean models/one models/other`

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::FloatDType;
use clap::Parser;
use tpo::export::{ExportOptions, average_models};

/// Write the mean of models that went on from the same weights: a model soup.
///
/// Runs from one start with other data, seeds or lengths end in one valley of the loss. The mean of
/// their weights costs no more than one of them and is often better than each, most of all on data
/// unlike that of training (Wortsman et al. 2022, arXiv 2203.05482). Models that were drawn or
/// pretrained apart have no useful mean; evaluate what comes out.
#[derive(Parser, Debug)]
#[command(version, after_help = HELP)]
struct Args {
    /// Model directories, two or more, of one configuration and with one tokenizer.
    #[arg(required = true, num_args = 2.., value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Directory of the mean.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Weights of 16 bits (f16), whatever the models have.
    #[arg(long)]
    half: bool,
    /// Replace a model that is in --out.
    #[arg(long)]
    overwrite: bool,
}

const HELP: &str = "\
Examples:
  train recipe.toml seed=1 --export models/one
  train recipe.toml name=other seed=2 --export models/two
  average models/one models/two --out models/mean    then: evaluate --model models/mean --synthetic 200";

fn main() -> ExitCode {
    sigpipe::reset();
    let args = Args::parse();
    let options = ExportOptions {
        dtype: args.half.then_some(FloatDType::F16),
        overwrite: args.overwrite,
        ..ExportOptions::default()
    };
    match average_models(&args.models, &args.out, &options) {
        Ok(report) => {
            let (models, dir) = (args.models.len(), args.out.display());
            let (tensors, bytes) = (report.tensors, report.bytes);
            println!("mean of {models} models in {dir}: {tensors} tensors, {bytes} bytes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
