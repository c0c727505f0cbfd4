//! What a recipe would do, found out without loading a weight.
//!
//! A [`Recipe`] says `model = { preset = "mini" }` or `{ directory = "…" }`; here is what that is
//! in this build, and what [`explain`] finds out about a recipe without loading a weight.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use tpo_core::head::HeadSet;
use tpo_core::traits::VisualShape;
use tpo_core::weights::module_params;
use tpo_train::explain::{Explanation, MemoryEstimate, ModelShape, PartShape};
use tpo_train::recipe::{ModelSpec, Recipe, SourceSpec};
use tpo_train::trainer::Purpose;
use tpo_train::{Precision, TrainData, TrainError};

use super::RunOptions;
use super::data::{DataContext, check_calls, stage_data};
use super::model::{NamedModel, model_config};
use crate::error::Result;
use crate::model::TpoConfig;
use crate::model::memory::{WeightFormat, available_memory, refused};

/// The shape of the model that a recipe names, for prompts of the most tokens it takes. No weight is
/// drawn or read.
///
/// # Errors
/// As [`model_config`].
pub fn model_shape<H: HeadSet>(spec: &ModelSpec) -> Result<ModelShape> {
    let config = model_config::<H>(spec)?;
    let prompt = config.max_prompt();
    shape_of::<H>(name_of(spec), &config, prompt)
}

fn name_of(spec: &ModelSpec) -> String {
    match (&spec.preset, &spec.sizes, &spec.directory) {
        (Some(preset), ..) => match &spec.llm {
            Some(llm) => format!("preset {preset} with {}", llm.display()),
            None => format!("preset {preset}"),
        },
        (_, Some(dir), _) => format!("sizes of {}", dir.display()),
        (.., Some(dir)) => dir.display().to_string(),
        _ => String::new(),
    }
}

/// The shape of a model for prompts of `prompt` tokens.
fn shape_of<H: HeadSet>(name: String, config: &TpoConfig, prompt: usize) -> Result<ModelShape> {
    let quantized = quantized_bytes(&config.init::<H>(&Device::flex())?);
    // What goes through a layer is the same however its weight is held.
    let mut plain = config.clone();
    plain.llm.quantization = None;
    let model = plain.init::<H>(&Device::flex())?;
    let heads: Vec<String> = H::specs().into_iter().map(|s| s.name).collect();
    let side = config.input.size as u32;
    let video = VisualShape::video((side, side), config.input.frames);
    let tokens = config.vision.tokens(video.pictures);
    let visual = config.rows(&video);
    let parts = vec![
        PartShape::new("vision", ["vision."], tokens).with_checkpointed_blocks(),
        PartShape::new("connector", ["connector."], visual)
            .with_rows_of("crossattention.self.key", tokens)
            .with_rows_of("crossattention.self.value", tokens),
        PartShape::new("task tokens", ["task_tokens."], 0),
        PartShape::new("llm", ["llm."], prompt).with_checkpointed_blocks(),
        // Once per task token; what a frozen tower does is not kept.
        PartShape::new("heads", ["heads."], 1),
    ];
    Ok(ModelShape {
        quantized,
        ..ModelShape::of(name, &model, heads, parts)
    })
}

/// Bytes of the quantised weights, by the paths that they have in a float type.
fn quantized_bytes<M: Module>(model: &M) -> BTreeMap<String, u64> {
    let params = module_params(model).into_iter();
    let words = params.filter_map(|p| {
        let path = p.path.strip_suffix(".packed")?;
        Some((
            path.to_string(),
            4 * p.shape.iter().product::<usize>() as u64,
        ))
    });
    words.collect()
}

/// The shape of the model in every stage: with the stage's adapters, and where its data are made
/// up, with prompts as long as theirs.
fn staged_shapes<H: HeadSet>(recipe: &Recipe) -> Result<Vec<ModelShape>> {
    let mut config = model_config::<H>(&recipe.model)?;
    let most = config.max_prompt();
    let mut problems = Vec::new();
    let mut shapes = Vec::new();
    for (i, stage) in recipe.stages.iter().enumerate() {
        if let Some(lora) = &stage.lora {
            let mut other = config.clone();
            other.llm.lora = Some(other.llm.adapters(lora));
            match other.llm.validate() {
                Ok(()) => config = other,
                Err(e) => problems.push(format!("stages[{i}] `{}`.lora: {e}", stage.name)),
            }
        }
        let prompt = made_up_prompt::<H>(recipe, i, &config).unwrap_or(most);
        shapes.push(shape_of::<H>(name_of(&recipe.model), &config, prompt)?);
    }
    if problems.is_empty() {
        return Ok(shapes);
    }
    let origin = format!("recipe `{}`", recipe.name);
    Err(TrainError::InvalidRecipe { origin, problems }.into())
}

