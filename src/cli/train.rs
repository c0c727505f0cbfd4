//! Trains a model as a recipe says.

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use tpo_core::head::HeadSet;
use tpo_train::Recipe;
use tpo_train::checkpoint::{CheckpointStore, Retention};
use tpo_train::explain::Explanation;
use tpo_train::run_directory::CHECKPOINTS_DIR;
use tpo_train::trainer::RunEnd;

use super::shared::{DeviceArgs, End, Outcome, Precision, QuantizeArg, TowerArgs, parse_gib};
use crate::export::{ExportOptions, LoraExport, check_target, export_model};
use crate::training::measure::measure_stage;
use crate::training::{
    RunOptions, check_memory, explain, explain_shapes, run_recipe, set_precision,
};

/// Train a model as a recipe says.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Recipe (TOML), then values to change in it: `seed=7`, `stages.0.batch_size=8`.
    #[arg(required = true, value_name = "RECIPE [KEY=VALUE]...")]
    recipe: Vec<String>,
    /// Say what the recipe would do and what memory it takes, then end. No weight is read.
    #[arg(long)]
    explain: bool,
    /// Take a few steps of this stage and say what memory they took beside the estimate, then end.
    #[arg(long, value_name = "STAGE", conflicts_with = "explain")]
    measure: Option<String>,
    /// Directory of the run [default: runs/NAME, NAME being the recipe's].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in the directory at its newest whole checkpoint.
    #[arg(long)]
    resume: bool,
    /// End the run at the first bad row of its data instead of skipping it: `strict` in every stage.
    #[arg(long)]
    strict: bool,
    /// Write a checkpoint and stop after so many steps of the run; the schedule stays that of the
    /// whole recipe, and --resume continues.
    #[arg(long, value_name = "STEPS", conflicts_with = "export", value_parser = clap::value_parser!(u64).range(1..))]
    stop_after: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Number format of weights and activations in all stages; auto: as the recipe says (`precision`)
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    /// Quantise the linear layers of the language model while they are read, in place of what the
    /// recipe says (`model.quantize`); adapters, tokens and heads learn beside them (QLoRA)
    #[arg(long, value_enum)]
    quantize: Option<QuantizeArg>,
    /// Quantise those of the vision encoder, in place of `model.quantize_vision`
    #[arg(long, value_enum, value_name = "QUANTIZE")]
    quantize_vision: Option<QuantizeArg>,
    /// GiB of memory that training and its towers may take on the CPU [default: what is available]
    #[arg(long, value_name = "GIB", value_parser = parse_gib)]
    memory: Option<u64>,
    /// Compute activations again in the backward pass: less memory, about a third more time.
    #[arg(long, alias = "recompute")]
    gradient_checkpointing: bool,
    #[command(flatten)]
    towers: TowerArgs,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
    /// Write the trained model here, in the reference's layout.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// With --export: add the adapters to the weights instead of keeping them beside.
    #[arg(long, requires = "export")]
    merge: bool,
    /// With --export: replace a model that is there.
    #[arg(long, requires = "export")]
    overwrite: bool,
    /// With --export: weights of 16 bits (f16) instead of 32.
    #[arg(long, requires = "export")]
    half: bool,
}

const HELP: &str = "\
Examples:
  tpo train recipes/nano/stages.toml                         a laptop, a minute, no downloads
  tpo train --explain recipes/videochat_tpo/stage2.toml model.preset=videochat-tpo
                                                             parts, rates, steps, memory; no files
  tpo assemble --help                                        where that recipe's model comes from
  tpo train recipes/nano/stages.toml name=other seed=7 stages.region-head.batch_size=8
  tpo train --resume recipes/nano/stages.toml                after a crash or Ctrl-C
  tpo train recipes/videochat_tpo/stage2.toml --towers InternVideo2-CLIP --feature-cache features
  tpo train recipes/finetune/one-head.toml --dtype bf16 --quantize q8_0    a base of half the size
  tpo train recipes/nano/stages.toml --export models/mine    then: tpo chat --model models/mine

Values have the type of what they replace; members of a list go by number or by name:
  stages.region-head.groups.lora.learning_rate=1e-4
  stages.0.length='{ epochs = 3 }'
  stages.0.groups.0.patterns='heads.region.**,task_tokens.region'
A mistake in the recipe, however many there are, ends it before anything is loaded.

