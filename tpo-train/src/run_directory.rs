//! A run's directory: recipe, checkpoints and logs, kept up by the trainer's hooks.
//!
//! ```text
//! runs/heads/
//!   recipe.toml            the resolved recipe
//!   checkpoints/           see `checkpoint`
//!   metrics.jsonl          see `observe`
//!   tensorboard/
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use burn::module::Module;
use tpo_core::weights::Checkpoint;

use crate::adapters::{adapters_of, base_weights, factors};
use crate::before::Renaming;
use crate::checkpoint::{CheckpointStore, Retention, SavedCheckpoint, files};
use crate::error::{Result, TrainError};
use crate::observe::{RunLog, StageLengths, StepRecord};
use crate::recipe::{Change, Goal, Recipe, SavedWeights};
use crate::stage::StageLength;
use crate::trainer::{Hooks, StepReport, TrainEvent, TrainState};

/// Folder of the checkpoints in a run's directory.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Writes a run's directory: give it to [`train_plan`](crate::trainer::train_plan) as hooks.
///
/// Evaluation is not its business; join it with hooks that evaluate: `(evaluation, run)`.
#[derive(Debug)]
pub struct RunDirectory {
    recipe: Recipe,
    recipe_text: String,
    store: CheckpointStore,
    log: RunLog,
    /// Paths that are not what the recipe's model has, by the end of the last stage that was seen;
    /// `None` when all weights are kept.
    learnt: Option<BTreeSet<String>>,
    /// The first stage that is not in `learnt` yet.
    next_stage: usize,
    /// Layers with adapters and their ranks in the model that was seen last.
    adapters: BTreeMap<String, usize>,
    /// Step of the run and value of the last evaluation.
    score: Option<(u64, f64)>,
    /// Best score of all checkpoints.
    best: Option<f64>,
    /// The stage in which it was said that the value to choose by is missing.
    missing_in: Option<String>,
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

impl RunDirectory {
    /// Starts a run in `dir`. `model` has the weights it starts from; `start` is the checkpoint
    /// that some of them are from, so that they are kept too. `bars` draws a progress bar.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when there is a run already, whole or damaged, another process has
    /// begun one, or a recipe that is not a run's would be overwritten;
    /// [`TrainError::Groups`] when a stage does not fit the model; [`TrainError::Io`].
    pub fn create<M: Module>(
        dir: impl AsRef<Path>,
        recipe: &Recipe,
        model: &M,
        start: Option<&SavedCheckpoint>,
        bars: bool,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let store = CheckpointStore::new(dir.join(CHECKPOINTS_DIR), Retention::ALL);
        let (found, skipped) = store.newest()?;
        let refused = |path: &Path, why: &str| {
            Err(TrainError::Checkpoint {
                path: path.into(),
                why: why.into(),
            })
        };
        if found.is_some() || !skipped.is_empty() {
            return refused(
                dir,
                "there is a run here already; continue it with `--resume`, or choose another \
                 directory with `--out`",
            );
        }
        let path = dir.join(files::RECIPE);
        if path.exists() && !store.dir().exists() {
            return refused(
                &path,
                "is not of a run and would be overwritten; choose another directory with `--out`",
            );
        }
        for stage in recipe.stages.iter().take_while(|s| s.lora.is_none()) {
            stage.resolve(model)?;
        }
        Self::open(dir, recipe, model, start, None, bars)
    }