/// Tokens of the prompts of a stage whose data are made up, which costs nothing to try.
fn made_up_prompt<H: HeadSet>(recipe: &Recipe, stage: usize, config: &TpoConfig) -> Option<usize> {
    let seed = recipe.stage_seed(stage);
    let stage = recipe.stages.get(stage)?;
    let sources = &stage.data.as_ref()?.sources;
    if recipe.model.directory.is_some() || sources.iter().any(|s| s.synthetic.is_none()) {
        return None;
    }
    let tokenizer = NamedModel::new::<H>(&recipe.model).ok()?.tokenizer;
    let context = DataContext::new(config, &Arc::new(tokenizer));
    // What is wrong with the data is reported by the run.
    let mut data = stage_data::<H>(Purpose::Evaluate, stage, seed, &context).ok()?;
    let batch = data.next_batch(&Device::flex()).ok()?.batch;
    Some(batch.tokens.shape().1)
}

/// What a recipe would do: which parts learn how fast, how long it takes, how much memory it
/// needs. Reads no weight; files of annotations that exist are read.
///
/// # Errors
/// As [`model_config`] and [`Recipe::explain`]; [`TrainError::InvalidRecipe`] when a stage lets a head
/// learn that its data never call, where all of them are there.
pub fn explain<H: HeadSet>(recipe: &Recipe) -> Result<Explanation> {
    let explanation = explain_shapes::<H>(recipe)?;
    let named = NamedModel::new::<H>(&recipe.model)?;
    let context = DataContext::new(&named.config, &Arc::new(named.tokenizer));
    check_calls::<H>(recipe, &context)?;
    Ok(explanation)
}

/// [`explain`] without a look at the data.
pub(crate) fn explain_shapes<H: HeadSet>(recipe: &Recipe) -> Result<Explanation> {
    let shape = model_shape::<H>(&recipe.model)?;
    Ok(recipe.explain(&shape, &staged_shapes::<H>(recipe)?, &rows)?)
}

/// Rows of a source whose file is there.
fn rows(source: &SourceSpec) -> Option<u64> {
    let file = File::open(source.annotations.as_deref()?).ok()?;
    let mut lines = BufReader::new(file).split(b'\n');
    lines.try_fold(0, |count, line| line.ok().map(|_| count + 1))
}

/// Has all stages work in one number format.
pub(crate) fn set_precision(recipe: &mut Recipe, precision: Precision) {
    for stage in &mut recipe.stages {
        stage.precision = precision;
    }
}

/// Refuses a recipe one of whose stages takes more memory on the CPU than there is.
///
/// # Errors
/// [`Error::Memory`](crate::Error::Memory) with what the stage takes in each number format; as
/// [`explain`].
pub(super) fn check_memory<H: HeadSet>(recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let memory = options.memory.or_else(available_memory);
    let Some(available) = memory.filter(|_| options.device == Device::flex()) else {
        return Ok(());
    };
    let largest = |recipe: &Recipe, checkpointing: bool| -> Result<MemoryEstimate> {
        let stages = explain_shapes::<H>(recipe)?.stages.into_iter();
        let largest = stages
            .map(|s| s.memory)
            .max_by_key(|m| m.total(checkpointing));
        Ok(largest.unwrap_or_default())
    };
    let asked = options.gradient_checkpointing;
    if largest(recipe, asked)?.total(asked) <= available {
        return Ok(());
    }
    let flags = |recipe: &Recipe, checkpointing: bool| {
        let narrow = recipe.stages.iter().all(|s| s.precision == Precision::Bf16);
        let dtype = if narrow {
            FloatDType::BF16
        } else {
            FloatDType::F32
        };
        let format = WeightFormat::new(dtype, recipe.model.quantize).flags();
        if checkpointing {
            format!("{format} --gradient-checkpointing")
        } else {
            format
        }
    };
    let mut rows = Vec::new();
    for format in WeightFormat::ALL {
        let mut other = recipe.clone();
        if format.dtype == FloatDType::BF16 {
            set_precision(&mut other, Precision::Bf16);
        }
        other.model.quantize = format.quantize;
        for checkpointing in [false, true] {
            // A directory that is quantised is not quantised otherwise.
            let Ok(m) = largest(&other, checkpointing) else {
                continue;
            };
            let learning = m.gradients + m.optimizer;
            let rest = m.total(checkpointing) - m.weights - learning;
            rows.push((flags(&other, checkpointing), [m.weights, learning, rest]));
        }
    }
    let columns = ["weights", "learning", "activations"];
    Err(refused(columns, rows, &flags(recipe, asked), available))
}
