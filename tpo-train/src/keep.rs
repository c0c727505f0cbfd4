//! A run's directory: recipe, checkpoints and logs, kept up by the trainer's hooks.
//!
//! ```text
//! runs/heads/
//!   recipe.toml            the resolved recipe
//!   checkpoints/           see `checkpoint`
//!   metrics.jsonl          see `observe`
//!   tensorboard/
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use burn::module::Module;
use tpo_core::weights::Checkpoint;

use crate::checkpoint::{CheckpointStore, Retention, SavedCheckpoint, files};
use crate::error::{Result, TrainError};
use crate::names::HeadNames;
use crate::observe::{RunLog, StageLengths, StepRecord};
use crate::recipe::{Change, Recipe, SavedWeights};
use crate::stage::StageLength;
use crate::trainer::{Hooks, StepReport, TrainEvent, TrainState};

/// Folder of the checkpoints in a run's directory.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Keeps a run: give it to [`train_plan`](crate::trainer::train_plan) as hooks.
///
/// Evaluation is not its business; join it with hooks that evaluate: `(evaluation, run)`.
#[derive(Debug)]
pub struct RunKeeper {
    recipe: Recipe,
    recipe_text: String,
    store: CheckpointStore,
    log: RunLog,
    /// Per stage the paths that have learnt by its end; empty when all weights are kept.
    learnt: Vec<BTreeSet<String>>,
    /// A stage that began and has not made a step yet.
    pending: Option<(String, u64, u64)>,
    /// Step of the run and value of the last evaluation.
    score: Option<(u64, f64)>,
    last: Option<StepReport>,
}

/// Where a run goes on.
#[derive(Debug)]
pub struct Resumed<M> {
    /// The model with the weights of that moment.
    pub model: M,
    /// Everything else, for the trainer.
    pub state: TrainState,
    /// The checkpoint.
    pub checkpoint: SavedCheckpoint,
    /// Changes of the recipe since then; none of them changes what is learnt.
    pub changes: Vec<Change>,
}

impl RunKeeper {
    /// Starts a run in `dir`. `model` has the weights it starts from; `start` is the checkpoint
    /// that some of them are from, so that they are kept too. `bars` draws a progress bar.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when there is a run already; [`TrainError::Groups`] when a stage
    /// does not fit the model; [`TrainError::Io`].
    pub fn create<M: Module>(
        dir: impl AsRef<Path>,
        recipe: &Recipe,
        model: &M,
        names: &HeadNames,
        start: Option<&SavedCheckpoint>,
        bars: bool,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let store = CheckpointStore::new(dir.join(CHECKPOINTS_DIR), Retention::ALL);
        if let Some(found) = store.newest()?.0 {
            return Err(TrainError::Checkpoint {
                path: found.dir().into(),
                why: "there is a run here already; resume it, or choose another directory".into(),
            });
        }
        Self::open(dir, recipe, model, names, start, None, bars)
    }

    /// Takes up the run in `dir` at its newest whole checkpoint; `None` when there is none yet.
    ///
    /// `model` is what the recipe names, with the weights that no stage trains. What
    /// [`CheckpointStore::newest`] passes over is written to the log.
    ///
    /// # Errors
    /// [`TrainError::ChangedRecipe`] when the recipe would make it another run;
    /// [`TrainError::Checkpoint`] and [`TrainError::Weights`] when it does not fit the model.
    pub fn resume<M: Module>(
        dir: impl AsRef<Path>,
        recipe: &Recipe,
        model: M,
        names: &HeadNames,
        bars: bool,
    ) -> Result<Option<(Self, Resumed<M>)>> {
        let dir = dir.as_ref();
        let store = CheckpointStore::new(dir.join(CHECKPOINTS_DIR), Retention::ALL);
        let (found, skipped) = store.newest()?;
        for skipped in &skipped {
            tracing::warn!(dir = %skipped.dir.display(), error = %skipped.error, "passed over");
        }
        let Some(checkpoint) = found else {
            return Ok(None);
        };
        let mut state: TrainState = checkpoint.json(files::STATE)?;
        let changes = checkpoint.check_recipe(recipe, state.stage_index)?;
        state.optimizer.tensors = checkpoint.tensors(files::OPTIMIZER)?;
        let step = state.run_step;
        let keeper = Self::open(
            dir,
            recipe,
            &model,
            names,
            Some(&checkpoint),
            Some(step),
            bars,
        )?;
        let stage = state.stage_index;
        let model = checkpoint.load_module(files::WEIGHTS, model, &|p| keeper.keeps(stage, p))?;
        let resumed = Resumed {
            model,
            state,
            checkpoint,
            changes,
        };
        Ok(Some((keeper, resumed)))
    }

