//! Running a model over a benchmark.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use tpo_core::head::HeadSet;
use tpo_data::readers::{ConvertOptions, Format as DataFormat};
use tpo_data::synthetic::{Split, WorldConfig};

use super::outcome::Grid;
use super::{Args, Format, Task};
use crate::cli::shared::{
    End, MAX_NEW_TOKENS, ModelArgs, Outcome, TRACK_SAMPLED, bar, head_progress,
};
use crate::evaluation::{
    AnswerForm, DataFile, ItemKind, PUBLISHED_NEW_TOKENS, Plan, PlanOptions, PromptProtocol,
    Prompts, RESULTS_FILE, Results, Route, RunOptions, RunOutcome, RunProgress, SUBMISSION_DIR,
    SessionAnswerer, TaskScores, WorldSpec, run as ask_all,
};
use crate::session::{SessionOptions, TrackFrames};

/// Rows listed on the screen; the results have all.
const LISTED: usize = 5;

#[derive(clap::Args)]
#[command(next_help_heading = "With a model")]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
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
    /// Split of the synthetic world (train, validation, held_out) or of the data
    #[arg(long)]
    split: Option<String>,
    /// Ask the synthetic world's questions as multiple choice
    #[arg(long, alias = "choices")]
    multiple_choice: bool,
    /// Rows of --data, from the first
    #[arg(long)]
    limit: Option<usize>,
    /// Who calls the heads
    #[arg(long, default_value = "model")]
    route: Route,
    /// Read boxes, times and tracks out of the text (paper, Table 11)
    #[arg(long)]
    textual: bool,
    /// Wording of multiple choice [default: published for mvbench, video-mme and next-gqa, mlvu for mlvu,
    /// direct for perception-test, mmiu and seed-bench-2, else plain]
    #[arg(long)]
    prompts: Option<PromptProtocol>,
    /// Questions that are answered at once [default: what fits into memory, at most 8]
    #[arg(long, value_name = "N")]
    batch: Option<NonZeroUsize>,
    /// Directory of the run
    #[arg(long)]
    out: Option<PathBuf>,
    /// Discard what --out holds of another run
    #[arg(long)]
    restart: bool,
}

impl RunArgs {
    pub fn has_model(&self) -> bool {
        self.model.is_given()
    }

    /// Whether `--limit`, which is for rows of files, is given for the world.
    pub fn limits_the_world(&self) -> bool {
        self.synthetic.is_some() && self.limit.is_some()
    }

    fn plan(&self, task: Option<Task>, format: Option<Format>) -> Outcome<Plan> {
        let options = PlanOptions {
            kinds: task.map_or_else(Vec::new, kinds),
            limit: self.limit,
            route: self.route,
            answers: if self.textual {
                AnswerForm::Text
            } else {
                AnswerForm::Heads
            },
            prompts: self.prompts.map(Prompts::of),
        };
        if let Some(clips) = self.synthetic {
            let split = match &self.split {
                None => Split::HeldOut,
                Some(name) => name.parse()?,
            };
            let spec = WorldSpec {
                world: WorldConfig::default(),
                seed: self.model.seed,
                split,
                clips,
                choices: self.multiple_choice,
            };
            return Ok(Plan::synthetic(&spec, options)?);
        }
        let path = self.data.clone();
        let path = path.ok_or("give --data FILE or --synthetic CLIPS")?;
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
        Task::Gqa => vec![ItemKind::MultipleChoice, ItemKind::Temporal],
        Task::Mask => vec![ItemKind::Mask],
        Task::Track => vec![ItemKind::Track],
        Task::Region => vec![ItemKind::Region],
        Task::MultipleChoice => vec![ItemKind::MultipleChoice],
        Task::Text => vec![ItemKind::Text],
        Task::Own => vec![ItemKind::Own],
    }
}