    /// Takes up the run in `dir` at its newest whole checkpoint; `None` when there is no checkpoint.
    ///
    /// `model` gets the place in the recipe of the stage at which the run goes on and builds what the
    /// recipe names, with the weights that no stage trains and the adapters of that stage
    /// ([`Stage::lora`](crate::Stage::lora)), whose values come from the checkpoint. What
    /// [`CheckpointStore::newest`] passes over is written to the log.
    ///
    /// # Errors
    /// [`TrainError::ChangedRecipe`] when the recipe would make it another run;
    /// [`TrainError::Checkpoint`] when no checkpoint that is there is whole, it and [`TrainError::Weights`] when it does not fit the model.
    pub fn resume<M: Module>(
        dir: impl AsRef<Path>,
        recipe: &Recipe,
        bars: bool,
        model: impl FnOnce(usize) -> Result<M>,
    ) -> Result<Option<(Self, Resumed<M>)>> {
        let dir = dir.as_ref();
        let store = CheckpointStore::new(dir.join(CHECKPOINTS_DIR), Retention::ALL);
        let (found, skipped) = store.newest()?;
        for skipped in &skipped {
            tracing::warn!(dir = %skipped.dir.display(), error = %skipped.error, "passed over");
        }
        let Some(checkpoint) = found else {
            if skipped.is_empty() {
                return Ok(None);
            }
            let damaged: Vec<String> = skipped.iter().map(|s| s.error.to_string()).collect();
            return Err(TrainError::Checkpoint {
                path: store.dir().into(),
                why: format!(
                    "holds no whole checkpoint to resume from: {}. Bring a whole one back, or start a \
                     new run in another directory (`--out`)",
                    damaged.join("; ")
                ),
            });
        };
        let mut state: TrainState = checkpoint.json(files::STATE)?;
        let changes = checkpoint.check_recipe(recipe, state.stage_index)?;
        let step = state.run_step;
        let model = model(state.stage_index)?;
        let renaming = Renaming::of(&model);
        let tensors = checkpoint.tensors(files::OPTIMIZER)?.into_iter();
        state.optimizer.tensors = tensors.map(|(key, t)| (renaming.key(&key), t)).collect();
        let steps = state.optimizer.steps.into_iter();
        state.optimizer.steps = steps.map(|(key, n)| (renaming.key(&key), n)).collect();
        let mut keeper = Self::open(dir, recipe, &model, Some(&checkpoint), Some(step), bars)?;
        keeper.next_stage = state.stage_index;
        keeper.learn(state.stage_index, &model)?;
        let model = checkpoint.load_module(files::WEIGHTS, model, &|p| keeper.keeps(p))?;
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
        from: Option<&SavedCheckpoint>,
        resumed_at: Option<u64>,
        bars: bool,
    ) -> Result<Self> {
        let learnt = match recipe.checkpoints.weights {
            SavedWeights::All => None,
            SavedWeights::Trained => Some(held(from, &Renaming::of(model))?),
        };
        let retention: Retention = (&recipe.checkpoints).into();
        let store = CheckpointStore::new(dir.join(CHECKPOINTS_DIR), retention);
        // Before anything is written: two processes in one run would mix their logs.
        store.claim()?;
        let recipe_text = recipe.to_toml()?;
        let path = dir.join(files::RECIPE);
        std::fs::write(&path, &recipe_text).map_err(TrainError::io("writing", &path))?;
        let best = match retention.best {
            Some(goal) => store.best(goal)?.and_then(|c| c.manifest().score),
            None => None,
        };
        Ok(Self {
            store,
            log: RunLog::open(dir, &recipe.logging, resumed_at, bars)?,
            recipe: recipe.clone(),
            recipe_text,
            learnt,
            next_stage: 0,
            adapters: adapters_of(model),
            score: None,
            best,
            missing_in: None,
            last: None,
        })
    }

    /// Whether checkpoints hold the parameter at `path`.
    fn keeps(&self, path: &str) -> bool {
        self.learnt.as_ref().is_none_or(|l| l.contains(path))
    }

    /// Adds what is learnt up to `stage`, in which `model` is.
    fn learn<M: Module>(&mut self, stage: usize, model: &M) -> Result<()> {
        let Some(learnt) = &mut self.learnt else {
            return Ok(());
        };
        if self.next_stage > stage {
            return Ok(());
        }
        for stage in self
            .recipe
            .stages
            .iter()
            .take(stage + 1)
            .skip(self.next_stage)
        {
            let groups = stage.resolve(model)?;
            learnt.extend(groups.trainable().map(|p| p.path.clone()));
        }
        self.next_stage = stage + 1;
        // Adapters that a stage changed are not those of the recipe's model, trained or not; and
        // where they gave way to others the weights have taken them up.
        let adapters = adapters_of(model);
        if adapters != self.adapters {
            learnt.extend(self.adapters.keys().flat_map(|layer| base_weights(layer)));
        }
        let mut until_now = self.recipe.stages.iter().take(stage + 1);
        if until_now.any(|s| s.lora.is_some()) {
            learnt.extend(adapters.keys().flat_map(|layer| factors(layer)));
        }
        self.adapters = adapters;
        Ok(())
    }