    fn open<M: Module>(
        dir: &Path,
        recipe: &Recipe,
        model: &M,
        names: &HeadNames,
        from: Option<&SavedCheckpoint>,
        resumed_at: Option<u64>,
        bars: bool,
    ) -> Result<Self> {
        let learnt = match recipe.checkpoints.weights {
            SavedWeights::All => Vec::new(),
            SavedWeights::Trained => learnt(recipe, model, names, from)?,
        };
        std::fs::create_dir_all(dir).map_err(TrainError::io("creating", dir))?;
        let recipe_text = recipe.to_toml()?;
        let path = dir.join(files::RECIPE);
        std::fs::write(&path, &recipe_text).map_err(TrainError::io("writing", &path))?;
        Ok(Self {
            store: CheckpointStore::new(dir.join(CHECKPOINTS_DIR), (&recipe.checkpoints).into()),
            log: RunLog::open(dir, &recipe.logging, resumed_at, bars)?,
            recipe: recipe.clone(),
            recipe_text,
            learnt,
            pending: None,
            score: None,
            last: None,
        })
    }

    /// The run's logs.
    pub fn log(&self) -> &RunLog {
        &self.log
    }

    /// The run's checkpoints.
    pub fn store(&self) -> &CheckpointStore {
        &self.store
    }

    /// Whether checkpoints of that stage hold the parameter at `path`.
    fn keeps(&self, stage: usize, path: &str) -> bool {
        match self.learnt.get(stage).or(self.learnt.last()) {
            Some(learnt) => learnt.contains(path),
            None => true,
        }
    }

    fn record(&self, report: &StepReport) -> StepRecord {
        let per_epoch = steps_per_epoch(report);
        let done = report.step.saturating_sub(1);
        StepRecord {
            step: report.run_step,
            stage: report.stage.clone(),
            stage_step: report.step,
            epoch: done / per_epoch,
            epoch_step: done % per_epoch + 1,
            samples: report.stage_samples,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |d| d.as_secs_f64()),
            values: Default::default(),
        }
    }
}

/// Per stage everything that has learnt by its end.
fn learnt<M: Module>(
    recipe: &Recipe,
    model: &M,
    names: &HeadNames,
    from: Option<&SavedCheckpoint>,
) -> Result<Vec<BTreeSet<String>>> {
    let mut all = BTreeSet::new();
    if let Some(from) = from {
        let weights = Checkpoint::open(from.dir().join(files::WEIGHTS))?;
        all.extend(weights.tensors().map(|t| t.key.clone()));
    }
    let mut stages = Vec::new();
    for stage in &recipe.stages {
        let groups = stage.resolve_named(model, names)?;
        all.extend(groups.trainable().map(|p| p.path.clone()));
        stages.push(all.clone());
    }
    Ok(stages)
}

fn steps_per_epoch(report: &StepReport) -> u64 {
    // `epoch` is steps divided by this number.
    ((report.step as f64 / report.epoch.max(1e-9)).round() as u64).max(1)
}