pub fn run<H: HeadSet>(args: &Args) -> Outcome {
    let dir = args.run.out.as_deref().ok_or("give --out RUN_DIR")?;
    let plan = args.run.plan(args.task, args.format)?;
    let choices = |kind| kind == ItemKind::MultipleChoice;
    if args.run.prompts.is_some() && !plan.items.iter().any(|item| choices(item.kind())) {
        return Err(
            "--prompts is the wording of multiple choice, and no question is; leave it out, or ask the \
             synthetic world's as such (--multiple-choice)"
                .into(),
        );
    }
    let every_frame = |kind| matches!(kind, ItemKind::Mask | ItemKind::Track);
    let every_frame = plan.items.iter().any(|item| every_frame(item.kind()));
    if every_frame && args.run.model.track() != TrackFrames::All {
        return Err("masks and tracks are scored on every frame; leave out --track".into());
    }
    let published = plan.prompts == Prompts::published();
    let (session, name) = args.run.model.open::<H>(SessionOptions {
        progress: Some(head_progress((!every_frame).then_some(TRACK_SAMPLED))),
        max_new_tokens: if published {
            PUBLISHED_NEW_TOKENS
        } else {
            MAX_NEW_TOKENS
        },
        ..SessionOptions::default()
    })?;
    let batch = match args.run.batch {
        Some(batch) => {
            let at_once = batch.get().min(plan.items.len());
            if let Some(fit) = session
                .questions_that_fit()?
                .filter(|fit| at_once > fit.get())
            {
                return Err(format!(
                    "--batch {batch}: {at_once} questions at once take more memory than is left; {fit} fit: \
                     give --batch {fit}, or leave it out"
                )
                .into());
            }
            batch
        }
        None => session.batch_that_fits()?,
    };
    let answerers = session.side_by_side(batch)?;
    let beside = match answerers.get() {
        1 => String::new(),
        several => format!(", {several} times side by side"),
    };
    let questions = plan.items.len();
    eprintln!("{questions} questions, {batch} at once (--batch){beside}");
    let mut model = SessionAnswerer::new(&session, name, plan.route, plan.answers)?;
    let options = RunOptions {
        batch,
        answerers,
        restart: args.run.restart,
        strict: args.strict,
    };
    let bar = bar("{pos}/{len} {wide_bar} {per_sec} eta {eta}");
    bar.set_length(plan.items.len() as u64);
    let mut heard = |p: RunProgress| {
        if p.done == p.resumed {
            // Rows of earlier runs must not count as fast ones.
            bar.set_position(p.resumed as u64);
            bar.reset_eta();
        }
        bar.set_position(p.done as u64);
        true
    };
    let outcome = ask_all(&plan, &mut model, dir, &options, &mut heard);
    bar.finish_and_clear();
    let RunOutcome::Done(results) = outcome? else {
        return Ok(End::Wrong);
    };
    print(&results, dir);
    let unread: usize = results.scores.iter().map(|task| task.unanswered).sum();
    let asked: usize = results.scores.iter().map(|task| task.questions).sum();
    if unread == asked && !results.not_called.is_empty() {
        let calls = results.not_called.iter();
        let calls = calls.map(|(called, times)| format!("{called} {times} times"));
        eprintln!(
            "no answer could be read, for the model did not call the heads of the questions; it called {}. \
             --route always asks the right head whatever the model calls",
            calls.collect::<Vec<_>>().join(", ")
        );
    }
    // Also when there was no question.
    let nothing = results.failed.len() == results.questions;
    if nothing {
        eprintln!("no question was answered; nothing is scored");
    }
    Ok(End::fine_if(!nothing))
}

fn print(results: &Results, dir: &Path) {
    for task in &results.scores {
        println!(
            "{}: {} questions, {} without a readable answer",
            task.task, task.questions, task.unanswered
        );
        println!("metric: {}", task.metric);
        let names: Vec<&str> = task.scores.iter().map(|s| s.name.as_str()).collect();
        // What a head of your own scores may be small: distances between 0 and 1.
        let small = task.scores.iter().filter_map(|s| s.value).all(|v| v < 1.0);
        let mut grid = Grid::new(&names, if is_own(task) || small { 4 } else { 2 });
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
    let failed = results
        .failed
        .iter()
        .map(|f| format!("{}: {}", f.id, f.why));
    let lists = [
        ("not answered, not scored", failed.collect()),
        ("rows that could not be asked", results.skipped.clone()),
    ];
    for (what, all) in lists {
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
    print!("wrote {}", dir.join(RESULTS_FILE).display());
    // There is none of tasks of your own.
    if !results.scores.iter().all(is_own) {
        print!(" and {}", dir.join(SUBMISSION_DIR).display());
    }
    println!();
}

/// Whether a head of your own says what its answers are worth.
fn is_own(task: &TaskScores) -> bool {
    task.task != "grounded" && ItemKind::ALL.iter().all(|kind| kind.name() != task.task)
}
