//! Runs a model over a benchmark, or scores prediction files, with the rules of the official
//! evaluators.

mod mask;
mod multiple_choice;
mod outcome;
mod region;
mod run;
mod temporal;
mod track;

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressFinish};
use tpo_core::head::HeadSet;

use super::shared::{End, Outcome, bar, create};
use crate::Error;
use crate::evaluation::files::{Matched, ReadOptions, Record, Table, Unusable};
use crate::evaluation::multiple_choice::ChoiceRule;
use outcome::Scored;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Moments and highlights: qvhighlights, charades-sta
    Temporal,
    /// Grounded question answering: next-gqa
    Gqa,
    /// Video object segmentation: davis, ref-youtube-vos
    Mask,
    /// Single object tracking: lasot, got-10k
    Track,
    /// Referring expressions: refcoco
    Region,
    /// Multiple choice: mvbench, video-mme
    #[value(alias = "choice")]
    MultipleChoice,
    /// Short answers, by exact match; with a model only
    Text,
    /// Tasks of your own whose annotations have a `value`; with a model only
    Own,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Qvhighlights,
    #[value(alias = "charades")]
    CharadesSta,
    #[value(alias = "nextgqa")]
    NextGqa,
    Davis,
    #[value(alias = "refyoutubevos")]
    RefYoutubeVos,
    Lasot,
    #[value(name = "got-10k", alias = "got10k")]
    Got10k,
    Refcoco,
    Mvbench,
    VideoMme,
    // Those that only a model is run on.
    Schema,
    Mevis,
    RefcocoCocoStyle,
    RefcocoJsonl,
    RefcocoLmms,
    Mlvu,
    PerceptionTest,
    Mmiu,
    #[value(name = "seed-bench-2")]
    SeedBench2,
    ActivitynetCaptions,
    Tacos,
    SaV,
}

/// Run a model over a benchmark and score it, or score prediction files as the official
/// evaluators do.
///
/// With --model, --preset or --checkpoint every question of --data is asked and everything is kept
/// below --out; a run that was interrupted continues where it stopped.
///
/// Prints a table, and with --json a file that also records the protocol: metric, version, format
/// and options. Errors name file and line. Samples that only one side has are listed and not
/// scored; --strict makes them an error, as most official scripts do.
#[derive(clap::Args)]
#[command(after_long_help = FORMATS)]
pub(super) struct Args {
    #[command(flatten)]
    run: run::RunArgs,
    /// What the predictions are, or which questions are asked
    #[arg(long)]
    task: Option<Task>,
    /// Whose files and rules; default: the first of the task, with a model `schema`
    #[arg(long)]
    format: Option<Format>,
    /// File or folder of predictions, to be scored without a model
    #[arg(long)]
    predictions: Option<PathBuf>,
    /// File or folder of the ground truth; files of multiple choice carry it themselves
    #[arg(long)]
    ground_truth: Option<PathBuf>,
    /// Answers of next-gqa, {"VIDEO_QID": {"answer": 3, "prediction": 3}}, for Acc@GQA
    #[arg(long)]
    answers: Option<PathBuf>,
    /// Expressions of ref-youtube-vos in PNG folders: meta_expressions.json
    #[arg(long)]
    expressions: Option<PathBuf>,
    /// Names of the sequences or videos to score, one per line; default: all folders
    #[arg(long)]
    sequences: Option<PathBuf>,
    /// IoU thresholds of charades-sta and refcoco
    #[arg(long, value_delimiter = ',')]
    iou: Vec<f64>,
    /// Windows per query that may hit, charades-sta
    #[arg(long, value_delimiter = ',', default_value = "1")]
    recall_at: Vec<usize>,
    /// next-gqa predictions are shares of the video's length
    #[arg(long)]
    relative: bool,
    /// How options are read out of answers; default: the format's rule
    #[arg(long)]
    rule: Option<ChoiceRule>,
    /// Contour tolerance in pixels instead of 0.008 of the diagonal, davis and ref-youtube-vos
    #[arg(long)]
    contour_pixels: Option<usize>,
    /// Every sample must be on both sides, and every field known
    #[arg(long)]
    strict: bool,
    /// Empty and reversed answers
    #[arg(long, default_value = "refuse")]
    unusable: Unusable,
    /// Skip and list rows that cannot be read, instead of stopping at the first
    #[arg(long)]
    skip_bad_rows: bool,
    /// Longest row in MiB
    #[arg(long, default_value_t = 64)]
    max_row_mib: usize,
    /// Also print every object, sequence or group
    #[arg(long)]
    each: bool,
    /// Write scores and protocol to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare the scores with this JSON (an official result, or one of --json); exit 1 on any
    /// difference
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
}

