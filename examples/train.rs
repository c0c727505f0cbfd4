//! Trains a model as a recipe says.
//!
//! `cargo run --release --example train -- recipes/nano/stages.toml`

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::FloatDType;
use clap::Parser;
use tpo::DeviceChoice;
use tpo::export::{ExportOptions, LoraExport, export_model};
use tpo::features::{FeatureCache, TemporalTowers};
use tpo::measure::measure_stage;
use tpo::recipe::explain;
use tpo::train::Recipe;
use tpo::train::explain::Explanation;
use tpo::train::trainer::RunEnd;
use tpo::training::{RunOptions, data_of, run_recipe};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a model as a recipe says.
#[derive(Parser, Debug)]
#[command(after_help = HELP)]
struct Args {
    /// Recipe (TOML), then values to change in it: `seed=7`, `stages.0.batch_size=8`.
    #[arg(required = true, value_name = "RECIPE [KEY=VALUE]...")]
    recipe: Vec<String>,
    /// Say what the recipe would do and what memory it takes, then end. No weight is read.
    #[arg(long)]
    explain: bool,
    /// Take two steps of this stage and say what memory they took beside the estimate, then end.
    #[arg(long, value_name = "STAGE", conflicts_with = "explain")]
    measure: Option<String>,
    /// Directory of the run [default: runs/NAME, NAME being the recipe's].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in the directory at its newest whole checkpoint.
    #[arg(long)]
    resume: bool,
    /// Write a checkpoint and stop after so many steps of the run; the schedule stays that of the
    /// whole recipe, and --resume goes on.
    #[arg(long, value_name = "STEPS", conflicts_with = "export", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    /// Where to train: auto, cpu, cuda, wgpu.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Compute activations again in the backward pass: less memory, about a third more time.
    #[arg(long)]
    recompute: bool,
    /// Folder with InternVideo2-CLIP, whose features the temporal head of VideoChat-TPO reads:
    /// vision.safetensors, text.safetensors, clip.safetensors, tokenizer.model.
    #[arg(long, value_name = "DIR")]
    towers: Option<PathBuf>,
    /// Folder where video features of the temporal head are kept; the next epoch reads them.
    #[arg(long, value_name = "DIR", requires = "towers")]
    feature_cache: Option<PathBuf>,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
    /// Write the trained model here, in the reference's layout.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// With --export: add the adapters to the weights instead of keeping them beside.
    #[arg(long, requires = "export")]
    merge: bool,
    /// With --export: weights of 16 bits (f16) instead of 32.
    #[arg(long, requires = "export")]
    half: bool,
}

const HELP: &str = "\
Examples:
  train recipes/nano/stages.toml                         a laptop, a minute, no downloads
  train --explain recipes/videochat_tpo/stage2.toml      parts, rates, steps, memory
  train recipes/nano/stages.toml seed=7 stages.region-head.batch_size=8
  train --resume recipes/nano/stages.toml                after a crash or Ctrl-C
  train recipes/videochat_tpo/stage2.toml --towers InternVideo2-CLIP --feature-cache features
  train recipes/nano/stages.toml --export models/mine    then: chat --model models/mine

Values have the type of what they replace; members of a list go by number or by name:
  stages.region-head.groups.lora.learning_rate=1e-4
  stages.0.length='{ epochs = 3 }'
  stages.0.groups.0.patterns='head:region.**,token:region'
A mistake in the recipe, however many there are, ends it before anything is loaded.

The run's directory gets recipe.toml (every default written out), checkpoints/, metrics.jsonl,
tensorboard/ (tensorboard --logdir runs) and curves.png. A checkpoint is whole or it does not
count; kill the process whenever you like.";

fn main() -> ExitCode {
    sigpipe::reset();
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> tpo::Result<ExitCode> {
    let (path, overrides) = args
        .recipe
        .split_first()
        .map_or(("", &[][..]), |(p, o)| (p, o));
    let recipe = Recipe::open(path, overrides)?;
    if args.explain {
        println!("{}", explain(&recipe)?);
        return Ok(ExitCode::SUCCESS);
    }
    // Everything that shapes alone can tell, before a weight is read.
    let told = explain(&recipe)?;
    let device = args.device.open()?;
    let towers = args.towers.as_ref();
    let towers = towers.map(|dir| TemporalTowers::open(dir, &device));
    let features = args.feature_cache.as_ref().map(FeatureCache::open);
    let options = RunOptions {
        dir: args
            .out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name)),
        resume: args.resume,
        bars: !args.quiet,
        stop_after: args.stop_after,
        recompute: args.recompute,
        towers: towers.transpose()?,
        features: features.transpose()?,
        ..RunOptions::new("", &device)
    };
    if let Some(stage) = &args.measure {
        return measure(&recipe, stage, &told, &options);
    }
    let summary = run_recipe(&recipe, &options)?;
    if let Some(step) = summary.resumed_at {
        eprintln!("resumed at step {step}");
    }
    for change in &summary.changes {
        eprintln!("changed since the checkpoint: {change}");
    }
    if summary.end == RunEnd::Stopped {
        eprintln!("stopped; go on with --resume");
        return Ok(match args.stop_after {
            Some(_) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        });
    }
    println!("{}", options.dir.display());
    if let Some(dir) = &args.export {
        let export = ExportOptions {
            lora: match args.merge {
                true => LoraExport::Merged,
                false => LoraExport::Adapters,
            },
            dtype: args.half.then_some(FloatDType::F16),
            ..ExportOptions::default()
        };
        let built = summary.model;
        let report = export_model(
            built.model,
            &built.config,
            &built.tokenizer_files,
            dir,
            &export,
        )?;
        println!(
            "{}: {} tensors, {} bytes",
            dir.display(),
            report.tensors,
            report.bytes
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    recipe: &Recipe,
    stage: &str,
    told: &Explanation,
    options: &RunOptions,
) -> tpo::Result<ExitCode> {
    let Some(found) = measure_stage(recipe, stage, options, &mut *data_of(options))? else {
        eprintln!("this system does not tell what memory a process uses");
        return Ok(ExitCode::FAILURE);
    };
    let mib = |bytes: u64| bytes as f64 / (1_u64 << 20) as f64;
    let estimate = told.stages.iter().find(|s| s.stage.name == stage);
    let estimate = estimate.map_or(0, |s| s.memory.total(options.recompute));
    println!(
        "{stage}: {:.0} MiB at the most, {:.0} MiB after a step; the estimate is {:.0} MiB",
        mib(found.peak),
        mib(found.settled),
        mib(estimate)
    );
    Ok(ExitCode::SUCCESS)
}
