//! Training from a recipe.

mod data;
pub mod measure;
mod model;
mod open;
mod recipe;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_llm::tokenizer::Tokenizer;
use tpo_train::observe::{METRICS_FILE, read_metrics};
use tpo_train::recipe::{Change, Recipe};
use tpo_train::run_directory::RunDirectory;
use tpo_train::trainer::{
    Hooks, Purpose, RunEnd, StageEvaluation, TrainEvent, TrainOptions, train_plan,
};
use tpo_train::{Stage, TrainData, TrainError};

use crate::curves::draw_curves;
use crate::error::{Error, Result};
use crate::features::{FeatureCache, TemporalTowers};
#[cfg(doc)]
use crate::model::memory::available_memory;
use crate::model::{BuiltInHeads, Tpo, TpoConfig};

pub use data::{DataContext, check_data, stage_data};
use model::NamedModel;
pub use model::{PRESETS, RecipeModel, model_config, recipe_model};
pub(crate) use recipe::check_memory;
pub use recipe::{explain, model_shape};
#[cfg(feature = "cli")]
pub(crate) use recipe::{explain_shapes, set_precision};

/// Picture of a run's curves, in its directory.
pub const CURVES_FILE: &str = "curves.png";

/// How a recipe is run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Directory of the run.
    pub dir: PathBuf,
    /// Device that trains.
    pub device: Device,
    /// Continue the run in `dir`, if there is one.
    pub resume: bool,
    /// Draw progress bars.
    pub bars: bool,
    /// Write a checkpoint and stop after so many steps of the run, those before it was resumed
    /// included. The schedule is that of the whole recipe.
    pub stop_after: Option<u64>,
    /// Compute activations again in the backward pass: less memory, more time.
    pub gradient_checkpointing: bool,
    /// Towers of the temporal head, for a model that does not use its own parts.
    pub towers: Option<TemporalTowers>,
    /// Where video features of those towers are kept.
    pub features: Option<FeatureCache>,
    /// Bytes that training and its towers may take on the CPU; `None` for what is available
    /// ([`available_memory`]).
    pub memory: Option<u64>,
}