    fn record(&self, report: &StepReport) -> StepRecord {
        let accumulation = report.micro_batches.len() as u64;
        let (epoch, epoch_step) = epoch_of(report.step, accumulation, report.batches_per_epoch);
        StepRecord {
            step: report.run_step,
            stage: report.stage.clone(),
            stage_step: report.step,
            epoch,
            epoch_step,
            samples: report.stage_samples,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |d| d.as_secs_f64()),
            values: Default::default(),
        }
    }
}

/// Paths of the parameters that a checkpoint holds.
fn held(checkpoint: Option<&SavedCheckpoint>, renaming: &Renaming) -> Result<BTreeSet<String>> {
    let Some(checkpoint) = checkpoint else {
        return Ok(BTreeSet::new());
    };
    let weights = Checkpoint::open(checkpoint.dir().join(files::WEIGHTS))?;
    Ok(weights.tensors().map(|t| renaming.key(&t.key)).collect())
}

/// The epoch in which a step (from 1) began, from 0, and which of its steps it was, from 1. Where
/// epochs are not whole steps, a step belongs to the epoch of its first micro-batch.
fn epoch_of(step: u64, accumulation: u64, batches_per_epoch: u64) -> (u64, u64) {
    let (accumulation, batches) = (accumulation.max(1), batches_per_epoch.max(1));
    let before = step.saturating_sub(1);
    let epoch = before * accumulation / batches;
    let first = (epoch * batches).div_ceil(accumulation);
    (epoch, before - first + 1)
}

