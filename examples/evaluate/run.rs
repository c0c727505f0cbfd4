//! Running a model over a benchmark.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tpo::data::FrameSampling;
use tpo::data::readers::{ConvertOptions, Format as DataFormat};
use tpo::data::synthetic::{Split, WorldConfig};
use tpo::evaluation::{
    AnswerForm, DataFile, ItemKind, Plan, PlanOptions, RESULTS_FILE, Results, Route, RunOptions,
    RunOutcome, RunProgress, SUBMISSION_DIR, SessionAnswerer, WorldSpec, run,
};
use tpo::features::{FeatureCache, TemporalTowers};
use tpo::prelude::*;
use tpo::presets;

use super::outcome::{Failure, Grid};
use super::{Args, Format, Task};

/// Rows listed on the screen; the results have all.
const LISTED: usize = 5;

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// The trained mini model that comes with the library
    Mini,
    /// A tiny model with random weights: shows that everything runs
    Nano,
}

#[derive(Clone, Copy, ValueEnum)]
enum Routing {
    /// The model must call the head itself; otherwise the question is a miss
    Model,
    /// The routing token of the question's task is put at the beginning of the answer
    Always,
}

#[derive(ClapArgs)]
#[command(next_help_heading = "With a model")]
pub struct RunArgs {
    /// Model directory
    #[arg(long, group = "who")]
    model: Option<PathBuf>,
    /// Built-in model
    #[arg(long, group = "who")]
    preset: Option<Preset>,
    /// Checkpoint of a training run, or the run, whose newest checkpoint is taken
    #[arg(long, group = "who")]
    checkpoint: Option<PathBuf>,
    /// Folder with InternVideo2-CLIP, whose features the temporal head of VideoChat-TPO reads:
    /// vision.safetensors, text.safetensors, clip.safetensors, tokenizer.model
    #[arg(long)]
    towers: Option<PathBuf>,
    /// Folder where video features of the temporal head are kept
    #[arg(long)]
    feature_cache: Option<PathBuf>,
    /// Benchmark file or folder
    #[arg(long)]
    data: Option<PathBuf>,
    /// Second file of formats that have two: spans, masks, instances
    #[arg(long)]
    second_file: Option<PathBuf>,
    /// Folder of the media files; default: the folder of --data
    #[arg(long)]
    media: Option<PathBuf>,
    /// Put in front of media paths
    #[arg(long, default_value = "")]
    media_prefix: String,
    /// Extension of videos that are named without one
    #[arg(long, default_value = "mp4")]
    video_extension: String,
    /// Frames per second of folders of frames that do not say
    #[arg(long)]
    frame_rate: Option<f64>,
    /// Clips of the synthetic world to ask about, instead of --data
    #[arg(long, value_name = "CLIPS", conflicts_with = "data")]
    synthetic: Option<u64>,
    /// Seed of the synthetic world, and of random weights
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Split of the synthetic world (train, validation, held_out) or of the data
    #[arg(long)]
    split: Option<String>,
    /// Ask the synthetic world's questions as multiple choice
    #[arg(long)]
    choices: bool,
    /// Rows of --data, from the first
    #[arg(long)]
    limit: Option<usize>,
    /// Who calls the heads
    #[arg(long, default_value = "model")]
    route: Routing,
    /// Read boxes, times and tracks out of the text (paper, Table 11)
    #[arg(long)]
    textual: bool,
    /// When a head is called; default: as the model's tpo.json says
    #[arg(long, value_enum)]
    order: Option<Order>,
    /// Which frames: middle, rand:SEED, fpsX
    #[arg(long, default_value = "middle")]
    sampling: FrameSampling,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 100)]
    max_new_tokens: usize,
    /// auto, cpu, cuda, cuda:N, wgpu
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Directory of the run
    #[arg(long)]
    out: Option<PathBuf>,
    /// Discard what --out holds of another run
    #[arg(long)]
    restart: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// As the published code runs it
    Reference,
    /// As the model was trained
    Trained,
}

impl RunArgs {
    pub fn has_model(&self) -> bool {
        self.model.is_some() || self.preset.is_some() || self.checkpoint.is_some()
    }

    /// Whether `--limit`, which is for files, is given for the world.
    pub fn limits_the_world(&self) -> bool {
        self.synthetic.is_some() && self.limit.is_some()
    }

    fn session(&self, device: &Device) -> Result<(Session, String), Failure> {
        let towers = self.towers.as_ref();
        let towers = towers.map(|dir| TemporalTowers::open(dir, device));
        let options = SessionOptions {
            sampling: self.sampling,
            call_order: self.order.map(|order| match order {
                Order::Reference => CallOrder::AsReference,
                Order::Trained => CallOrder::AsTrained,
            }),
            max_new_tokens: self.max_new_tokens,
            towers: towers.transpose()?,
            feature_cache: self
                .feature_cache
                .as_ref()
                .map(FeatureCache::open)
                .transpose()?,
            ..SessionOptions::default()
        };
        let named = |path: &Path| path.display().to_string();
        Ok(match (&self.model, &self.checkpoint) {
            (Some(dir), _) => (Session::open(dir, device, options, None)?.0, named(dir)),
            (_, Some(dir)) => (Session::open_checkpoint(dir, device, options)?, named(dir)),
            _ => match self.preset {
                Some(Preset::Nano) => (
                    Session::nano(device, self.seed, options)?,
                    "nano, random weights".into(),
                ),
                _ => (presets::mini(device, options)?, "mini".into()),
            },
        })
    }