impl RunOptions {
    /// A new run in `dir` without bars.
    pub fn new(dir: impl Into<PathBuf>, device: &Device) -> Self {
        Self {
            dir: dir.into(),
            device: device.clone(),
            resume: false,
            bars: false,
            stop_after: None,
            gradient_checkpointing: false,
            towers: None,
            features: None,
            memory: None,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct RunSummary<H = BuiltInHeads> {
    /// The trained model.
    pub model: RecipeModel<H>,
    /// Whether the recipe came to its end.
    pub end: RunEnd,
    /// The step at which it was resumed.
    pub resumed_at: Option<u64>,
    /// Changes of the recipe since the checkpoint.
    pub changes: Vec<Change>,
}

/// Runs a recipe on the files and worlds it names. See [`run_recipe_with`], and
/// [`stage_data`] for what is made of them.
///
/// # Errors
/// As [`run_recipe_with`]; before a weight is read [`TrainError::InvalidRecipe`] with every problem of
/// the data of all stages, and [`Error::Memory`] for a model that does not fit.
pub fn run_recipe<H: HeadSet>(recipe: &Recipe, options: &RunOptions) -> Result<RunSummary<H>> {
    recipe.validate()?;
    let named = NamedModel::new::<H>(&recipe.model)?;
    named.check_tokens(&recipe.model)?;
    let context = context_of(options, &named.config, &Arc::new(named.tokenizer));
    check_data::<H>(recipe, &context)?;
    check_memory::<H>(recipe, options)?;
    run_recipe_with::<H>(recipe, options, &mut *data_of::<H>(options))
}

/// Opens the data that the stages of a recipe name, with the towers of a run; see [`OpenData`] and
/// [`stage_data`], whose errors it has.
fn data_of<H: HeadSet>(options: &RunOptions) -> Box<OpenData<'_>> {
    Box::new(|purpose, stage, _, seed, (config, tokenizer)| {
        let context = context_of(options, config, tokenizer);
        Ok(Box::new(stage_data::<H>(purpose, stage, seed, &context)?))
    })
}

fn context_of(options: &RunOptions, config: &TpoConfig, tokenizer: &Arc<Tokenizer>) -> DataContext {
    DataContext {
        towers: options.towers.clone(),
        features: options.features.clone(),
        ..DataContext::new(config, tokenizer)
    }
}

/// Opens data of a stage: what for, the stage, its place, the seed, the model's sizes and
/// tokenizer. For [`Purpose::Evaluate`] the stage's `data` and `batch_size` are those of its
/// evaluation.
pub type OpenData<'a> = dyn FnMut(
        Purpose,
        &Stage,
        usize,
        u64,
        &(TpoConfig, Arc<Tokenizer>),
    ) -> tpo_train::Result<Box<dyn TrainData>>
    + 'a;

/// Runs a recipe: builds its model, takes it through the stages, keeps checkpoints and logs in the
/// run's directory, and draws the curves at the end.
///
/// With [`RunOptions::resume`] it continues at the newest whole checkpoint, to the same weights, to
/// the bit on the CPU, that the run would have come to without the interruption.
///
/// # Errors
/// Everything that ends a run. Its checkpoints are then there.
pub fn run_recipe_with<H: HeadSet>(
    recipe: &Recipe,
    options: &RunOptions,
    data: &mut OpenData<'_>,
) -> Result<RunSummary<H>> {
    recipe.validate()?;
    let mut built = recipe_model::<H>(recipe, &options.device)?;
    let recipe = &with_sampling(recipe, &built.config);
    let resumed = if options.resume {
        let model = |stage| staged_model(recipe, &built.model, stage);
        RunDirectory::resume(&options.dir, recipe, options.bars, model)?
    } else {
        None
    };
    let (keeper, state, changes) = match resumed {
        Some((keeper, resumed)) => {
            built.model = resumed.model;
            (keeper, Some(resumed.state), resumed.changes)
        }
        None => {
            let start = built.start.as_ref();
            let keeper =
                RunDirectory::create(&options.dir, recipe, &built.model, start, options.bars)?;
            (keeper, None, Vec::new())
        }
    };
    let resumed_at = state.as_ref().map(|s| s.run_step);
    let train = TrainOptions {
        seed: recipe.seed,
        gradient_checkpointing: options.gradient_checkpointing,
        ..TrainOptions::new(&options.device)
    };
    let parts = (built.config.clone(), built.tokenizer.clone());
    let data = RefCell::new(data);
    let open = |purpose: Purpose, stage: &Stage, place: usize, seed: u64| {
        (*data.borrow_mut())(purpose, stage, place, seed, &parts)
    };
    let held_out = |stage: &Stage, place, seed| open(Purpose::Evaluate, stage, place, seed);
    let evaluation = StageEvaluation::new(&recipe.stages, &options.device, held_out);
    let (model, end) = train_plan(
        built.model,
        &recipe.stages,
        state,
        train,
        &mut |stage, place, seed| open(Purpose::Train, stage, place, seed),
        &mut (evaluation, (keeper, StopAfter::new(options.stop_after))),
    )?;
    if recipe.logging.curves {
        draw_run(&options.dir)?;
    }
    // A stage may have changed the adapters.
    built.config.llm = model.llm.config().clone();
    Ok(RunSummary {
        model: RecipeModel { model, ..built },
        end,
        resumed_at,
        changes,
    })
}

/// The recipe with the rule that picks frames where it leaves it to the model: what a run keeps says it.
fn with_sampling(recipe: &Recipe, config: &TpoConfig) -> Recipe {
    let mut recipe = recipe.clone();
    for stage in &mut recipe.stages {
        let evaluation = stage.evaluation.as_mut().map(|e| &mut e.data);
        for data in stage.data.iter_mut().chain(evaluation) {
            data.sampling.get_or_insert(config.input.sampling);
        }
    }
    recipe
}

/// Stops a run after a number of its steps.
struct StopAfter {
    steps: Option<u64>,
    done: u64,
}

impl StopAfter {
    fn new(steps: Option<u64>) -> Self {
        Self { steps, done: 0 }
    }
}

impl<M> Hooks<M> for StopAfter {
    fn event(&mut self, event: &TrainEvent) -> tpo_train::Result<()> {
        if let TrainEvent::StepFinished(report) = event {
            self.done = report.run_step;
        }
        Ok(())
    }

    fn stop(&mut self) -> bool {
        self.steps.is_some_and(|steps| self.done >= steps)
    }
}

/// The recipe's model with the adapters of a stage, whose values a checkpoint brings.
pub(crate) fn staged_model<H: HeadSet>(
    recipe: &Recipe,
    model: &Tpo<H>,
    stage: usize,
) -> tpo_train::Result<Tpo<H>> {
    let mut model = model.clone();
    let until = recipe.stages.iter().take(stage + 1);
    if let Some(lora) = until.rev().find_map(|s| s.lora.as_ref()) {
        let lora = model.llm.config().adapters(lora);
        let llm = model.llm.replace_lora(Some(lora));
        model.llm = llm.map_err(|e| TrainError::InvalidPlan {
            problems: vec![format!("the adapters of stages[{stage}]: {e}")],
        })?;
    }
    Ok(model)
}

/// Draws the curves of the run in `dir` as [`CURVES_FILE`].
///
/// # Errors
/// [`Error::Picture`] when there is nothing to draw or the file cannot be written.
pub fn draw_run(dir: &Path) -> Result<PathBuf> {
    let picture = draw_curves(&read_metrics(dir.join(METRICS_FILE))?)?;
    let path = dir.join(CURVES_FILE);
    picture.save(&path).map_err(|e| Error::Picture {
        what: path.display().to_string(),
        why: e.to_string(),
    })?;
    Ok(path)
}
