//! The model that a recipe names: what of it is in files, what its heads add, and its weights.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, FloatDType};
use serde_json::Value;
use tpo_core::head::{HeadSet, HeadSpec};
use tpo_core::model::CallOrder;
use tpo_core::token::{TaskRegistry, TaskTokens, TokenId};
use tpo_core::weights::{DtypePolicy, module_params};
use tpo_llm::tokenizer::{AddedToken, Tokenizer};
use tpo_llm::{
    GgufModel, HfOptions, LORA_TARGETS, LlmConfig, TokenPlan, VocabularyRows, from_pretrained,
    vocabulary,
};
use tpo_train::checkpoint::{SavedCheckpoint, files};
use tpo_train::recipe::{ModelSpec, Recipe, SavedWeights};
use tpo_train::run_directory::{find_checkpoint, materialise};
use tpo_train::{PathPattern, Precision, TrainError};

use super::data::token_problems;
use crate::error::{Error, Result};
use crate::model::{
    BuiltInHeads, CONFIG_FILE, Quantize, Tpo, TpoConfig, byte_tokenizer, byte_tokenizer_files,
    load_model, load_over, mini, model_tokenizer, no_head, read_config, tokenizer_files,
};

/// Names a recipe may give as `model.preset`.
pub const PRESETS: [&str; 5] = [
    "videochat-tpo",
    "llava-ov-tpo-0.5b",
    "llava-ov-tpo-7b",
    "mini",
    "nano",
];

/// The published sizes of that name, which are for `--explain`.
fn published_sizes(preset: &str) -> Option<TpoConfig> {
    match preset {
        "videochat-tpo" => Some(TpoConfig::videochat_tpo()),
        "llava-ov-tpo-0.5b" => Some(TpoConfig::llava_ov_tpo_0_5b()),
        "llava-ov-tpo-7b" => Some(TpoConfig::llava_ov_tpo_7b()),
        _ => None,
    }
}

/// Why published sizes do not train.
fn sizes_alone(preset: &str, tasks: &TaskRegistry, tokenizer: &Tokenizer) -> String {
    let first_to_last = |ids: Vec<u32>| {
        let ends = (ids.iter().min(), ids.iter().max());
        ends.0
            .zip(ends.1)
            .map_or("absent".into(), |(a, b)| format!("{a} to {b}"))
    };
    let own = tasks.tokens().map(|t| t.id).collect();
    let bytes = tasks.tokens();
    let bytes = bytes.filter_map(|t| tokenizer.token_to_id(&t.token));
    format!(
        "model.preset: `{preset}` has the published sizes for `--explain`, with task tokens {}, and the \
         byte tokenizer, in which they are {}: no answer would call a head; to train, name the \
         directory that `tpo assemble` writes: model.directory = \"models/..\"",
        first_to_last(own),
        first_to_last(bytes.collect())
    )
}

/// A model that a recipe names.
#[derive(Debug)]
pub struct RecipeModel<H = BuiltInHeads> {
    /// The model, on its device, without autodiff.
    pub model: Tpo<H>,
    /// Its sizes.
    pub config: TpoConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The tokenizer's files (name, bytes), for exports.
    pub tokenizer_files: Vec<(String, Vec<u8>)>,
    /// The checkpoint its `start` names; `None` for a model directory, too.
    pub start: Option<SavedCheckpoint>,
}

/// What a recipe says of its model, put together before a weight is read.
pub(crate) struct NamedModel {
    /// The model as it will be, with the adapters of the recipe and the heads of the program.
    pub config: TpoConfig,
    /// Its tokenizer, with the tokens of new heads.
    pub tokenizer: Tokenizer,
    /// The tokenizer's files, likewise.
    pub files: Vec<(String, Vec<u8>)>,
    /// Rows of the tables that new tokens take or add, if there are any.
    rows: Option<VocabularyRows>,
    /// Heads that the files have no weights of.
    new_heads: Vec<String>,
}

/// Sizes of the model that a recipe names, with its adapters and the program's heads.
///
/// # Errors
/// [`Error::Train`] with every problem of the section: a preset that does not exist, adapters for
/// layers that do not exist. [`Error::ModelDir`] for a directory that holds no model.
pub fn model_config<H: HeadSet>(spec: &ModelSpec) -> Result<TpoConfig> {
    Ok(NamedModel::new::<H>(spec)?.config)
}

