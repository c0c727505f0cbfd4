//! Makes the parts that the mini model's stages start from.

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use indicatif::ProgressBar;
use tpo_train::Muon;

use super::shared::{DeviceArgs, End, Outcome, bar, open_model};
use crate::model::{BuiltInHeads, CONFIG_FILE};
use crate::pretrain::{
    MaskPretraining, PerceptionPretraining, PretrainStep, Schedule, pretrain_masks,
    pretrain_perception,
};
use crate::session::{Session, SessionOptions};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Vision encoder and connector: what every token shows; of an encoder of single pictures the
    /// first half of the language model, too
    Perception,
    /// SAM 2 of the mask head: to follow a shape from its box
    Masks,
}

/// Pretrain vision encoder, connector and SAM 2 of a small model on the synthetic world.
///
/// The paper starts from parts that others trained on millions of clips. A model of a size of your
/// own has none; this makes them, from random weights, in an hour or two on a laptop. The stages of
/// a recipe then start from the directory: model = { directory = "runs/mini-parts" }.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo pretrain --sizes assets/mini --out runs/mini-parts
  tpo pretrain --model runs/mini-parts --parts masks --image-steps 0 --frames 8 --out runs/clips
  tpo pretrain --sizes assets/mini-ov --parts perception --sam2 assets/mini --out runs/mini-ov-parts")]
pub(super) struct Args {
    /// Directory with the sizes (tpo.json) and the tokenizer; weights are drawn from --seed.
    #[arg(long, value_name = "DIR", required_unless_present = "model")]
    sizes: Option<PathBuf>,
    /// Directory of a model whose training continues.
    #[arg(long, value_name = "DIR", conflicts_with = "sizes")]
    model: Option<PathBuf>,
    /// Directory of a model whose SAM 2, of the same sizes, takes the place of this one's.
    #[arg(long, value_name = "DIR")]
    sam2: Option<PathBuf>,
    /// Where the model goes.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace the model that is in --out; not needed where it is the one of --model.
    #[arg(long)]
    overwrite: bool,
    /// Parts to train, in this order.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "perception,masks"
    )]
    parts: Vec<Part>,
    /// Seed of the weights, of prompts and of what is cut out of clips.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seed of the world.
    #[arg(long, default_value_t = 1)]
    world: u64,
    /// Steps of encoder and connector.
    #[arg(long, default_value_t = 8000, value_parser = count::<u64>())]
    perception_steps: u64,
    /// Learning rate of encoder and connector.
    #[arg(long, default_value_t = 1.5e-3, value_parser = positive)]
    perception_rate: f64,
    /// Steps of SAM 2.
    #[arg(long, default_value_t = 7000, value_parser = count::<u64>())]
    mask_steps: u64,
    /// How many of them are on single frames.
    #[arg(long, default_value_t = 5000)]
    image_steps: u64,
    /// Frames of the clips of the other steps; SAM 2 was trained on eight.
    #[arg(long, default_value_t = 6, value_parser = count::<usize>())]
    frames: usize,
    /// Learning rate of SAM 2.
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    mask_rate: f64,
    /// Weight of SAM 2's dice loss.
    #[arg(long, default_value_t = 2.0)]
    dice: f64,
    /// Move matrices by Muon, the rest by AdamW.
    #[arg(long)]
    muon: bool,
    /// Clips of a step of encoder and connector.
    #[arg(long, default_value_t = 16, value_parser = count::<usize>())]
    clips: usize,
    /// Share of the clips of encoder and connector whose outlines have no name.
    #[arg(long, default_value_t = 0.0)]
    irregular: f64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Steps after which the model is saved, and once at the end of every part.
    #[arg(long, default_value_t = 500, value_parser = count::<u64>())]
    save_every: u64,
    /// No progress bar; every hundredth step is printed.
    #[arg(long)]
    quiet: bool,
}