The run's directory gets recipe.toml (every default written out), checkpoints/, metrics.jsonl,
tensorboard/ (tensorboard --logdir runs) and curves.png. A checkpoint is whole or it does not
count; kill the process whenever you like.";

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    let (path, overrides) = args
        .recipe
        .split_first()
        .map_or(("", &[][..]), |(p, o)| (p, o));
    let mut recipe = Recipe::open(path, overrides)?;
    for stage in &mut recipe.stages {
        stage.strict |= args.strict;
    }
    match args.dtype {
        Precision::Auto => {}
        Precision::F32 => set_precision(&mut recipe, tpo_train::Precision::F32),
        Precision::Bf16 => set_precision(&mut recipe, tpo_train::Precision::Bf16),
        Precision::F16 => {
            let why = "--dtype f16: gradients leave the range of f16; train in bf16, which takes as much \
                       memory";
            return Err(why.into());
        }
    }
    if let Some(quantize) = args.quantize {
        recipe.model.quantize = quantize.format();
    }
    if let Some(quantize) = args.quantize_vision {
        recipe.model.quantize_vision = quantize.format();
    }
    if args.towers.feature_cache.is_some() && args.towers.towers.is_none() {
        return Err("--feature-cache keeps the features of --towers; give both".into());
    }
    let explanation = if args.explain {
        explain::<H>(&recipe)?
    } else {
        // Everything that shapes alone can tell, before a weight is read; the data are looked at later.
        explain_shapes::<H>(&recipe, args.measure.is_some())?
    };
    let device = args.device.open()?;
    let (towers, features) = args.towers.open(&device, args.memory)?;
    let dir = args.out;
    let options = RunOptions {
        dir: dir.unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name)),
        resume: args.resume,
        bars: !args.quiet,
        stop_after: args.stop_after,
        gradient_checkpointing: args.gradient_checkpointing,
        towers,
        features,
        memory: args.memory,
        ..RunOptions::new("", &device)
    };
    if args.explain {
        println!("{explanation}");
        if let Err(why) = check_memory::<H>(&recipe, &options) {
            eprintln!("\nThis would not be run here: {why}");
        }
        return Ok(End::Fine);
    }
    if let Some(stage) = &args.measure {
        return measure::<H>(&recipe, stage, &explanation, &options);
    }
    if let Some(dir) = &args.export {
        let of = &recipe.model;
        let inputs = [&of.sizes, &of.directory, &of.start, &of.llm];
        let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
        check_target(dir, &inputs, true, args.overwrite)?;
    }
    if args.resume {
        let store = CheckpointStore::new(options.dir.join(CHECKPOINTS_DIR), Retention::ALL);
        let (found, skipped) = store.list()?;
        if found.is_empty() && skipped.is_empty() {
            let dir = options.dir.display();
            eprintln!("nothing to resume in {dir}, starting at step 0");
        }
    }
    let summary = run_recipe::<H>(&recipe, &options)?;
    if let Some(step) = summary.resumed_at {
        eprintln!("resumed at step {step}");
    }
    for change in &summary.changes {
        eprintln!("changed since the checkpoint: {change}");
    }
    if summary.end == RunEnd::Stopped {
        eprintln!("stopped; continue with --resume");
        return Ok(End::fine_if(args.stop_after.is_some()));
    }
    println!("{}", options.dir.display());
    if let Some(dir) = &args.export {
        let export = ExportOptions {
            lora: if args.merge {
                LoraExport::Merged
            } else {
                LoraExport::Adapters
            },
            dtype: args.half.then_some(FloatDType::F16),
            overwrite: args.overwrite,
            ..ExportOptions::default()
        };
        let built = summary.model;
        let quantize = built.config.quantization();
        let merged = if args.merge {
            "; the adapters were added to them, and the sums quantised again"
        } else {
            ""
        };
        for (part, format, merged) in [
            ("language model", quantize.llm, merged),
            ("vision encoder", quantize.vision, ""),
        ] {
            if let Some(format) = format {
                eprintln!(
                    "the linear layers of the {part} are written as {}, as they were trained with{merged}",
                    format.name()
                );
            }
        }
        let files = &built.tokenizer_files;
        let report = export_model(built.model, &built.config, files, dir, &export);
        let report = report.map_err(|e| {
            format!("{e}\nThe run is done; `--resume --export OTHER` writes its model elsewhere")
        })?;
        let (dir, tensors, bytes) = (dir.display(), report.tensors, report.bytes);
        println!("{dir}: {tensors} tensors, {bytes} bytes");
    }
    Ok(End::Fine)
}

fn measure<H: HeadSet>(
    recipe: &Recipe,
    stage: &str,
    explanation: &Explanation,
    options: &RunOptions,
) -> Outcome {
    let Some(found) = measure_stage::<H>(recipe, stage, options)? else {
        return Err("this system does not tell what memory a process uses".into());
    };
    let mib = |bytes: u64| bytes as f64 / (1_u64 << 20) as f64;
    let estimate = explanation.stages.iter().find(|s| s.stage.name == stage);
    let estimate = estimate.map_or(0, |s| s.memory.total(options.gradient_checkpointing));
    println!(
        "{stage}: {:.0} MiB at the most, {:.0} MiB after a step; the estimate is {:.0} MiB",
        mib(found.peak),
        mib(found.settled),
        mib(estimate)
    );
    Ok(End::Fine)
}