impl NamedModel {
    pub(crate) fn new<H: HeadSet>(spec: &ModelSpec) -> Result<Self> {
        let mut problems = base_problems(spec);
        for target in spec.lora.iter().flat_map(|lora| &lora.targets) {
            if !LORA_TARGETS.contains(&target.as_str()) {
                problems.push(format!(
                    "model.lora.targets: there is no layer `{target}`; there are: {}",
                    LORA_TARGETS.join(", ")
                ));
            }
        }
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        let (mut config, tokenizer, files) = base(spec)?;
        if let Some(frames) = spec.frames {
            if config.vision.sees_pictures() {
                config.input.frames = frames;
            } else {
                problems.push(format!(
                    "model.frames: the model's encoder sees clips of {} frames together, and its tokens \
                     are of that many; leave it out",
                    config.input.frames
                ));
            }
        }
        // Models were exported without the configurations of heads that nothing was written of.
        let tasks = config.tasks.tasks().iter().map(|t| &t.name);
        let known: Vec<String> = config.heads.0.keys().chain(tasks).cloned().collect();
        for (name, written) in &spec.heads.0 {
            let own = config.heads.0.entry(name.clone()).or_insert(Value::Null);
            overlay(own, written);
        }
        if let Some(lora) = &spec.lora {
            config.llm.lora = Some(config.llm.adapters(lora));
        }
        config.quantize(spec.into())?;
        // Routing and task token stay in the context of what is trained.
        config.call_order = CallOrder::AsTrained;
        let specs = H::specs();
        let mut named = Self {
            // A language model from elsewhere brings no head.
            new_heads: match spec.llm {
                Some(_) => Vec::new(),
                None => {
                    let names = specs.iter().map(|s| s.name.clone());
                    names.filter(|n| !known.contains(n)).collect()
                }
            },
            config,
            tokenizer,
            files,
            rows: None,
        };
        let heads: Vec<String> = specs.iter().map(|s| s.name.clone()).collect();
        for (head, like) in &spec.task_tokens {
            if let Some(name) = [head, like].into_iter().find(|n| !heads.contains(n)) {
                problems.push(no_head(&format!("model.task_tokens: `{name}`"), &heads));
            } else if !named.new_heads.contains(head) || named.new_heads.contains(like) {
                problems.push(format!(
                    "model.task_tokens: `{head}` must be a head that the base does not have and \
                     `{like}` one that it has; the token of a trained head is its own, leave it out"
                ));
            }
        }
        if !problems.is_empty() {
            return Err(invalid(problems));
        }
        named.add_tokens(&specs)?;
        named.config.validate::<H>()?;
        // What is exported says of every head that it is there, and what it is, whatever the
        // defaults of a later program are.
        named.config.heads = H::resolve(&named.config.heads)?;
        Ok(named)
    }

    /// Checks that the tokenizer gives the task tokens the ids that the model has: else no placeholder
    /// is found, no head is called and only the loss of the language model learns.
    ///
    /// # Errors
    /// [`Error::Train`] with every token, and what to name as the model instead.
    pub(crate) fn check_tokens(&self, spec: &ModelSpec) -> Result<()> {
        let problems = token_problems(&self.config, &self.tokenizer);
        if problems.is_empty() {
            return Ok(());
        }
        if let Some(preset) = spec
            .preset
            .as_deref()
            .filter(|p| published_sizes(p).is_some())
        {
            let why = sizes_alone(preset, &self.config.tasks, &self.tokenizer);
            return Err(invalid(vec![why]));
        }
        Err(invalid(problems))
    }