/// A number from 1 on; a part that is not to be trained is left out of `--parts`.
fn count<T: TryFrom<u64>>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(v) if v > 0.0 && f64::is_finite(v) => Ok(v),
        _ => Err("expected a number above 0".into()),
    }
}

pub(super) fn run(args: Args) -> Outcome {
    let resumed = args.model.as_ref().and_then(|dir| dir.canonicalize().ok());
    let same = resumed.is_some() && resumed == args.out.canonicalize().ok();
    if args.out.join(CONFIG_FILE).exists() && !same && !args.overwrite {
        let out = args.out.display();
        return Err(format!(
            "{out} holds a model already; give another --out, --model {out} to continue its training, \
             or --overwrite to replace it"
        )
        .into());
    }
    let device = args.device.open()?;
    let options = SessionOptions::default();
    let mut session: Session<BuiltInHeads> = match &args.sizes {
        Some(dir) => Session::random(dir, &device, args.seed, options)?,
        None => open_model(args.model.as_deref(), &device, options)?,
    };
    if let Some(dir) = &args.sam2 {
        let other: Session = open_model(Some(dir), &device, SessionOptions::default())?;
        let mut model = session.model().clone();
        let (sam, found) = (&mut model.heads.mask.sam, &other.model().heads.mask.sam);
        if found.config() != sam.config() {
            return Err(format!(
                "--sam2 {}: its SAM 2 has other sizes than that of this model; `heads.mask.sam` of both \
                 tpo.json must be equal",
                dir.display()
            )
            .into());
        }
        *sam = found.clone();
        session = session.with_model(model)?;
    }
    for part in &args.parts {
        let (name, steps) = match part {
            Part::Perception => ("perception", args.perception_steps),
            Part::Masks => ("masks", args.mask_steps),
        };
        let bar = Bar::new(name, steps, args.quiet);
        let heard = &mut |told: PretrainStep<'_>| {
            bar.tell(&told);
            if told.step.is_multiple_of(args.save_every) {
                session.with_model((told.model)())?.save(&args.out)?;
            }
            Ok(())
        };
        let (model, config) = (session.model(), session.config());
        let model = match part {
            Part::Perception => {
                let options = PerceptionPretraining {
                    schedule: schedule(&args, steps, args.perception_rate, 100, 0.02),
                    clips: args.clips,
                    irregular: args.irregular,
                    world: args.world,
                };
                pretrain_perception(model, config, &options, &device, heard)?
            }
            Part::Masks => {
                let options = MaskPretraining {
                    schedule: schedule(&args, steps, args.mask_rate, 50, 0.01),
                    images: args.image_steps,
                    frames: args.frames,
                    dice: args.dice,
                    world: args.world,
                    seed: args.seed,
                };
                pretrain_masks(model, config, &options, &device, heard)?
            }
        };
        session = session.with_model(model)?;
        session.save(&args.out)?;
        println!("{}", args.out.display());
    }
    Ok(End::Fine)
}

fn schedule(args: &Args, steps: u64, learning_rate: f64, warmup: u64, decay: f64) -> Schedule {
    Schedule {
        steps,
        learning_rate,
        warmup,
        weight_decay: decay,
        muon: args.muon.then(Muon::default),
    }
}

/// A bar, or a line now and then.
struct Bar {
    part: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new(part: &'static str, steps: u64, quiet: bool) -> Self {
        let bar = (!quiet).then(|| bar("{prefix} {bar:24} {pos}/{len} {eta} {msg}"));
        let bar = bar.map(|bar| bar.with_prefix(part));
        bar.iter().for_each(|bar| bar.set_length(steps));
        Self { part, bar }
    }

    fn tell(&self, told: &PretrainStep<'_>) {
        let text: Vec<String> = told
            .values
            .iter()
            .map(|(n, v)| format!("{n} {v:.3}"))
            .collect();
        let (step, steps) = (told.step, told.steps);
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
    }
}
