//! Asking every question of a benchmark, to be taken up again where it stopped.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use tpo_data::readers::Format;

use super::answer::AnswerForm;
use super::answerer::Answerer;
use super::item::{Item, ItemKind};
use super::log::{PredictionRow, RowLog};
use super::prompts::Prompts;
use super::protocol::{self, DataIdentity, Protocol, Route, VERSION, differences};
use super::score::{Rules, TaskScores, score};
use super::side_by_side::Asking;
use super::source::{DataFile, Items};
use super::world::WorldSpec;
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::session::Reply;

/// The protocol of a run, in its directory.
pub const PROTOCOL_FILE: &str = "protocol.json";
/// Answers, one JSON line per question.
pub const PREDICTIONS_FILE: &str = "predictions.jsonl";
/// Scores with their protocol.
pub const RESULTS_FILE: &str = "results.json";
/// Predictions and ground truth in the formats of the official evaluators.
pub const SUBMISSION_DIR: &str = "submission";

/// What is asked, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The questions.
    pub items: Vec<Item>,
    /// Rows of the data that could not become questions.
    pub skipped: Vec<String>,
    /// Wordings.
    pub prompts: Prompts,
    /// Who calls heads.
    pub route: Route,
    /// Where coordinates are read.
    pub answers: AnswerForm,
    /// How answers are scored where benchmarks do it.
    pub rules: Rules,
    kinds: Vec<ItemKind>,
    data: DataIdentity,
}

/// What is left open by the data.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Kinds of questions to ask; all when empty.
    pub kinds: Vec<ItemKind>,
    /// Rows (or clips) of the data, from the first.
    pub limit: Option<usize>,
    /// Who calls heads.
    pub route: Route,
    /// Where coordinates are read.
    pub answers: AnswerForm,
    /// Wordings; `None` for the benchmark's own.
    pub prompts: Option<Prompts>,
}

impl Plan {
    /// The questions of a file.
    ///
    /// # Errors
    /// As [`DataFile::items`].
    pub fn from_file(file: &DataFile, options: PlanOptions) -> Result<Self> {
        let prompts = options.prompts.clone().unwrap_or(match file.format {
            Some(Format::MvBench | Format::NextGqa | Format::VideoMme) => Prompts::published(),
            Some(Format::Mlvu) => Prompts::mlvu(),
            Some(Format::PerceptionTest | Format::Mmiu | Format::SeedBench2) => Prompts::direct(),
            _ => Prompts::plain(),
        });
        let found = file.items(&prompts, &options.kinds, options.limit)?;
        let mut source = serde_json::Map::new();
        let files = [Some(&file.path), file.convert.second.as_ref()];
        for path in files.into_iter().flatten().filter(|p| p.is_file()) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let hash = crate::features::hash_file(path)?.to_hex().to_string();
            source.insert(name.unwrap_or_default(), hash.into());
        }
        let name = file.format.map_or("schema", Format::name);
        let mut plan = Self::new(found, name, source.into(), prompts, options);
        plan.rules = Rules(file.format);
        Ok(plan)
    }

    /// Questions about clips of the synthetic world.
    ///
    /// # Errors
    /// As [`WorldSpec::items`].
    pub fn synthetic(spec: &WorldSpec, options: PlanOptions) -> Result<Self> {
        let prompts = options.prompts.clone().unwrap_or_else(Prompts::plain);
        let found = Items {
            items: spec.items(&prompts, &options.kinds)?,
            skipped: Vec::new(),
        };
        let source = json!({
            "world": spec.world,
            "seed": spec.seed,
            "split": spec.split,
            "clips": spec.clips,
            "choices": spec.choices,
        });
        Ok(Self::new(found, "synthetic", source, prompts, options))
    }

    fn new(
        found: Items,
        format: &str,
        source: Value,
        prompts: Prompts,
        options: PlanOptions,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        found.items.iter().for_each(|i| i.fingerprint(&mut hasher));
        Self {
            data: DataIdentity {
                format: format.into(),
                source,
                questions: found.items.len(),
                blake3: hasher.finalize().to_hex().to_string(),
            },
            items: found.items,
            skipped: found.skipped,
            prompts,
            route: options.route,
            answers: options.answers,
            rules: Rules(None),
            kinds: options.kinds,
        }
    }

    /// Why the head that a question is about could not answer, if that is the answer's place.
    pub(super) fn unanswered(&self, item: &Item, reply: &Reply) -> Option<String> {
        let task = item.ask.task.as_deref()?;
        let answered = reply.tasks.iter().any(|t| t.task == task);
        if self.answers == AnswerForm::Text || answered {
            return None;
        }
        let call = reply.unanswered.iter().find(|u| u.task == task)?;
        Some(call.why.clone())
    }

    fn protocol(&self, answerer: &mut dyn Answerer) -> Result<Protocol> {
        Ok(Protocol {
            program: env!("CARGO_PKG_VERSION").into(),
            version: VERSION,
            data: self.data.clone(),
            kinds: self.kinds.clone(),
            prompts: self.prompts.clone(),
            route: self.route,
            answers: self.answers,
            metrics: self
                .rules
                .describe(&self.items, |item| answerer.scores_itself(item)),
            model: answerer.identity()?,
        })
    }
}

