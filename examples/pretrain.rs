//! Makes the parts that the mini model's stages start from.
//!
//! `cargo run --release --example pretrain -- --sizes recipes/mini --out runs/mini-parts`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tpo::DeviceChoice;
use tpo::pretrain::{
    EncoderPretraining, MaskPretraining, Schedule, pretrain_encoder, pretrain_masks,
};
use tpo::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The vision encoder: what every token shows
    Encoder,
    /// SAM 2 of the mask head: to follow a shape from its box
    Masks,
}

/// Pretrain the vision encoder and SAM 2 of a small model on the synthetic world.
///
/// The paper starts from parts that others trained on millions of clips. A model of a size of one's
/// own has none; this makes them, from random weights, in an hour or two on a laptop. The stages of
/// a recipe then start from the directory: model = { directory = "runs/mini-parts" }.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Directory with the sizes (tpo.json) and the tokenizer; weights are drawn from --seed.
    #[arg(long, value_name = "DIR", required_unless_present = "model")]
    sizes: Option<PathBuf>,
    /// Directory of a model whose weights are gone on with.
    #[arg(long, value_name = "DIR", conflicts_with = "sizes")]
    model: Option<PathBuf>,
    /// Where the model goes.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Parts to train, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "encoder,masks")]
    parts: Vec<Part>,
    /// Seed of the weights, of prompts and of what is cut out of clips.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seed of the world.
    #[arg(long, default_value_t = 1)]
    world: u64,
    /// Steps of the encoder, of 16 clips each.
    #[arg(long, default_value_t = 3000)]
    encoder_steps: u64,
    /// Learning rate of the encoder.
    #[arg(long, default_value_t = 1e-3)]
    encoder_rate: f64,
    /// Steps of SAM 2.
    #[arg(long, default_value_t = 3000)]
    mask_steps: u64,
    /// How many of them are on single frames.
    #[arg(long, default_value_t = 1000)]
    image_steps: u64,
    /// Learning rate of SAM 2.
    #[arg(long, default_value_t = 1e-3)]
    mask_rate: f64,
    /// Weight of SAM 2's dice loss.
    #[arg(long, default_value_t = 1.0)]
    dice: f64,
    /// Clips of a step of the encoder.
    #[arg(long, default_value_t = 16)]
    clips: usize,
    /// Where to compute: auto, cpu, cuda, wgpu.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// No progress bar; every hundredth step is printed.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> tpo::Result<()> {
    let device = args.device.open()?;
    let mut session = match (&args.sizes, &args.model) {
        (Some(dir), _) => Session::random(dir, &device, args.seed, SessionOptions::default())?,
        (None, Some(dir)) => Session::open(dir, &device, SessionOptions::default(), None)?.0,
        (None, None) => unreachable!("clap asks for one of them"),
    };
    for part in &args.parts {
        let (mut model, config) = (session.model().clone(), session.config().clone());
        match part {
            Part::Encoder => {
                let options = EncoderPretraining {
                    schedule: Schedule {
                        steps: args.encoder_steps,
                        first: 0,
                        learning_rate: args.encoder_rate,
                        warmup: 100,
                        weight_decay: 0.02,
                    },
                    clips: args.clips,
                    world: args.world,
                };
                let mut told = Told::new("encoder", options.schedule.steps, args.quiet);
                let heard = &mut |step, steps, values: &[_]| told.step(step, steps, values);
                model.vision = pretrain_encoder(model.vision, &config, &options, &device, heard)?;
            }
            Part::Masks => {
                let options = MaskPretraining {
                    schedule: Schedule {
                        steps: args.mask_steps,
                        first: 0,
                        learning_rate: args.mask_rate,
                        warmup: 50,
                        weight_decay: 0.01,
                    },
                    images: args.image_steps,
                    image_clips: 16,
                    clips: 4,
                    frames: 6,
                    focal: 20.0,
                    dice: args.dice,
                    world: args.world,
                    seed: args.seed,
                };
                let mut told = Told::new("masks", options.schedule.steps, args.quiet);
                let heard = &mut |step, steps, values: &[_]| told.step(step, steps, values);
                let sam = &mut model.heads.rest.rest.head.sam;
                *sam = pretrain_masks(sam.clone(), &config, &options, &device, heard)?;
            }
        }
        session = session.with_model(model)?;
        session.save(&args.out)?;
        println!("{}", args.out.display());
    }
    Ok(())
}

/// A bar, or a line now and then.
struct Told {
    part: &'static str,
    bar: Option<ProgressBar>,
}

impl Told {
    fn new(part: &'static str, steps: u64, quiet: bool) -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {eta} {msg}");
        let bar = || {
            let bar = ProgressBar::new(steps).with_prefix(part);
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        };
        Self {
            part,
            bar: (!quiet).then(bar),
        }
    }

    fn step(&mut self, step: u64, steps: u64, values: &[(&'static str, f64)]) -> bool {
        let text: Vec<String> = values.iter().map(|(n, v)| format!("{n} {v:.3}")).collect();
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(text.join("  "));
            }
            None if step.is_multiple_of(100) || step == steps => {
                println!("{} {step}/{steps}  {}", self.part, text.join("  "));
            }
            None => {}
        }
        true
    }
}