const FORMATS: &str = r#"Formats (JSON lines: one object per line):
  qvhighlights     predictions {"qid": 1, "pred_relevant_windows": [[start, end, score], ..],
                   "pred_saliency_scores": [..]}, ground truth {"qid": 1, "duration": 150,
                   "relevant_windows": [[start, end], ..], "relevant_clip_ids": [..],
                   "saliency_scores": [[a, b, c], ..]}; seconds, best window first
  charades-sta     the same; scores of windows and saliency may be left out
  next-gqa         JSON: ground truth {"VIDEO": {"duration": s, "location": {"QID": [[s, e]]}}},
                   predictions {"VIDEO_QID": [s, e]}
  davis            PNG folders SEQUENCE/00000.png with object numbers, or JSON lines
                   {"video": "v", "object": 1, "masks": [{"size": [h, w], "counts": ".."}, ..]};
                   first and last frame are not scored
  ref-youtube-vos  PNG folders VIDEO/EXPRESSION/00000.png, or JSON lines as above with
                   "expression"; a null mask in the ground truth is a frame not annotated
  lasot            folders: predictions SEQUENCE.txt, ground truth SEQUENCE/groundtruth.txt with
                   full_occlusion.txt and out_of_view.txt; rows x,y,w,h in pixels
  got-10k          folders: predictions SEQUENCE/SEQUENCE_001.txt (or SEQUENCE.txt), ground truth
                   SEQUENCE/groundtruth.txt with cover.label and meta_info.ini
  refcoco          {"id": 1, "box": [x0, y0, x1, y1], "split": "testA"}; null for no answer
  mvbench          {"id": 1, "task_type": "Action Order", "pred": "(A)", "gt": "(A) Ran."}, or the
                   JSON of its script; no ground truth file
  video-mme        the JSON of its script: [{"video_id": .., "duration": "short", "questions": [..]}]

With a model, --format also takes schema (this project's own rows), mlvu, perception-test, mmiu,
seed-bench-2, refcoco-coco-style, refcoco-jsonl, refcoco-lmms, mevis, activitynet-captions, tacos
and sa-v; `tpo data convert --help` says what their files are. Answers of MLVU's script are scored
as mvbench with --rule mlvu.

Examples:
  tpo evaluate --preset mini --synthetic 20 --out runs/mini
  tpo evaluate --model VideoChat-TPO --format mvbench --data MVBench/json --media MVBench/video \
               --out runs/mvbench
  tpo evaluate --task temporal --format qvhighlights --predictions val_preds.jsonl \
               --ground-truth highlight_val_release.jsonl --strict --json scores.json
  tpo evaluate --task mask --format davis --predictions results --ground-truth DAVIS/Annotations/480p
  tpo evaluate --task multiple-choice --predictions mvbench.jsonl

Exit code: 0 scored, 1 differs from --expect or no question was answered, 2 could not be scored or
run."#;

impl Args {
    fn reading(&self) -> ReadOptions {
        ReadOptions {
            max_line_bytes: self.max_row_mib.saturating_mul(1 << 20),
            skip_bad_rows: self.skip_bad_rows,
            deny_unknown_fields: self.strict,
        }
    }

    /// Options that are given and mean nothing when a model answers, each with the reason.
    fn without_model(&self) -> Vec<String> {
        let files = "is about files of predictions, and a model answers itself";
        let given = [
            ("--predictions", self.predictions.is_some(), files),
            ("--ground-truth", self.ground_truth.is_some(), files),
            ("--skip-bad-rows", self.skip_bad_rows, files),
            ("--each", self.each, files),
            (
                "--json",
                self.json.is_some(),
                "is not needed: scores and protocol are in results.json of --out",
            ),
            (
                "--expect",
                self.expect.is_some(),
                "compares scores of files of predictions: score the folder `submission` of --out with \
                 --predictions and --expect",
            ),
            (
                "--limit",
                self.run.limits_the_world(),
                "counts rows of --data; how many clips are asked about is the number of --synthetic",
            ),
        ];
        let given = given.into_iter().filter(|(_, given, _)| *given);
        given
            .map(|(name, _, why)| format!("{name} {why}"))
            .collect()
    }

    fn predictions(&self) -> &Path {
        self.predictions.as_deref().unwrap_or(Path::new(""))
    }

    fn truth(&self) -> Outcome<&Path> {
        let truth = self.ground_truth.as_deref();
        Ok(truth.ok_or("this format needs --ground-truth")?)
    }

    /// Predictions and ground truth in JSON lines.
    fn tables<P: Record, T: Record>(&self) -> Outcome<(Table<P>, Table<T>)> {
        let truth = self.truth()?;
        Ok((self.table(self.predictions())?, self.table(truth)?))
    }

    /// Reads JSON lines.
    fn table<T: Record>(&self, path: &Path) -> Outcome<Table<T>> {
        let file = File::open(path).map_err(Error::file(path))?;
        let bytes = file.metadata().map_err(Error::file(path))?.len();
        let file = progress(bytes, "reading").wrap_read(file);
        let file = BufReader::with_capacity(1 << 16, file);
        let name = path.display().to_string();
        Ok(Table::from_reader(file, &name, &self.reading())?)
    }

    /// Scores what has a result; what has none is listed, under --strict refused. `wanted` are
    /// names of sequences with their results, of which `score` makes the scores of one or more
    /// objects.
    fn each_result<R, T>(
        &self,
        wanted: impl IntoIterator<Item = (String, Option<R>)>,
        hint: &str,
        mut score: impl FnMut(String, R) -> Outcome<Vec<T>>,
    ) -> Outcome<(Vec<T>, Matched)> {
        let mut found = Vec::new();
        let mut matched = Matched::default();
        for (name, result) in wanted {
            match result {
                Some(result) => found.push((name, result)),
                None => matched.without_prediction.push(name),
            }
        }
        matched.matched = found.len();
        let (predictions, truth) = (self.predictions().display(), self.truth()?.display());
        if self.strict {
            matched.require_complete(&predictions.to_string(), &truth.to_string())?;
        }
        if found.is_empty() {
            let why = format!("{predictions}: no result of any sequence of {truth}{hint}");
            return Err(why.into());
        }
        let bar = progress(found.len() as u64, "scoring");
        let mut all = Vec::new();
        for (name, result) in found {
            all.extend(score(name, result)?);
            bar.inc(1);
        }
        matched.matched = all.len();
        Ok((all, matched))
    }
}

/// A bar that goes when it is dropped.
fn progress(steps: u64, what: &'static str) -> ProgressBar {
    let bar = bar("{msg} {wide_bar} {percent}% {eta}").with_message(what);
    bar.set_length(steps);
    bar.with_finish(ProgressFinish::AndClear)
}

impl Format {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|v| v.get_name().to_string())
            .unwrap_or_default()
    }
}