    /// Registers the heads that the base has no tokens of.
    fn add_tokens(&mut self, specs: &[HeadSpec]) -> Result<()> {
        let new: Vec<&HeadSpec> = specs
            .iter()
            .filter(|s| self.config.tasks.get(&s.name).is_none())
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let tokens = new.iter().flat_map(|s| [&s.routing, &s.placeholder]);
        let taken = tokens
            .clone()
            .filter(|t| self.tokenizer.token_to_id(t).is_some());
        let taken = taken.map(|token| {
            format!(
                "model: the token `{token}` of a head that the base does not have is a word of the \
                 base's own; give the head other tokens (TaskHead::spec, TaskHead::NAME)"
            )
        });
        let taken: Vec<String> = taken.collect();
        if !taken.is_empty() {
            return Err(invalid(taken));
        }
        let plan = TokenPlan::new(
            &self.tokenizer,
            self.config.llm.vocab_size,
            tokens.map(String::as_str),
        );
        let added: Vec<AddedToken> = plan.ids().map(|(t, _)| AddedToken::new(t)).collect();
        self.tokenizer.add_tokens(&added)?;
        let id = |token: &str| {
            let found = plan.ids().find(|(t, _)| *t == token);
            TokenId::new(token, found.map_or(u32::MAX, |(_, id)| id))
        };
        for spec in new {
            self.config.tasks.register(TaskTokens {
                name: spec.name.clone(),
                routing: id(&spec.routing),
                placeholder: id(&spec.placeholder),
            })?;
        }
        self.files = self.tokenizer.write_added(&self.files)?;
        let rows = self.config.llm.vocab_size.max(plan.rows.total);
        self.config.llm.vocab_size = rows;
        self.rows = (plan.rows.total > plan.rows.used).then_some(plan.rows);
        Ok(())
    }
}

/// What is wrong with how the base is named.
fn base_problems(spec: &ModelSpec) -> Vec<String> {
    let mut problems = Vec::new();
    let dirs = [
        ("sizes", &spec.sizes),
        ("directory", &spec.directory),
        ("llm", &spec.llm),
    ];
    for (field, dir) in dirs {
        // A language model may be a GGUF file.
        let there = |path: &Path| path.is_dir() || (field == "llm" && path.is_file());
        if let Some(dir) = dir.as_ref().filter(|dir| !there(dir)) {
            problems.push(format!(
                "model.{field}: {} is {}; put the model's files there (`tpo assemble` makes a directory of \
                  published files), or take a preset ({}), of which the first three have published sizes \
                  for --explain (model.preset=videochat-tpo)",
                dir.display(),
                match field {
                    "llm" => "neither a directory nor a GGUF file",
                    _ => "not a directory",
                },
                PRESETS.join(", ")
            ));
        }
    }
    match (spec.preset.as_deref(), &spec.sizes, &spec.directory) {
        (Some(preset), None, None) if !PRESETS.contains(&preset) => problems.push(format!(
            "model.preset: there is no `{preset}`; there are: {}",
            PRESETS.join(", ")
        )),
        (Some(preset), None, None) if spec.llm.is_some() && preset != "nano" => {
            problems.push(format!(
                "model.llm: takes the place of the language model of the preset `nano`, not of `{preset}`"
            ));
        }
        (Some(_), None, None) => {}
        (None, Some(_), None) | (None, None, Some(_)) if spec.llm.is_none() => {}
        (None, Some(_), None) | (None, None, Some(_)) => problems
            .push("model.llm: takes the place of the language model of `preset = \"nano\"`".into()),
        _ => problems.push("model: needs one of `preset`, `sizes` and `directory`".into()),
    }
    problems
}

/// Files by name, as a directory has them.
type Files = Vec<(String, Vec<u8>)>;