    fn plan(&self, task: Option<Task>, format: Option<Format>) -> Result<Plan, Failure> {
        let options = PlanOptions {
            kinds: task.map_or_else(Vec::new, kinds),
            limit: self.limit,
            route: match self.route {
                Routing::Model => Route::Model,
                Routing::Always => Route::Always,
            },
            answers: match self.textual {
                true => AnswerForm::Text,
                false => AnswerForm::Heads,
            },
            prompts: None,
        };
        if let Some(clips) = self.synthetic {
            let split = match &self.split {
                None => Split::HeldOut,
                Some(name) => name.parse()?,
            };
            let spec = WorldSpec {
                world: WorldConfig::default(),
                seed: self.seed,
                split,
                clips,
                choices: self.choices,
            };
            return Ok(Plan::synthetic(&spec, options)?);
        }
        let path = self
            .data
            .clone()
            .ok_or("give --data FILE or --synthetic CLIPS")?;
        let format: Option<DataFormat> = match format {
            None | Some(Format::Schema) => None,
            Some(format) => Some(format.name().parse()?),
        };
        let convert = ConvertOptions {
            media_prefix: self.media_prefix.clone(),
            video_extension: self.video_extension.clone(),
            second: self.second_file.clone(),
            frame_rate: self.frame_rate,
            split: self.split.clone(),
            ..ConvertOptions::default()
        };
        let file = DataFile {
            media: self.media.clone(),
            convert,
            ..DataFile::new(path, format)
        };
        Ok(Plan::from_file(&file, options)?)
    }
}

fn kinds(task: Task) -> Vec<ItemKind> {
    match task {
        Task::Temporal => vec![ItemKind::Temporal],
        Task::Gqa => vec![ItemKind::Choice, ItemKind::Temporal],
        Task::Mask => vec![ItemKind::Mask],
        Task::Track => vec![ItemKind::Track],
        Task::Region => vec![ItemKind::Region],
        Task::Choice => vec![ItemKind::Choice],
        Task::Text => vec![ItemKind::Text],
    }
}

pub fn main(args: &Args) -> ExitCode {
    match evaluate(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn evaluate(args: &Args) -> Result<(), Failure> {
    let dir = args.run.out.as_deref().ok_or("give --out RUN_DIR")?;
    let plan = args.run.plan(args.task, args.format)?;
    let device = args.run.device.open()?;
    let (mut session, name) = args.run.session(&device)?;
    let mut model = SessionAnswerer::new(&mut session, name, plan.route, plan.answers);
    let options = RunOptions {
        restart: args.run.restart,
        strict: args.strict,
    };
    let bar = ProgressBar::new(plan.items.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{pos}/{len} {wide_bar} {per_sec} eta {eta}",
    )?);
    let mut heard = |p: RunProgress| {
        if p.done == p.resumed {
            // Rows of earlier runs must not count as fast ones.
            bar.set_position(p.resumed as u64);
            bar.reset_eta();
        }
        bar.set_position(p.done as u64);
        true
    };
    let outcome = run(&plan, &mut model, dir, &options, &mut heard);
    bar.finish_and_clear();
    let RunOutcome::Done(results) = outcome? else {
        return Ok(());
    };
    print(&results, dir);
    Ok(())
}

fn print(results: &Results, dir: &Path) {
    for task in &results.scores {
        println!(
            "{}: {} questions, {} without a readable answer",
            task.task, task.questions, task.unanswered
        );
        println!("metric: {}", task.metric);
        let names: Vec<&str> = task.scores.iter().map(|s| s.name.as_str()).collect();
        let mut grid = Grid::new(&names, 2);
        grid.row("all", task.scores.iter().map(|s| s.value).collect());
        for group in &task.groups {
            let values = names.iter().map(|n| {
                let found = group.scores.iter().find(|s| s.name == *n);
                found.and_then(|s| s.value)
            });
            grid.row(
                format!("{} ({})", group.group, group.questions),
                values.collect(),
            );
        }
        grid.print();
        println!();
    }
    let lists: [(&str, Vec<String>); 2] = [
        (
            "not answered, not scored",
            results
                .failed
                .iter()
                .map(|f| format!("{}: {}", f.id, f.why))
                .collect(),
        ),
        ("rows that could not be asked", results.skipped.clone()),
    ];
    for (what, all) in &lists {
        if all.is_empty() {
            continue;
        }
        println!("{what}: {}", all.len());
        for one in all.iter().take(LISTED) {
            println!("  {one}");
        }
        if all.len() > LISTED {
            println!("  .. ({RESULTS_FILE} has all)");
        }
    }
    println!(
        "wrote {} and {}",
        dir.join(RESULTS_FILE).display(),
        dir.join(SUBMISSION_DIR).display()
    );
}
