//! A run's directory: recipe, checkpoints and logs, kept up by the trainer's hooks.
//!
//! ```text
//! runs/heads/
//!   recipe.toml            the resolved recipe
//!   checkpoints/           see `checkpoint`
//!   metrics.jsonl          see `observe`
//!   tensorboard/
//! ```

mod hooks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Module;
use tpo_core::weights::Checkpoint;

use crate::adapters::{adapters_of, base_weights, factors};
use crate::before::Renaming;
use crate::checkpoint::{Background, CheckpointStore, Retention, SavedCheckpoint, files};
use crate::error::{Result, TrainError};
use crate::observe::RunLog;
use crate::optim::OptimizerState;
use crate::recipe::{Change, Recipe, SavedWeights};
use crate::trainer::{StepReport, TrainState};

/// Folder of the checkpoints in a run's directory.
pub const CHECKPOINTS_DIR: &str = "checkpoints";

/// Writes a run's directory: give it to [`train_plan`](crate::trainer::train_plan) as hooks.
///
/// Evaluation is not its business; join it with hooks that evaluate: `(evaluation, run)`.
///
/// A checkpoint is written while the next steps are taken, one at a time. It is that of the moment it
/// was asked for: of what learns on, the steps make copies as long as it is being written. What it
/// fails with ends the run at the next step, and a stage ends when its checkpoint is written.
#[derive(Debug)]
pub struct RunDirectory {
    recipe: Recipe,
    recipe_text: String,
    store: Arc<CheckpointStore>,
    writing: Background,
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
        let tensors = tensors.map(|(key, t)| (renaming.key(&key), t));
        state.optimizer.tensors = OptimizerState::read(tensors)?;
        let steps = state.optimizer.steps.into_iter();
        state.optimizer.steps = steps.map(|(key, n)| (renaming.key(&key), n)).collect();
        let mut keeper = Self::open(dir, recipe, &model, Some(&checkpoint), Some(step), bars)?;
        keeper.next_stage = state.stage_index;
        keeper.learn(state.stage_index, &model)?;
        let model =
            checkpoint.load_module(files::WEIGHTS, model, &|p| keeps(keeper.learnt.as_ref(), p))?;
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
            writing: Background::new(store.dir()),
            store: Arc::new(store),
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
}

/// Whether checkpoints hold the parameter at `path`; those with what is `learnt`, or with all weights.
fn keeps(learnt: Option<&BTreeSet<String>>, path: &str) -> bool {
    learnt.is_none_or(|learnt| learnt.contains(path))
}

/// Paths of the parameters that a checkpoint holds.
fn held(checkpoint: Option<&SavedCheckpoint>, renaming: &Renaming) -> Result<BTreeSet<String>> {
    let Some(checkpoint) = checkpoint else {
        return Ok(BTreeSet::new());
    };
    let weights = Checkpoint::open(checkpoint.dir().join(files::WEIGHTS))?;
    Ok(weights.tensors().map(|t| renaming.key(&t.key)).collect())
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

    pub(super) const RECIPE: &str = r#"
        name = "r"
        model = { preset = "mini" }
        [[stages]]
        name = "a"
        length = { steps = 10 }
        batch_size = 2
        groups = [{ name = "all", patterns = ["**"], learning_rate = 1e-3 }]
    "#;

    #[test]
    fn what_is_there_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe::read::<&str>(RECIPE, "r.toml", &[]).unwrap();
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
}
