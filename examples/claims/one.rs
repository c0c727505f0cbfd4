//! One run of a study: train, export, ask, score.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tpo::data::synthetic::{Split, WorldConfig};
use tpo::evaluation::{
    AnswerForm, ItemKind, Plan, PlanOptions, Results, Route, RunOptions as AskOptions, RunOutcome,
    SessionAnswerer, WorldSpec, run,
};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::train::trainer::RunEnd;
use tpo::training::{RunOptions, run_recipe};

use super::Outcome;
use super::study::{Study, Variant};

/// File with the scores of a run, in its folder. A run that has it is done.
pub const SCORES_FILE: &str = "scores.json";
/// Kinds of questions in words are scored under this name and a slash.
pub const WORDS: &str = "conversation";

/// Scores of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// Name of the variant.
    pub variant: String,
    /// Seed of its training.
    pub seed: u64,
    /// Steps of its training, without those of the model it starts from.
    pub steps: u64,
    /// Hours its training took on this machine.
    pub hours: f64,
    /// Values by `task/score` or `conversation/kind`, in percent.
    pub values: BTreeMap<String, f64>,
}

/// Folder of a run.
pub fn folder(out: &Path, name: &str, seed: u64) -> PathBuf {
    out.join(format!("{name}-{seed}"))
}

fn train(
    recipe: &Recipe,
    dir: &Path,
    device: &Device,
    quiet: bool,
) -> Outcome<tpo::training::RunSummary> {
    let options = RunOptions {
        resume: dir.join("recipe.toml").exists(),
        bars: !quiet,
        ..RunOptions::new(dir, device)
    };
    let summary = run_recipe(recipe, &options)?;
    match summary.end {
        RunEnd::Stopped => Err("stopped; the same command goes on".into()),
        _ => Ok(summary),
    }
}

/// File that is locked while a process is at a run.
const LOCK_FILE: &str = ".lock";

/// Runs a variant with a seed, or reads what an earlier run found. `None` when another process is
/// at it.
pub fn one(
    study: &Study,
    variant: &Variant,
    seed: u64,
    out: &Path,
    device: &Device,
    quiet: bool,
) -> Outcome<Option<Scores>> {
    let dir = folder(out, &variant.name, seed);
    let scores = dir.join(SCORES_FILE);
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let lock = dir.join(LOCK_FILE);
    let lock = File::create(&lock).map_err(|e| format!("{}: {e}", lock.display()))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        return Ok(None);
    }
    if scores.exists() {
        let text = std::fs::read(&scores).map_err(|e| format!("{}: {e}", scores.display()))?;
        return Ok(Some(serde_json::from_slice(&text)?));
    }
    let mut set = variant.set.clone();
    set.push(format!("seed={seed}"));
    set.push(format!("model.start={}", study.start.display()));
    let recipe = Recipe::open(study.folder.join(&variant.recipe), &set)?;
    let start = std::time::Instant::now();
    let summary = train(&recipe, &dir, device, quiet)?;
    let hours = start.elapsed().as_secs_f64() / 3600.0;
    let built = summary.model;
    let options = SessionOptions {
        // Coordinates in words are long.
        max_new_tokens: if variant.textual { 400 } else { 32 },
        ..SessionOptions::default()
    };
    let mut session = Session::new(built.model, built.config, built.tokenizer, device, options)?;
    let results = ask(study, variant, seed, &mut session, &dir)?;
    let steps = tpo::train::observe::read_metrics(dir.join(tpo::train::observe::METRICS_FILE))?;
    let found = Scores {
        variant: variant.name.clone(),
        seed,
        steps: steps.iter().map(|r| r.step).max().unwrap_or(0),
        hours,
        values: flat(&results),
    };
    let text = serde_json::to_string_pretty(&found)?;
    // A run that has its scores is done, so they come whole or not at all.
    let draft = dir.join("scores.json.tmp");
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, &scores))
        .map_err(|e| format!("{}: {e}", scores.display()))?;
    Ok(Some(found))
}

fn ask(
    study: &Study,
    variant: &Variant,
    seed: u64,
    session: &mut Session,
    dir: &Path,
) -> Outcome<Results> {
    let mut kinds = vec![ItemKind::Text];
    for head in &variant.heads {
        kinds.push(match head.as_str() {
            "region" => ItemKind::Region,
            "temporal" => ItemKind::Temporal,
            "mask" => ItemKind::Mask,
            other => return Err(format!("there is no head `{other}`").into()),
        });
    }
    let form = if variant.textual {
        AnswerForm::Text
    } else {
        AnswerForm::Heads
    };
    let spec = WorldSpec {
        world: WorldConfig::default(),
        seed: study.evaluation.world,
        split: Split::HeldOut,
        clips: study.evaluation.clips,
        choices: false,
    };
    let options = PlanOptions {
        kinds,
        route: Route::Model,
        answers: form,
        ..PlanOptions::default()
    };
    let plan = Plan::synthetic(&spec, options)?;
    let name = format!("{}-{seed}", variant.name);
    let mut model = SessionAnswerer::new(session, name, Route::Model, form);
    let dir = dir.join("held_out");
    match run(&plan, &mut model, dir, &AskOptions::default(), &mut |_| {
        true
    })? {
        RunOutcome::Done(results) => Ok(*results),
        RunOutcome::Stopped(_) => Err("the questions were not all asked".into()),
    }
}

/// Scores as percentages by name.
fn flat(results: &Results) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for task in &results.scores {
        for score in &task.scores {
            if let Some(value) = score.value {
                values.insert(format!("{}/{}", task.task, score.name), value);
            }
        }
        if task.task == "text" {
            for group in &task.groups {
                if let Some(value) = group.scores.first().and_then(|s| s.value) {
                    values.insert(format!("{WORDS}/{}", group.group), value);
                }
            }
        }
    }
    values
}