/// How a run goes.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Questions that are answered at once, by default one. More do not change the answers beyond
    /// rounding, so this is not part of the protocol.
    pub batch: NonZeroUsize,
    /// Answerers that work at the same time, each on batches and threads of its own, by default one. They
    /// change nothing: the same questions are answered together, and rows come in the same order. An
    /// [`Answerer`] without [`another`](Answerer::another) stays alone.
    pub answerers: NonZeroUsize,
    /// Discard what the directory holds of an earlier run.
    pub restart: bool,
    /// Stop at the first question that cannot be asked or row that cannot be read.
    pub strict: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            batch: NonZeroUsize::MIN,
            answerers: NonZeroUsize::MIN,
            restart: false,
            strict: false,
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunProgress {
    /// Questions answered, those of earlier runs included.
    pub done: usize,
    /// Questions in all.
    pub total: usize,
    /// Questions answered by earlier runs.
    pub resumed: usize,
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The question.
    pub id: String,
    /// Why.
    pub why: String,
}

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// Everything that decides the numbers.
    pub protocol: Protocol,
    /// Scores by kind of question.
    pub scores: Vec<TaskScores>,
    /// Questions asked.
    pub questions: usize,
    /// Questions that could not be answered; they are not scored.
    pub failed: Vec<Failed>,
    /// Rows of the data that could not become questions.
    pub skipped: Vec<String>,
    /// What the model called in answers that nothing could be read from, because it was not the head of
    /// the question, and how often. Not in [`RESULTS_FILE`]: [`PREDICTIONS_FILE`] has it by question.
    #[serde(skip)]
    pub not_called: BTreeMap<String, usize>,
}

/// How a run ended.
#[derive(Debug)]
pub enum RunOutcome {
    /// Every question was asked.
    Done(Box<Results>),
    /// `progress` said stop; a further run continues here.
    Stopped(RunProgress),
}

/// Asks every question of `plan` and scores the answers. Everything is kept in `dir`:
/// [`PROTOCOL_FILE`], [`PREDICTIONS_FILE`] row by row, and at the end [`RESULTS_FILE`] and
/// [`SUBMISSION_DIR`].
///
/// A directory with an earlier run of the same protocol continues after its last whole row, once what
/// failed in it has been asked again; what comes out is, to the byte on the CPU, what an uninterrupted
/// run gives, where the same questions are answered together. `progress` hears where the run is before
/// the rows of every batch are written, and returns `false` to stop.
///
/// # Errors
/// [`Error::EvaluationProtocol`] when the directory holds a run of another protocol,
/// [`Error::EvaluationIo`], [`Error::Evaluation`] for a directory that is damaged or of something else, or, under
/// [`RunOptions::strict`], a question that cannot be asked; errors of the metrics.
pub fn run(
    plan: &Plan,
    answerer: &mut dyn Answerer,
    dir: impl AsRef<Path>,
    options: &RunOptions,
    progress: &mut dyn FnMut(RunProgress) -> bool,
) -> Result<RunOutcome> {
    let dir = dir.as_ref();
    if let (true, Some(first)) = (options.strict, plan.skipped.first()) {
        return Err(Error::Evaluation {
            path: dir.into(),
            why: format!(
                "{} rows of the data cannot be asked; first: {first}",
                plan.skipped.len()
            ),
        });
    }
    let protocol = plan.protocol(answerer)?;
    let mut log = open_run(dir, &protocol, plan, options.restart)?;
    let total = plan.items.len();
    // What failed is asked again: the file may be there by now.
    let open = log.unanswered(total);
    let resumed = total - open.len();
    let mut now = RunProgress {
        done: resumed,
        total,
        resumed,
    };
    let asking = Asking {
        plan,
        dir,
        batch: options.batch.get(),
        answerers: options.answerers,
    };
    let finished = asking.ask(&open, answerer, |rows_of| {
        for batch in open.chunks(asking.batch) {
            if !progress(now) {
                return Ok(false);
            }
            for (at, row) in batch.iter().zip(rows_of(batch)?) {
                if let (true, Some(why)) = (options.strict, &row.error) {
                    log.settle()?;
                    let (id, kind) = (&row.id, row.kind.name());
                    return Err(asking.error(format!("question `{id}` ({kind}): {why}")));
                }
                log.put(*at, row)?;
            }
            now.done += batch.len();
        }
        Ok(true)
    })?;
    if !finished {
        log.settle()?;
        return Ok(RunOutcome::Stopped(now));
    }
    log.settle()?;
    progress(now);
    let failed = log.rows.iter().filter_map(|row| {
        Some(Failed {
            id: row.id.clone(),
            why: row.error.clone()?,
        })
    });
    let failed = failed.collect();
    let scores = score(
        &plan.items,
        &log.rows,
        &plan.rules,
        plan.answers,
        &dir.join(SUBMISSION_DIR),
    )?;
    let results = Results {
        not_called: not_called(plan, &log.rows),
        protocol,
        scores,
        questions: total,
        failed,
        skipped: plan.skipped.clone(),
    };
    write_json(&dir.join(RESULTS_FILE), &results)?;
    Ok(RunOutcome::Done(Box::new(results)))
}

