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
use tpo_train::{Precision, TrainError};

use super::RunOptions;
use super::data::{BatchSizes, DataContext, batch_sizes, check_calls};
use super::model::{NamedModel, model_config};
use crate::error::Result;
use crate::model::TpoConfig;
use crate::model::memory::{FREE_MEMORY, WeightFormat, available_memory, mask_scratch, refused};

/// The shape of the model that a recipe names, for prompts of the most tokens it takes. No weight is
/// drawn or read.
///
/// # Errors
/// As [`model_config`].
pub fn model_shape<H: HeadSet>(spec: &ModelSpec) -> Result<ModelShape> {
    let config = model_config::<H>(spec)?;
    shape_of::<H>(name_of(spec), &config, None)
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

/// The shape of a model for batches of these sizes, or of the longest prompts it takes.
fn shape_of<H: HeadSet>(
    name: String,
    config: &TpoConfig,
    sizes: Option<BatchSizes>,
) -> Result<ModelShape> {
    let quantized = quantized_bytes(&config.init::<H>(&Device::flex())?);
    // What goes through a layer is the same however its weight is held.
    let mut plain = config.clone();
    plain.llm.quantization = None;
    *plain.vision.quantization_mut() = None;
    let model = plain.init::<H>(&Device::flex())?;
    let heads: Vec<String> = H::specs().into_iter().map(|s| s.name).collect();
    let side = config.input.size as u32;
    let video = VisualShape::video((side, side), config.input.frames);
    let tokens = config.vision.tokens(video.pictures);
    let visual = config.rows(&video);
    let longest = config.max_prompt();
    let BatchSizes {
        tokens: prompt,
        labels,
        packed,
        masks,
    } = sizes.unwrap_or(BatchSizes {
        tokens: longest,
        labels: longest.saturating_sub(visual),
        packed: false,
        masks: true,
    });
    let mut vision = PartShape::new("vision", ["vision."], tokens).with_checkpointed_blocks();
    let pixels = (config.input.frames * 3 * config.input.size.pow(2)) as u64;
    vision.pixels = pixels;
    let (blocks, heads_of_block) = config.vision.attention();
    vision = vision.with_attention(blocks, heads_of_block, [tokens; 2], config.vision.dim());
    let mut connector = PartShape::new("connector", ["connector."], visual)
        .with_shared_rows_of("crossattention.self.key", tokens)
        .with_shared_rows_of("crossattention.self.value", tokens);
    if let Some(qformer) = config.connector.qformer().map(|c| &c.qformer) {
        let (layers, heads) = (qformer.num_hidden_layers, qformer.num_attention_heads);
        let cross = layers.div_ceil(qformer.cross_attention_freq.max(1));
        let width = qformer.hidden_size;
        // Its layers for an instruction are not run.
        connector = connector
            .with_rows_of("attention.output.dense", visual)
            .with_rows_of(".intermediate.dense", 0)
            .with_rows_of(".output.dense", 0)
            .with_attention(layers, heads, [visual; 2], width)
            .with_attention(cross, heads, [visual, tokens], width);
    }
    let decoder = &config.llm;
    let width = decoder.num_attention_heads * decoder.head_dim;
    let mut llm = PartShape::new("llm", ["llm."], prompt)
        .with_rows_of("lm_head", labels)
        .with_checkpointed_blocks()
        .with_attention(
            decoder.num_hidden_layers,
            decoder.num_attention_heads,
            [prompt; 2],
            width,
        );
    llm.dropout = decoder.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
    llm.logits = (labels * decoder.vocab_size) as u64;
    // Which turns see each other.
    llm.scratch = if packed {
        4 * (prompt * prompt) as u64
    } else {
        0
    };
    // Once per task token; a frozen tower keeps nothing, and has its pictures in flight.
    let mut heads_part = PartShape::new("heads", ["heads."], 1);
    if masks {
        heads_part.scratch = mask_scratch(config)?;
    }
    let parts = vec![
        vision,
        connector,
        PartShape::new("task tokens", ["task_tokens."], 0),
        llm,
        heads_part,
    ];
    Ok(ModelShape {
        quantized,
        pixels,
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

/// The shape of the model in every stage: with the stage's adapters, and as its batches are, if they may be
/// looked at and can be.
fn staged_shapes<H: HeadSet>(recipe: &Recipe, look: bool) -> Result<Vec<ModelShape>> {
    let named = NamedModel::new::<H>(&recipe.model)?;
    let (mut config, tokenizer) = (named.config, Arc::new(named.tokenizer));
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
        let context = DataContext::new(&config, &tokenizer);
        let sizes = look.then(|| batch_sizes::<H>(stage, recipe.stage_seed(i), &context));
        shapes.push(shape_of::<H>(
            name_of(&recipe.model),
            &config,
            sizes.flatten(),
        )?);
    }
    if problems.is_empty() {
        return Ok(shapes);
    }
    let origin = format!("recipe `{}`", recipe.name);
    Err(TrainError::InvalidRecipe { origin, problems }.into())
}

/// What a recipe would do: which parts learn how fast, how long it takes, how much memory it
/// needs. Reads no weight; files of annotations that exist are read, and a few of their media.
///
/// # Errors
/// As [`model_config`] and [`Recipe::explain`]; [`TrainError::InvalidRecipe`] when a stage lets a head
/// learn that its data never call, where all of them are there.
pub fn explain<H: HeadSet>(recipe: &Recipe) -> Result<Explanation> {
    let explanation = explain_shapes::<H>(recipe, true)?;
    let named = NamedModel::new::<H>(&recipe.model)?;
    if let Err(e) = named.check_tokens(&recipe.model) {
        // Sizes can be explained, and which heads rows call is of no account where none can be.
        tracing::warn!("this recipe does not train: {e}");
        return Ok(explanation);
    }
    let context = DataContext::new(&named.config, &Arc::new(named.tokenizer));
    check_calls::<H>(recipe, &context)?;
    Ok(explanation)
}

/// [`explain`] without the checks of the data; `look` says whether the lengths of their rows matter.
pub(crate) fn explain_shapes<H: HeadSet>(recipe: &Recipe, look: bool) -> Result<Explanation> {
    let shape = model_shape::<H>(&recipe.model)?;
    let staged = staged_shapes::<H>(recipe, look)?;
    Ok(recipe.explain(&shape, &staged, &rows)?)
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
pub(crate) fn check_memory<H: HeadSet>(recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let memory = options.memory.or_else(available_memory);
    let Some(available) = memory.filter(|_| options.device == Device::flex()) else {
        return Ok(());
    };
    let largest = |recipe: &Recipe, checkpointing: bool, look: bool| -> Result<MemoryEstimate> {
        let stages = explain_shapes::<H>(recipe, look)?.stages.into_iter();
        let largest = stages
            .map(|s| s.memory)
            .max_by_key(|m| m.total(checkpointing));
        Ok(largest.unwrap_or_default())
    };
    let asked = options.gradient_checkpointing;
    // If the longest rows fit, it does not matter which there are.
    for look in [false, true] {
        if largest(recipe, asked, look)?.total(asked) <= available {
            return Ok(());
        }
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
            let Ok(m) = largest(&other, checkpointing, true) else {
                continue;
            };
            let learning = m.gradients + m.optimizer;
            let rest = m.total(checkpointing) - m.weights - learning;
            rows.push((flags(&other, checkpointing), [m.weights, learning, rest]));
        }
    }
    let columns = ["weights", "learning", "activations"];
    let asked = flags(recipe, asked);
    Err(refused(columns, rows, &asked, available, FREE_MEMORY))
}