impl<M: Module> Hooks<M> for RunDirectory {
    fn event(&mut self, event: &TrainEvent) -> Result<()> {
        match event {
            TrainEvent::StageStarted {
                stage,
                step,
                total_steps,
                steps_per_epoch,
                ..
            } => {
                let steps = *total_steps;
                let steps_per_epoch = (*steps_per_epoch).min(steps.max(1));
                let length = self.recipe.stages.iter().find(|s| s.name == *stage);
                let epochs = match length.map(|s| s.length) {
                    Some(StageLength::Epochs(n)) => n,
                    _ => steps.div_ceil(steps_per_epoch),
                };
                let lengths = StageLengths {
                    steps,
                    steps_per_epoch,
                    epochs,
                    done: *step,
                };
                self.log.stage(stage, lengths);
            }
            TrainEvent::StepFinished(report) => {
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
                    let name = if name.starts_with("eval") {
                        name.clone()
                    } else {
                        format!("eval/{name}")
                    };
                    record.values.insert(name, *value);
                }
                self.score = None;
                if let Some(best) = &self.recipe.checkpoints.keep_best {
                    match record.values.get(&best.metric) {
                        Some(value) if value.is_finite() => {
                            self.score = Some((report.run_step, *value));
                        }
                        // In an early stage no head may answer yet.
                        _ if self.missing_in.as_ref() == Some(&report.stage)
                            || self.best.is_some()
                            || !self.recipe.is_last_evaluated(&report.stage) => {}
                        _ => self.log.line(&format!(
                            "`{}` of checkpoints.keep_best is not among what the evaluation \
                             found: {}",
                            best.metric,
                            record
                                .values
                                .iter()
                                .filter(|(_, v)| v.is_finite())
                                .map(|(n, _)| n.as_str())
                                .collect::<Vec<_>>()
                                .join(", ")
                        )),
                    }
                }
                if self.score.is_none() {
                    self.missing_in = Some(report.stage.clone());
                }
                self.log.evaluation(&record)?;
            }
            TrainEvent::StageFinished {
                stage,
                step,
                skipped,
            } => {
                self.log.finish();
                let skipped = skipped.as_ref().map_or(String::new(), |s| format!("; {s}"));
                self.log
                    .line(&format!("{stage}: {step} steps done{skipped}"));
            }
        }
        Ok(())
    }

    fn keep(&mut self) -> bool {
        let (Some(spec), Some((_, score))) = (&self.recipe.checkpoints.keep_best, self.score)
        else {
            return false;
        };
        self.best.is_none_or(|best| match spec.goal {
            Goal::Max => score > best,
            Goal::Min => score < best,
        })
    }

    fn checkpoint(&mut self, model: &M, state: &TrainState, last: bool) -> Result<()> {
        self.learn(state.stage_index, model)?;
        let better = Hooks::<M>::keep(self);
        let score = self.score.filter(|(step, _)| *step == state.run_step);
        let mut draft = self
            .store
            .begin(state.run_step, &state.stage)?
            .stage_end(last)
            .score(score.map(|(_, value)| value));
        draft.bytes(files::RECIPE, self.recipe_text.as_bytes())?;
        draft.module(files::WEIGHTS, model, &|path| self.keeps(path))?;
        draft.json(files::STATE, state)?;
        draft.tensors(files::OPTIMIZER, &state.optimizer.tensors)?;
        draft.commit()?;
        if let Some((_, value)) = score.filter(|_| better) {
            self.best = Some(value);
        }
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
    if report.skipped > 0 {
        values.insert("skipped".into(), report.skipped as f64);
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

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn what_is_there_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"
            name = "r"
            model = { preset = "mini" }
            [[stages]]
            name = "a"
            length = { steps = 10 }
            batch_size = 2
            groups = [{ name = "all", patterns = ["**"], learning_rate = 1e-3 }]
        "#;
        let recipe = Recipe::read::<&str>(text, "r.toml", &[]).unwrap();
        let model = LinearConfig::new(2, 3).init(&Device::flex());
        let create = || RunDirectory::create(dir.path(), &recipe, &model, None, false).map(drop);
        let resume = || {
            let found = RunDirectory::resume(dir.path(), &recipe, false, |_| Ok(model.clone()));
            found.map(|run| run.is_some())
        };
        // A recipe of the user's.
        let own = dir.path().join(files::RECIPE);
        std::fs::write(&own, "# mine\n").unwrap();
        let error = create().unwrap_err().to_string();
        assert!(error.contains("would be overwritten"), "{error}");
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "# mine\n");
        std::fs::remove_file(&own).unwrap();
        // A run that was killed before its first checkpoint begins again.
        assert!(!resume().unwrap());
        create().unwrap();
        create().unwrap();
        // Checkpoints of which none is whole.
        let step = dir.path().join(CHECKPOINTS_DIR).join("step-00000002");
        std::fs::create_dir(&step).unwrap();
        std::fs::write(step.join(files::WEIGHTS), "cut").unwrap();
        let error = resume().unwrap_err().to_string();
        assert!(error.contains("no whole checkpoint") && error.contains("step-00000002"));
        let error = create().unwrap_err().to_string();
        assert!(
            error.contains("a run here already") && error.contains("--resume"),
            "{error}"
        );
        assert!(step.join(files::WEIGHTS).exists());
    }

    #[test]
    fn epochs_by_hand() {
        // Ten micro-batches in steps of four: an epoch is two steps and a half.
        let found: Vec<_> = (1..=6).map(|step| epoch_of(step, 4, 10)).collect();
        assert_eq!(found, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]);
        assert_eq!(epoch_of(26, 4, 10), (10, 1));
        // A step of eight epochs.
        assert_eq!([1, 2].map(|step| epoch_of(step, 8, 1)), [(0, 1), (8, 1)]);
        let whole: Vec<_> = (1..=4).map(|step| epoch_of(step, 2, 4)).collect();
        assert_eq!(whole, [(0, 1), (0, 2), (1, 1), (1, 2)]);
    }
}