impl<M: Module> Hooks<M> for RunKeeper {
    fn event(&mut self, event: &TrainEvent) -> Result<()> {
        match event {
            TrainEvent::StageStarted {
                stage,
                step,
                total_steps,
                ..
            } => self.pending = Some((stage.clone(), *step, *total_steps)),
            TrainEvent::StepFinished(report) => {
                if let Some((stage, done, steps)) = self.pending.take() {
                    let steps_per_epoch = steps_per_epoch(report).min(steps.max(1));
                    let length = self.recipe.stages.iter().find(|s| s.name == stage);
                    let epochs = match length.map(|s| s.length) {
                        Some(StageLength::Epochs(n)) => n,
                        _ => steps.div_ceil(steps_per_epoch),
                    };
                    let lengths = StageLengths {
                        steps,
                        steps_per_epoch,
                        epochs,
                        done,
                    };
                    self.log.stage(&stage, lengths);
                }
                let mut record = self.record(report);
                record.values = step_values(report);
                self.log.step(&record)?;
                self.last = Some(report.clone());
            }
            TrainEvent::Evaluated { metrics, .. } => {
                let Some(report) = self.last.clone() else {
                    return Ok(());
                };
                let mut record = self.record(&report);
                for (name, value) in metrics {
                    let name = match name.starts_with("eval") {
                        true => name.clone(),
                        false => format!("eval/{name}"),
                    };
                    record.values.insert(name, *value);
                }
                let best = self.recipe.checkpoints.keep_best.as_ref();
                let value = best.and_then(|b| record.values.get(&b.metric));
                self.score = value.map(|v| (report.run_step, *v));
                self.log.evaluation(&record)?;
            }
            TrainEvent::StageFinished { stage, step } => {
                self.log.finish();
                self.log.line(&format!("{stage}: {step} steps done"));
            }
            _ => {}
        }
        Ok(())
    }

    fn checkpoint(&mut self, model: &M, state: TrainState, last: bool) -> Result<()> {
        let score = self.score.filter(|(step, _)| *step == state.run_step);
        let mut draft = self
            .store
            .begin(state.run_step, &state.stage)?
            .stage_end(last)
            .score(score.map(|(_, value)| value));
        draft.bytes(files::RECIPE, self.recipe_text.as_bytes())?;
        draft.module(files::WEIGHTS, model, &|path| {
            self.keeps(state.stage_index, path)
        })?;
        draft.json(files::STATE, &state)?;
        draft.tensors(files::OPTIMIZER, state.optimizer.tensors)?;
        draft.commit()?;
        Ok(())
    }
}

/// Everything a step has to say, by name.
fn step_values(report: &StepReport) -> std::collections::BTreeMap<String, f64> {
    let mut values = std::collections::BTreeMap::from([
        ("loss".to_string(), report.loss),
        ("grad_norm".to_string(), report.grad_norm),
        ("clip_factor".to_string(), report.clip_factor),
        (
            "samples_per_second".to_string(),
            report.samples_per_second(),
        ),
        ("seconds".to_string(), report.seconds),
        ("data_seconds".to_string(), report.data_seconds),
    ]);
    for term in &report.terms {
        values.insert(format!("loss/{}", term.name), term.value);
        // The sum of a head's terms with their weights.
        if let Some((head, _)) = term.name.split_once('/') {
            *values.entry(format!("loss/{head}")).or_default() += term.value * term.weight;
        }
    }
    for (group, rate) in &report.learning_rates {
        values.insert(format!("lr/{group}"), *rate);
    }
    for (task, count) in &report.tasks {
        values.insert(format!("samples/{task}"), *count as f64);
    }
    values
}

/// The checkpoint at `path`: one itself, or the newest of a run or of a folder of checkpoints.
///
/// # Errors
/// [`TrainError::Checkpoint`] when there is none.
pub fn find_checkpoint(path: impl AsRef<Path>) -> Result<SavedCheckpoint> {
    let path = path.as_ref();
    if path.join(crate::checkpoint::MANIFEST_FILE).exists() {
        return SavedCheckpoint::open(path);
    }
    let inner = path.join(CHECKPOINTS_DIR);
    let dir: PathBuf = if inner.is_dir() { inner } else { path.into() };
    let (found, skipped) = CheckpointStore::new(&dir, Retention::ALL).newest()?;
    found.ok_or_else(|| TrainError::Checkpoint {
        path: dir,
        why: match skipped.first() {
            None => "holds no checkpoint".into(),
            Some(first) => format!("holds no whole checkpoint: {}", first.error),
        },
    })
}

/// Draws every parameter of `module` that has no value yet, in the order of its fields.
///
/// Burn draws a parameter when it is first used, so that two programs which use them in another
/// order get other values from one seed. A run that is resumed must not.
pub fn materialise<M: Module>(module: &M) {
    use burn::module::{ModuleVisitor, Param};
    use burn::tensor::{Bool, Int, Tensor};

    struct Toucher;
    impl ModuleVisitor for Toucher {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let _ = param.val();
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            let _ = param.val();
        }
        fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
            let _ = param.val();
        }
    }
    module.visit(&mut Toucher);
}
