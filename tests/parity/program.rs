//! Compares the library with the reference on stored fixtures: outputs, activations, gradients.

mod boxes;
mod check;
mod fixture;
mod internvideo;
mod llm;
mod metrics;
mod model;
mod onevision;
mod run;
mod sam2;
mod stored;
mod temporal;
mod text;
mod track;
mod tracking;
mod train;
mod vision;
mod weights;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tpo::DeviceChoice;

/// Compare the library with the reference implementation on stored fixtures.
///
/// A fixture is a JSON with configuration, meaning and tolerances beside a safetensors file with
/// weights, inputs and expected outputs. Every JSON of the directory is looked at: the module that
/// belongs to it is built from the fixture's own sizes, loaded through the strict import, run
/// forward and backward, and compared tensor by tensor. One line each; exit code 1 on any FAIL.
#[derive(Parser)]
#[command(after_help = "Example:
  check_parity tests/fixtures")]
struct Args {
    /// Directory of fixtures
    dir: PathBuf,
    /// Only fixtures whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// auto, cpu, cuda:0 or wgpu
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// sentencepiece model for the tokenizer fixture; default: tokenizer.model in the directory,
    /// else the one of the tests
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

fn main() -> ExitCode {
    sigpipe::reset();
    let args = Args::parse();
    let device = match args.device.open() {
        Ok(device) => device,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(2);
        }
    };
    let options = run::Options {
        only: args.only,
        tokenizer: args.tokenizer,
    };
    match run::run(&args.dir, &options, &device, |line| println!("{line}")) {
        Ok(summary) => {
            println!(
                "{} passed, {} failed, {} not built",
                summary.passed, summary.failed, summary.not_built
            );
            ExitCode::from((summary.failed > 0 || summary.passed == 0) as u8)
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}
