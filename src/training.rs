//! Training from a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use tpo_llm::tokenizer::Tokenizer;
use tpo_train::checkpoint::{SavedCheckpoint, files};
use tpo_train::keep::{RunKeeper, find_checkpoint, materialise};
use tpo_train::observe::{METRICS_FILE, read_metrics};
use tpo_train::recipe::{Change, Recipe};
use tpo_train::trainer::{RunEnd, TrainOptions, train_plan};
use tpo_train::{HeadNames, Stage, StagePlan, TrainData};

use crate::config::{TpoConfig, VideoChatTpo};
use crate::curves::draw_curves;
use crate::error::{Error, Result};
use crate::model_dir::{load_model, mini_tokenizer, model_tokenizer, tokenizer_files};
use crate::recipe::model_config;
use crate::synthetic::synthetic_data;

/// Picture of a run's curves, in its directory.
pub const CURVES_FILE: &str = "curves.png";

/// How a recipe is run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Directory of the run.
    pub dir: PathBuf,
    /// Device that trains.
    pub device: Device,
    /// Go on with the run in `dir`, if there is one.
    pub resume: bool,
    /// Draw progress bars.
    pub bars: bool,
    /// Compute activations again in the backward pass: less memory, more time.
    pub recompute: bool,
}

/// A model that a recipe names.
#[derive(Debug)]
pub struct RecipeModel {
    /// The model, on its device, without autodiff.
    pub model: VideoChatTpo,
    /// Its sizes.
    pub config: TpoConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The tokenizer's files (name, bytes), for exports.
    pub tokenizer_files: Vec<(String, Vec<u8>)>,
    /// The checkpoint its `start` names.
    pub start: Option<SavedCheckpoint>,
}

/// How a run ended.
#[derive(Debug)]
pub struct RunSummary {
    /// The trained model.
    pub model: RecipeModel,
    /// Whether the recipe came to its end.
    pub end: RunEnd,
    /// The step at which it was resumed.
    pub resumed_at: Option<u64>,
    /// Changes of the recipe since the checkpoint.
    pub changes: Vec<Change>,
}

/// Builds the model of a recipe: weights of the directory, or random ones drawn from the recipe's
/// seed, always the same; over them those of the checkpoint that `model.start` names.
///
/// # Errors
/// As [`model_config`] and weight import;
/// [`Error::Train`] when `start` is no checkpoint or does not fit.
pub fn recipe_model(recipe: &Recipe, device: &Device) -> Result<RecipeModel> {
    let config = model_config(&recipe.model)?;
    // For what the files lack, and for everything when there are none.
    device.seed(recipe.seed);
    let (mut model, tokenizer, tokenizer_files) = match &recipe.model.directory {
        Some(dir) => (
            load_model(dir, &config, device, recipe.model.lora.is_some())?,
            model_tokenizer(dir, &config)?,
            tokenizer_files(dir)?,
        ),
        None => {
            let model = config.init(device)?;
            materialise(&model);
            (
                model,
                mini_tokenizer()?,
                crate::model_dir::mini_tokenizer_files(),
            )
        }
    };
    let start = match &recipe.model.start {
        None => None,
        Some(path) => {
            let start = find_checkpoint(path)?;
            model = start.load_module(files::WEIGHTS, model, &|_| false)?;
            Some(start)
        }
    };
    Ok(RecipeModel {
        model,
        config,
        tokenizer: Arc::new(tokenizer),
        tokenizer_files,
        start,
    })
}

/// Runs a recipe whose data are synthetic. See [`run_recipe_with`].
///
/// # Errors
/// As [`run_recipe_with`].
pub fn run_recipe(recipe: &Recipe, options: &RunOptions) -> Result<RunSummary> {
    run_recipe_with(recipe, options, &mut |stage, _, seed, model| {
        synthetic_data(stage, seed, &model.0, model.1.clone())
    })
}

/// Opens the data of a stage: the stage, its place, its seed, the model's sizes and tokenizer.
pub type OpenData<'a> = dyn FnMut(&Stage, usize, u64, &(TpoConfig, Arc<Tokenizer>)) -> tpo_train::Result<Box<dyn TrainData>>
    + 'a;

/// Runs a recipe: builds its model, takes it through the stages, keeps checkpoints and logs in the
/// run's directory, and draws the curves at the end.
///
/// With [`RunOptions::resume`] it goes on at the newest whole checkpoint, to the same weights, to
/// the bit on the CPU, that the run would have come to without the interruption.
///
/// # Errors
/// Everything that ends a run. Its checkpoints are then there.
pub fn run_recipe_with(
    recipe: &Recipe,
    options: &RunOptions,
    data: &mut OpenData<'_>,
) -> Result<RunSummary> {
    recipe.validate()?;
    let mut built = recipe_model(recipe, &options.device)?;
    let names = HeadNames::of(&built.model.heads);
    let resumed = match options.resume {
        true => {
            let model = built.model.clone();
            RunKeeper::resume(&options.dir, recipe, model, &names, options.bars)?
        }
        false => None,
    };
    let (mut keeper, state, changes) = match resumed {
        Some((keeper, resumed)) => {
            built.model = resumed.model;
            (keeper, Some(resumed.state), resumed.changes)
        }
        None => {
            let start = built.start.as_ref();
            let keeper = RunKeeper::create(
                &options.dir,
                recipe,
                &built.model,
                &names,
                start,
                options.bars,
            )?;
            (keeper, None, Vec::new())
        }
    };
    let resumed_at = state.as_ref().map(|s| s.run_step);
    let plan = StagePlan {
        stages: recipe.stages.clone(),
    };
    let train = TrainOptions {
        seed: recipe.seed,
        recompute: options.recompute,
        ..TrainOptions::new(&options.device)
    };
    let parts = (built.config.clone(), built.tokenizer.clone());
    let (model, end) = train_plan(
        built.model,
        &plan,
        state,
        train,
        &mut |stage, place, seed| data(stage, place, seed, &parts),
        &mut keeper,
    )?;
    if recipe.logging.curves {
        draw_run(&options.dir)?;
    }
    Ok(RunSummary {
        model: RecipeModel { model, ..built },
        end,
        resumed_at,
        changes,
    })
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
