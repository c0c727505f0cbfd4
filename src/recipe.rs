//! The models that recipes name.
//!
//! A [`Recipe`] says `model = { preset = "mini" }` or `{ directory = "…" }`; here is what that is
//! in this build, and what [`explain`] finds out about a recipe without loading a weight.

use std::io::{BufRead, BufReader};
use std::path::Path;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_core::traits::AdapterSettings;
use tpo_llm::{LORA_TARGETS, LoraConfig};
use tpo_train::explain::{Explanation, ModelShape, PartShape};
use tpo_train::recipe::{LoraSpec, ModelSpec, Recipe, SourceSpec};
use tpo_train::{HeadNames, TrainError};

use crate::config::TpoConfig;
use crate::error::{Error, Result};
use crate::model_dir::{mini_tokenizer, read_config};

/// Names a recipe may give as `model.preset`.
pub const PRESETS: [&str; 2] = ["videochat-tpo", "mini"];

/// Longest prompt in tokens (reference implementation: `max_length`).
const MAX_PROMPT: usize = 1024;

/// Sizes of the model that a recipe names, with its adapters.
///
/// # Errors
/// [`Error::Train`] with every problem of the section: a preset that does not exist, adapters for
/// layers that do not exist. [`Error::ModelDir`] for a directory that holds no model.
pub fn model_config(spec: &ModelSpec) -> Result<TpoConfig> {
    let mut problems = Vec::new();
    let base = match (spec.preset.as_deref(), &spec.directory) {
        (Some("videochat-tpo"), None) => Some(TpoConfig::videochat_tpo()),
        (Some("mini"), None) => {
            let tokenizer = mini_tokenizer()?;
            Some(TpoConfig::mini(tokenizer.vocab_size()))
        }
        (Some(other), None) => {
            problems.push(format!(
                "model.preset: there is no `{other}`; there are: {}",
                PRESETS.join(", ")
            ));
            None
        }
        (None, Some(dir)) if !dir.is_dir() => {
            problems.push(format!(
                "model.directory: {} is not a directory; put the model's files there, or take a \
                 preset ({})",
                dir.display(),
                PRESETS.join(", ")
            ));
            None
        }
        (None, Some(dir)) => Some(read_config(dir)?),
        _ => {
            problems.push("model: needs either `preset` or `directory`".into());
            None
        }
    };
    let lora = spec.lora.as_ref().map(|lora| {
        for target in &lora.targets {
            if !LORA_TARGETS.contains(&target.as_str()) {
                problems.push(format!(
                    "model.lora.targets: there is no layer `{target}`; there are: {}",
                    LORA_TARGETS.join(", ")
                ));
            }
        }
        lora_config(lora)
    });
    match base {
        Some(mut config) if problems.is_empty() => {
            if lora.is_some() {
                config.llm.lora = lora;
            }
            config.validate()?;
            Ok(config)
        }
        _ => Err(TrainError::InvalidRecipe {
            origin: "the recipe's model".into(),
            problems,
        }
        .into()),
    }
}

/// Adapters of a recipe as the language model's configuration has them.
pub(crate) fn lora_config(spec: &LoraSpec) -> LoraConfig {
    LoraConfig::from(&AdapterSettings::from(spec))
}

/// The shape of the model that a recipe names. No weight is drawn or read.
///
/// # Errors
/// As [`model_config`].
pub fn model_shape(spec: &ModelSpec) -> Result<ModelShape> {
    let config = model_config(spec)?;
    let model = config.init(&Device::flex())?;
    let heads: Vec<String> = model.heads.specs().into_iter().map(|s| s.name).collect();
    let name = match (&spec.preset, &spec.directory) {
        (Some(preset), _) => format!("preset {preset}"),
        (_, Some(dir)) => dir.display().to_string(),
        _ => String::new(),
    };
    let visual = config.connector.qformer.n_query();
    let grid = config.vision.img_size / config.vision.patch_size.max(1);
    let tokens = config.input.frames / config.vision.tubelet_size.max(1) * grid * grid;
    let prompt = MAX_PROMPT.min(config.llm.max_position_embeddings);
    let parts = vec![
        PartShape::new("vision", ["vision."], tokens),
        PartShape::new("connector", ["connector."], visual)
            .with_rows_of("crossattention.self.key", tokens)
            .with_rows_of("crossattention.self.value", tokens),
        PartShape::new("task tokens", ["task_tokens."], 0),
        PartShape::new("llm", ["llm."], prompt),
        // Once per task token; what a frozen tower does is not kept.
        PartShape::new("heads", ["heads."], 1),
    ];
    let mut shape = ModelShape::of(name, &model, HeadNames::default(), parts);
    shape.heads = HeadNames::new(heads);
    Ok(shape)
}

/// What a recipe would do: which parts learn how fast, how long it takes, how much memory it
/// needs. Reads no weight; files of annotations that exist are counted.
///
/// # Errors
/// As [`model_config`] and [`Recipe::explain`].
pub fn explain(recipe: &Recipe) -> Result<Explanation> {
    let shape = model_shape(&recipe.model)?;
    Ok(recipe.explain(&shape, &rows)?)
}

/// Rows of a source whose file is there.
fn rows(source: &SourceSpec) -> Option<u64> {
    count_lines(source.annotations.as_deref()?).ok()
}

fn count_lines(path: &Path) -> std::io::Result<u64> {
    let mut file = BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
    let (mut lines, mut rest) = (0, false);
    loop {
        let block = file.fill_buf()?;
        let Some(last) = block.last() else {
            return Ok(lines + u64::from(rest));
        };
        lines += block.iter().filter(|b| **b == b'\n').count() as u64;
        rest = *last != b'\n';
        let read = block.len();
        file.consume(read);
    }
}

impl Error {
    /// Every problem, when this is about a recipe.
    pub fn recipe_problems(&self) -> Option<&[String]> {
        match self {
            Error::Train(TrainError::InvalidRecipe { problems, .. }) => Some(problems),
            _ => None,
        }
    }
}