/// The base of a recipe: its sizes, its tokenizer and the tokenizer's files.
fn base(spec: &ModelSpec) -> Result<(TpoConfig, Tokenizer, Files)> {
    if let Some(file) = spec.llm.as_ref().filter(|path| path.is_file()) {
        let model = GgufModel::open(file)?;
        let config = TpoConfig::small(model.config().clone());
        return Ok((config, model.tokenizer()?, model.tokenizer_files().to_vec()));
    }
    if let Some(dir) = &spec.llm {
        let path = dir.join("config.json");
        let json = std::fs::read_to_string(&path).map_err(|e| Error::ModelDir {
            path,
            why: e.to_string(),
        })?;
        let config = TpoConfig::small(LlmConfig::from_hf_json(&json)?);
        return Ok((config, Tokenizer::from_dir(dir)?, tokenizer_files(dir)?));
    }
    if let Some(dir) = spec.sizes.as_ref().or(spec.directory.as_ref()) {
        let config = read_config(dir)?;
        let tokenizer = model_tokenizer(dir, &config)?;
        return Ok((config, tokenizer, tokenizer_files(dir)?));
    }
    Ok(match spec.preset.as_deref() {
        Some("mini") => (
            mini::mini_config()?,
            mini::mini_tokenizer()?,
            mini::mini_tokenizer_files(),
        ),
        preset => {
            let tokenizer = byte_tokenizer()?;
            let config = preset.and_then(published_sizes);
            let config = config.unwrap_or_else(|| TpoConfig::nano(tokenizer.vocab_size()));
            (config, tokenizer, byte_tokenizer_files())
        }
    })
}

/// Writes the fields of one table over those of another.
fn overlay(own: &mut Value, written: &Value) {
    match (own, written) {
        (Value::Object(own), Value::Object(written)) => {
            for (key, value) in written {
                overlay(own.entry(key).or_insert(Value::Null), value);
            }
        }
        (own, written) => *own = written.clone(),
    }
}

fn invalid(problems: Vec<String>) -> Error {
    TrainError::InvalidRecipe {
        origin: "the recipe's model".into(),
        problems,
    }
    .into()
}

/// Keys of a recipe's model that would quantise weights which are in no file.
pub(super) fn random_quantized(spec: &ModelSpec, parts: Quantize) -> Vec<&'static str> {
    let start = spec.start.as_ref();
    let whole =
        spec.directory.is_some() || start.is_some_and(|start| start.join(CONFIG_FILE).is_file());
    let llm = parts.llm.filter(|_| !whole && spec.llm.is_none());
    let vision = parts.vision.filter(|_| !whole);
    let random = [llm.map(|_| "quantize"), vision.map(|_| "quantize_vision")];
    random.into_iter().flatten().collect()
}

impl From<&ModelSpec> for Quantize {
    fn from(spec: &ModelSpec) -> Self {
        Self {
            llm: spec.quantize,
            vision: spec.quantize_vision,
        }
    }
}