/// [`Results::not_called`].
fn not_called(plan: &Plan, rows: &[PredictionRow]) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    if plan.answers == AnswerForm::Text {
        return calls;
    }
    for (item, row) in plan.items.iter().zip(rows) {
        let asked = item.ask.task.as_ref();
        let missed = asked.is_some_and(|task| !row.called.contains(task));
        if missed && row.predicted.is_none() && row.error.is_none() {
            let called = match row.called.as_slice() {
                [] => "nothing".to_string(),
                tasks => tasks.join(" and "),
            };
            *calls.entry(called).or_default() += 1;
        }
    }
    calls
}

/// The log of the run in `dir`: of a new one, or of the one that is there if its protocol is the
/// same.
fn open_run(dir: &Path, protocol: &Protocol, plan: &Plan, restart: bool) -> Result<RowLog> {
    let io = Error::evaluation_io;
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let file = dir.join(PROTOCOL_FILE);
    let rows = dir.join(PREDICTIONS_FILE);
    if !file.exists() && !rows.exists() {
        // Of a run nothing else comes first; a file that begins with a dot may be half of the protocol.
        let names = std::fs::read_dir(dir).map_err(io(dir))?;
        let names = names.filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut names = names.map(|name| name.to_string_lossy().into_owned());
        if let Some(other) = names.find(|name| !name.starts_with('.')) {
            return Err(Error::Evaluation {
                path: dir.into(),
                why: format!(
                    "is no run of an evaluation: it holds `{other}`; give a new directory"
                ),
            });
        }
    }
    if restart {
        for path in [&rows, &file, &dir.join(RESULTS_FILE)] {
            if path.exists() {
                std::fs::remove_file(path).map_err(io(path))?;
            }
        }
    }
    if !file.exists() {
        if rows.exists() {
            return Err(Error::Evaluation {
                path: rows,
                why: format!(
                    "is there without {PROTOCOL_FILE}, so nobody knows how it came about; give \
                     another directory, or start over with --restart"
                ),
            });
        }
        write_json(&file, protocol)?;
        return RowLog::open(&rows, &plan.items);
    }
    let wrong = |e: serde_json::Error| Error::Evaluation {
        path: file.clone(),
        why: format!("is no protocol: {e}; start over with --restart"),
    };
    let bytes = std::fs::read(&file).map_err(io(&file))?;
    let before = protocol::upgrade(serde_json::from_slice(&bytes).map_err(wrong)?);
    // Through text, as the file went: numbers then are what they read as.
    let now = serde_json::to_string(protocol).map_err(wrong)?;
    let differences = differences(&before, &serde_json::from_str(&now).map_err(wrong)?);
    if !differences.is_empty() {
        return Err(Error::EvaluationProtocol {
            dir: dir.into(),
            differences,
        });
    }
    RowLog::open(&rows, &plan.items)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let written = write_whole(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    });
    written.map_err(Error::evaluation_io(path))
}
