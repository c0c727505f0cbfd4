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
use tpo_core::weights::module_params;
use tpo_train::explain::{Explanation, MemoryEstimate, ModelShape, PartShape};
use tpo_train::recipe::{ModelSpec, Recipe, SourceSpec};
use tpo_train::{Precision, TrainError};

use super::RunOptions;
use super::data::{BatchSizes, DataContext, batch_sizes, check_calls};
use super::model::{NamedModel, model_config, random_quantized};
use crate::error::Result;
use crate::model::memory::{
    WeightFormat, available_memory, mask_scratch, otherwise, refused, trains_through_masks,
};
use crate::model::{Quantize, TEXT, TpoConfig};

/// The shape of the model that a recipe names, for prompts about a video with 1,024 tokens of text. No
/// weight is drawn or read.
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

/// The shape of a model for batches of these sizes, or of usual prompts about a video.
fn shape_of<H: HeadSet>(
    name: String,
    config: &TpoConfig,
    sizes: Option<BatchSizes>,
) -> Result<ModelShape> {
    let quantized = quantized_bytes(&config.init::<H>(&Device::flex())?);
    // What goes through a layer is the same however its weight is held.
    let mut plain = config.clone();
    plain.set_quantization(Quantize::default());
    let model = plain.init::<H>(&Device::flex())?;
    let heads: Vec<String> = H::specs().into_iter().map(|s| s.name).collect();
    let BatchSizes {
        tokens: prompt,
        labels,
        pictures,
        visual,
        packed,
        masks,
    } = match sizes {
        Some(sizes) => sizes,
        None => BatchSizes::of_text(config, TEXT)?,
    };
    let tokens = config.vision.tokens(pictures);
    let mut vision = PartShape::new("vision", ["vision."], tokens).with_checkpointed_blocks();
    let pixels = (pictures * 3 * config.input.size.pow(2)) as u64;
    vision.pixels = pixels;
    let (blocks, heads_of_block) = config.vision.attention();
    let seen = if config.vision.sees_pictures() {
        config.vision.tokens(1)
    } else {
        tokens
    };
    let pairs = [tokens, seen];
    vision = vision.with_attention(blocks, heads_of_block, pairs, config.vision.dim());
    // OneVision's layers read tokens, of which it makes fewer rows.
    let mut connector = PartShape::new("connector", ["connector."], visual)
        .with_rows_of("connector.linear_", tokens)
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
    // Once per task token. A frozen tower keeps nothing and has its pictures in flight: those of a batch
    // where losses go through it, one where only evaluations run it.
    let mut heads_part = PartShape::new("heads", ["heads."], 1);
    let mut between = 0;
    if masks {
        let trained = trains_through_masks(config)?;
        let picture = mask_scratch(config, trained)?;
        if trained {
            heads_part.scratch = picture;
        } else {
            between = picture;
        }
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
        between,
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

/// Sizes of the batches of every stage that can be looked at.
fn stage_sizes<H: HeadSet>(recipe: &Recipe) -> Result<Vec<Option<BatchSizes>>> {
    let named = NamedModel::new::<H>(&recipe.model)?;
    let context = DataContext::new(&named.config, &Arc::new(named.tokenizer));
    let stages = recipe.stages.iter().enumerate();
    let sizes = stages.map(|(i, stage)| batch_sizes::<H>(stage, recipe.stage_seed(i), &context));
    Ok(sizes.collect())
}

/// The shape of the model in every stage: with the stage's adapters, and for batches of its `sizes`, if
/// they are known.
fn staged_shapes<H: HeadSet>(
    recipe: &Recipe,
    sizes: &[Option<BatchSizes>],
) -> Result<Vec<ModelShape>> {
    let mut config = model_config::<H>(&recipe.model)?;
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
        let sizes = sizes.get(i).copied().flatten();
        shapes.push(shape_of::<H>(name_of(&recipe.model), &config, sizes)?);
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
    let sizes = if look {
        stage_sizes::<H>(recipe)?
    } else {
        Vec::new()
    };
    explain_sizes::<H>(recipe, &sizes)
}

fn explain_sizes<H: HeadSet>(recipe: &Recipe, sizes: &[Option<BatchSizes>]) -> Result<Explanation> {
    let shape = model_shape::<H>(&recipe.model)?;
    let staged = staged_shapes::<H>(recipe, sizes)?;
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

/// Has the parts of a recipe's model quantised so.
fn set_quantize(model: &mut ModelSpec, parts: Quantize) {
    model.quantize = parts.llm;
    model.quantize_vision = parts.vision;
}

/// Refuses a recipe one of whose stages takes more memory on the CPU, beside its towers, than there is.
/// Where that is bounded, towers get what the largest stage leaves.
///
/// # Errors
/// [`Error::Memory`](crate::Error::Memory) with what the stage takes in each number format; as
/// [`explain`].
pub(crate) fn check_memory<H: HeadSet>(recipe: &Recipe, options: &RunOptions) -> Result<()> {
    let memory = options.memory.or_else(available_memory);
    let Some(available) = memory.filter(|_| options.device == Device::flex()) else {
        return Ok(());
    };
    let largest = |recipe: &Recipe, checkpointing, sizes: &[_]| -> Result<MemoryEstimate> {
        let stages = explain_sizes::<H>(recipe, sizes)?.stages.into_iter();
        let largest = stages
            .map(|s| s.memory)
            .max_by_key(|m| m.total(checkpointing));
        Ok(largest.unwrap_or_default())
    };
    let asked = options.gradient_checkpointing;
    let towers = options.towers.as_ref();
    let to_open = towers.map_or(0, |t| t.bytes_to_open());
    let fits = |sizes: &[_]| -> Result<bool> {
        let need = largest(recipe, asked, sizes)?.total(asked);
        let fits = need + to_open <= available;
        if let (true, Some(towers), Some(all)) = (fits, towers, options.memory) {
            towers.keep_within(all.saturating_sub(need));
        }
        Ok(fits)
    };
    // If the longest rows fit, it does not matter which there are.
    let config = model_config::<H>(&recipe.model)?;
    let longest = BatchSizes::of_text(&config, usize::MAX)?;
    if fits(&vec![Some(longest); recipe.stages.len()])? {
        return Ok(());
    }
    let sizes = stage_sizes::<H>(recipe)?;
    if fits(&sizes)? {
        return Ok(());
    }
    let flags = |format: WeightFormat, checkpointing: bool| {
        let flags = format.flags();
        if checkpointing {
            format!("{flags} --gradient-checkpointing")
        } else {
            flags
        }
    };
    let narrow = recipe.stages.iter().all(|s| s.precision == Precision::Bf16);
    let wanted = WeightFormat {
        dtype: if narrow {
            FloatDType::BF16
        } else {
            FloatDType::F32
        },
        quantize: config.quantization(),
    };
    let mut other = recipe.clone();
    set_quantize(&mut other.model, Quantize::default());
    // The model as its files have it.
    let config = model_config::<H>(&other.model)?;
    let mut rows = Vec::new();
    for format in WeightFormat::of(&config, Some(wanted)) {
        // What a run would refuse is no way out.
        if !random_quantized(&recipe.model, format.quantize).is_empty() {
            continue;
        }
        let precision = match format.dtype {
            FloatDType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        set_precision(&mut other, precision);
        set_quantize(&mut other.model, format.quantize);
        for checkpointing in [false, true] {
            // Nor is what could not learn.
            let Ok(m) = largest(&other, checkpointing, &sizes) else {
                continue;
            };
            let learning = m.gradients + m.optimizer + m.checkpoint;
            let rest = m.total(checkpointing) - m.weights - learning;
            let bytes = [m.weights, learning, to_open, rest];
            rows.push((flags(format, checkpointing), bytes));
        }
    }
    let columns = ["weights", "learning", "towers", "activations"];
    let asked = flags(wanted, asked);
    let otherwise = otherwise(to_open);
    Err(refused(columns, rows, &asked, available, otherwise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BuiltInHeads;

    /// Rows of the table are in their own number format, and none is offered that a run refuses.
    #[test]
    fn the_table_of_a_bf16_recipe() {
        let recipe = Recipe::read::<&str>(
            r#"
            name = "narrow"
            model = { preset = "videochat-tpo" }
            [[stages]]
            name = "lora"
            length = { steps = 1 }
            batch_size = 1
            precision = "bf16"
            groups = [{ name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-4 }]
            "#,
            "r",
            &[],
        )
        .unwrap();
        let options = RunOptions {
            memory: Some(1 << 30),
            ..RunOptions::new("", &Device::flex())
        };
        let refused = check_memory::<BuiltInHeads>(&recipe, &options).unwrap_err();
        let text = refused.to_string();
        let weights = |flags: &str| -> f64 {
            let mut lines = text.lines();
            let line = lines.find(|l| l.starts_with(&format!("{flags} ")));
            let column = line.unwrap_or_else(|| panic!("{flags}: {text}"));
            column.split_whitespace().nth(2).unwrap().parse().unwrap()
        };
        let [wide, narrow] = ["--dtype f32", "--dtype bf16"].map(weights);
        assert!((1.9..2.1).contains(&(wide / narrow)), "{text}");
        // Its weights are random.
        assert!(!text.contains("--quantize"), "{text}");
    }
}