/// Builds the model of a recipe: weights of the directory, or random ones drawn from the recipe's
/// seed, always the same; over them those of the checkpoint or model directory that `model.start`
/// names. Heads that the directory does not have are drawn, their tokens get rows.
///
/// # Errors
/// As [`model_config`] and weight import;
/// [`Error::Train`] when `start` is neither or does not fit.
pub fn recipe_model<H: HeadSet>(recipe: &Recipe, device: &Device) -> Result<RecipeModel<H>> {
    let spec = &recipe.model;
    let named = NamedModel::new::<H>(spec)?;
    named.check_tokens(spec)?;
    let config = named.config;
    let random = random_quantized(spec, spec.into());
    if !random.is_empty() {
        let problem = |key| {
            format!(
                "model.{key}: random weights are not quantised, they could not learn; name a model by \
                 `directory`, or leave it out"
            )
        };
        return Err(invalid(random.into_iter().map(problem).collect()));
    }
    // Stages in 16 bits take the files as they are: what learns keeps a copy of 32 bits in the
    // optimizer, and what does not is in 16 bits in memory, too.
    let narrow = recipe.stages.iter().all(|s| s.precision == Precision::Bf16);
    let dtype = (!narrow).then_some(FloatDType::F32);
    // For what the files lack, and for everything when there are none.
    device.seed(recipe.seed);
    // What files may lack.
    let new_heads = named.new_heads.iter();
    let mut missing: Vec<String> = new_heads
        .map(|head| format!(r"^(heads\.{head}\.|task_tokens\.{head}$)"))
        .collect();
    missing.extend(spec.lora.as_ref().map(|_| r"\.lora\.[ab]$".to_string()));
    let mut model = match (&spec.directory, &spec.llm) {
        (Some(dir), _) => {
            let mut before = config.clone();
            if let Some(rows) = named.rows {
                let tables = read_config(dir)?.llm.vocab_size;
                before.llm.vocab_size = tables.max(rows.used);
            }
            let policy = match dtype {
                Some(dtype) if *device == Device::flex() => DtypePolicy::Cast(dtype),
                _ => DtypePolicy::Keep,
            };
            load_model(dir, &before, device, policy, missing.clone())?
        }
        (None, Some(dir)) => {
            let mut model: Tpo<H> = config.assemble(device)?;
            let options = HfOptions {
                dtype,
                quantize: config.llm.quantization,
            };
            let lm = from_pretrained(dir, device, options, None)?.lm;
            model.llm = match &config.llm.lora {
                Some(lora) => lm.replace_lora(Some(lora.clone()))?,
                None => lm,
            };
            model
        }
        (None, None) => config.assemble(device)?,
    };
    if let (Some(rows), true) = (named.rows, spec.directory.is_some() || spec.llm.is_some()) {
        model.llm = model.llm.with_vocabulary(rows)?;
    }
    materialise(&model);
    for (head, like) in &spec.task_tokens {
        let value = model.task_tokens.get(like).map(|t| t.val());
        if let (true, Some(value)) = (named.new_heads.contains(head), value) {
            model.task_tokens.set(head, value);
        }
    }
    let tokens = model.registry().tokens();
    let tokens = tokens.map(|t| (t.token.as_str(), t.id));
    vocabulary::check(tokens, &named.tokenizer, &model.llm)?;
    let mut start = None;
    if let Some(path) = &spec.start {
        let fresh = fresh_patterns(&spec.fresh, &model)?;
        let left_out = |path: &str| fresh.iter().any(|p| p.matches(path));
        if path.join(CONFIG_FILE).is_file() {
            model = start_from_directory(recipe, &config, path, model, missing, &left_out)?;
        } else {
            let from = find_checkpoint(path)?;
            let none = |_: &str| false;
            model = from.load_module_without(files::WEIGHTS, model, &none, &left_out)?;
            start = Some(from);
        }
    }
    Ok(RecipeModel {
        model,
        config,
        tokenizer: Arc::new(named.tokenizer),
        tokenizer_files: named.files,
        start,
    })
}

/// The weights of the model directory `path` over those of `model`. It may lack what matches
/// `missing`.
fn start_from_directory<H: HeadSet>(
    recipe: &Recipe,
    config: &TpoConfig,
    path: &Path,
    model: Tpo<H>,
    missing: Vec<String>,
    left_out: &dyn Fn(&str) -> bool,
) -> Result<Tpo<H>> {
    if recipe.checkpoints.weights == SavedWeights::Trained {
        let problem = format!(
            "model.start: {} is a model directory, whose weights the run's checkpoints would lack; set \
             checkpoints.weights = \"all\", or name it as model.directory",
            path.display()
        );
        return Err(invalid(vec![problem]));
    }
    // Weights that were drawn are f32; those of a directory keep the type of the file.
    let dtype = match recipe.model.directory {
        None => DtypePolicy::Cast(FloatDType::F32),
        Some(_) => DtypePolicy::Keep,
    };
    load_over(path, config, model, dtype, missing, left_out).map_err(|e| {
        invalid(vec![format!(
            "model.start: {e} What it lacks and is to be drawn goes into model.fresh: patterns such as \
             `heads.region.**`, `task_tokens.region`"
        )])
    })
}

fn fresh_patterns<H: HeadSet>(texts: &[String], model: &Tpo<H>) -> Result<Vec<PathPattern>> {
    let (mut patterns, mut problems) = (Vec::new(), Vec::new());
    let params = module_params(model);
    for text in texts {
        match PathPattern::parse(text) {
            Ok(pattern) if pattern.is_exclusion() => {
                problems.push(format!(
                    "model.fresh: `{text}` excludes; name what is fresh"
                ));
            }
            Ok(pattern) if !params.iter().any(|p| pattern.matches(&p.path)) => {
                problems.push(format!("model.fresh: `{text}` matches no parameter"));
            }
            Ok(pattern) => patterns.push(pattern),
            Err(why) => problems.push(format!("model.fresh: `{text}` {why}")),
        }
    }
    if problems.is_empty() {
        return Ok(patterns);
    }
    Err(invalid(problems))
}