fn score(args: &Args) -> Outcome<(Format, Scored)> {
    let (Some(task), Some(_)) = (args.task, &args.predictions) else {
        let why = "give --task and --predictions to score a file, or --model, --preset or \
                   --checkpoint to run a model; see --help";
        return Err(why.into());
    };
    let format = args.format.unwrap_or(match task {
        Task::Temporal => Format::Qvhighlights,
        Task::Gqa => Format::NextGqa,
        Task::Mask => Format::Davis,
        Task::Track => Format::Lasot,
        Task::Region => Format::Refcoco,
        Task::MultipleChoice => Format::Mvbench,
        Task::Text | Task::Own => Format::Schema,
    });
    let scored = match (task, format) {
        (Task::Temporal, Format::Qvhighlights) => temporal::qvhighlights(args)?,
        (Task::Temporal, Format::CharadesSta) => temporal::charades(args)?,
        (Task::Gqa, Format::NextGqa) => temporal::next_gqa(args)?,
        (Task::Mask, Format::Davis | Format::RefYoutubeVos) => mask::vos(args, format)?,
        (Task::Track, Format::Lasot) => track::lasot(args)?,
        (Task::Track, Format::Got10k) => track::got10k(args)?,
        (Task::Region, Format::Refcoco) => region::boxes(args)?,
        (Task::MultipleChoice, Format::Mvbench) => multiple_choice::mvbench(args)?,
        (Task::MultipleChoice, Format::VideoMme) => multiple_choice::video_mme(args)?,
        (Task::Text | Task::Own, _) => {
            let why = "there is no format of predictions for --task text and own; they are asked of a \
                       model: give --model, --preset or --checkpoint in place of --predictions";
            return Err(why.into());
        }
        (task, format) => {
            let task = task.to_possible_value();
            let task = task.as_ref().map_or("?", |t| t.get_name());
            let why = format!("--task {task} has no format {}; see --help", format.name());
            return Err(why.into());
        }
    };
    Ok((format, scored))
}

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    if args.run.has_model() {
        let ignored = args.without_model();
        if ignored.is_empty() {
            return run::run::<H>(&args);
        }
        return Err(ignored.join("; ").into());
    }
    let (format, scored) = score(&args)?;
    scored.print(args.each);
    let truth = args.ground_truth.as_deref();
    let document = scored.document(&format.name(), args.predictions(), truth);
    if let Some(path) = &args.json {
        let mut file = create(path)?;
        serde_json::to_writer_pretty(&mut file, &document)?;
        writeln!(file)?;
        file.flush()?;
    }
    let Some(expected) = &args.expect else {
        return Ok(End::Fine);
    };
    let differences = outcome::differences(&document["scores"], expected)?;
    if differences.is_empty() {
        println!("equal to {}", expected.display());
    }
    for difference in &differences {
        eprintln!("differs: {difference}");
    }
    Ok(End::fine_if(differences.is_empty()))
}
