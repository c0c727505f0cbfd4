//! Recipes: everything about a run in one TOML file.
//!
//! A [`Recipe`] names a model, the stages it goes through and where checkpoints and logs go. It
//! is read with [`Recipe::read`], which reports **all** problems at once, each with its line, its
//! key and the nearest name that exists, and takes `key=value` overrides as a command line gives
//! them. [`Recipe::to_toml`] writes it out with every default filled in; that text lies beside
//! every checkpoint, and [`Recipe::changes`] compares it with the recipe of a run that resumes.
//!
//! # Recipes that share
//!
//! `extends = "base.toml"` reads another recipe first; the path counts from the folder of the file that
//! says it, and the base may extend a third. A table is merged key by key. A list of tables with names
//! (stages, groups, sources) is merged by name: a known member is merged like a table and stays where it
//! is, a new one comes before the known member that follows it in the list, or at the end. Everything
//! else, lists of plain values included, is replaced, and of keys that exclude each other (`steps` and
//! `epochs`; `preset`, `sizes` and `directory`; `annotations` and `synthetic`) the one given takes the
//! place of the others.
//!
//! `[every_stage]` holds what every stage of the recipe has unless the stage says otherwise, wherever it
//! says it; a stage is merged onto it by the same rule, after the files were merged.
//!
//! Neither is left in the recipe that is read, so neither stands in [`Recipe::to_toml`], and overrides
//! change the merged recipe. Messages name the file and line that a value comes from.

mod changes;
mod evaluation;
mod extends;
mod overrides;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tpo_core::LoraConfig;
use tpo_core::head::HeadConfigs;
use tpo_core::ops::QuantFormat;

pub use changes::Change;
pub use evaluation::EvaluationSpec;
pub use tpo_data::feed::{MixtureSpec, SourceSpec};

use crate::error::{Result, TrainError};
use crate::stage::{self, Stage};

/// Frames and pixels of a model that a world can surely be drawn for; the model itself is not
/// known where a recipe is read.
pub(crate) const ANY_MODEL: (usize, usize) = (16, 64);

/// A run: the model, what it learns in which order, what is kept of it.
///
/// ```
/// use tpo_train::Recipe;
///
/// let recipe = Recipe::read(
///     r#"
///     name = "heads-only"
///     model = { preset = "mini" }
///
///     [[stages]]
///     name = "heads"
///     length = { epochs = 3 }
///     batch_size = 4
///     checkpoint_every = { steps = 100 }
///
///     [[stages.groups]]
///     name = "region"
///     patterns = ["heads.region.**", "task_tokens.region"]
///     learning_rate = 1e-4
///     "#,
///     "recipe.toml",
///     &["stages.heads.batch_size=8"],
/// )?;
/// assert_eq!(recipe.stages[0].batch_size, 8);
/// # Ok::<(), tpo_train::TrainError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run, for logs: letters, digits, `-`, `_`.
    pub name: String,
    /// Seed of everything random: initial weights, order of samples, dropout. Stages may have
    /// their own.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The model that is trained.
    pub model: ModelSpec,
    /// What is kept of the run.
    #[serde(default)]
    pub checkpoints: CheckpointSpec,
    /// What is reported of the run.
    #[serde(default)]
    pub logging: LoggingSpec,
    /// The stages in order. Each starts from the weights at which the one before it ended.
    pub stages: Vec<Stage>,
}

/// Seed of the training arguments published with the reference checkpoint.
fn default_seed() -> u64 {
    42
}

/// Which model, and from which weights it starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSpec {
    /// Name of built-in sizes, with random weights. One of this, `sizes` and `directory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// A model directory of which sizes and tokenizer are taken; the weights are random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizes: Option<PathBuf>,
    /// A model directory: sizes, weights and tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// A checkpoint of an earlier run whose weights are put over those of the model, for example
    /// the end of the stage before. The newest one when it is a run's directory. A model directory
    /// does, too, if checkpoints hold all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    /// Patterns, as those of groups, of parameters that are not taken from `start`: heads that
    /// begin anew, say.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::before::patterns"
    )]
    pub fresh: Vec<String>,
    /// A Hugging Face directory or a GGUF file whose language model and tokenizer take the place of those of a
    /// small preset; heads and their tokens are new then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<PathBuf>,
    /// Frames that are sampled from a video, where the model's own number is to be another. Only of an encoder that
    /// sees one picture at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// Configurations of heads by name: of those the base does not have, and fields of others that
    /// are to be other than the base has them.
    #[serde(skip_serializing_if = "is_empty")]
    pub heads: HeadConfigs,
    /// Task tokens of heads that the base does not have, which begin as that of another head instead
    /// of at random: `task_tokens = { point = "region" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub task_tokens: BTreeMap<String, String>,
    /// Adapters of the language model, in place of those that preset or directory name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Quantises the linear layers of the language model while they are read (QLoRA): they are
    /// fixed then, and gradients pass through them to adapters, tokens and heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<QuantFormat>,
    /// Quantises the linear layers of the vision encoder likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize_vision: Option<QuantFormat>,
}

fn is_empty(heads: &HeadConfigs) -> bool {
    heads.0.is_empty()
}

/// What of a run's checkpoints is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// The newest so many are kept; the last of every stage stays in any case.
    pub keep_last: usize,
    /// The best by an evaluation is kept too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<BestSpec>,
    /// Which weights are written.
    pub weights: SavedWeights,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self {
            keep_last: 3,
            keep_best: None,
            weights: SavedWeights::Trained,
        }
    }
}

/// Which weights a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedWeights {
    /// Those that this stage or an earlier one trained: adapters, tokens, heads. The rest is that
    /// of the model the recipe names.
    #[default]
    Trained,
    /// All of them.
    All,
}

/// The value that decides which checkpoint is best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestSpec {
    /// Name of a value in the metrics, for example `eval/region/acc@0.5`.
    pub metric: String,
    /// Which way is better.
    #[serde(default)]
    pub goal: Goal,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Larger values.
    #[default]
    Max,
    /// Smaller values.
    Min,
}

/// What is reported of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingSpec {
    /// A line of `metrics.jsonl` every so many optimizer steps.
    pub every_steps: u64,
    /// Whether TensorBoard event files are written too.
    pub tensorboard: bool,
    /// Whether a picture of the curves is drawn at the end.
    pub curves: bool,
}

impl Default for LoggingSpec {
    fn default() -> Self {
        Self {
            every_steps: 1,
            tensorboard: true,
            curves: true,
        }
    }
}

impl Recipe {
    /// Whether no stage after `stage` is evaluated.
    pub(crate) fn is_last_evaluated(&self, stage: &str) -> bool {
        let last = self.stages.iter().rfind(|s| s.evaluation.is_some());
        last.is_none_or(|s| s.name == stage)
    }

    /// Whether checkpoints are written in the middle of a stage, not at its end alone.
    pub fn writes_within(&self, stage: &Stage) -> bool {
        let best = self.checkpoints.keep_best.is_some() && stage.evaluation.is_some();
        stage.checkpoint_every.is_some() || (best && stage.evaluate_every.is_some())
    }

    /// Reads a recipe and validates it. `origin` names the text in messages, for example the
    /// file; what the text [extends](self#recipes-that-share) counts from the folder of that file. `overrides` are `key=value` with dotted keys: `seed=7`,
    /// `stages.heads.schedule.floor=0.1`, `stages.0.batch_size=8`; members of a list go by index
    /// or by their `name`. A value has the type of the one it replaces, and takes the place of what excludes it.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] for text that is not TOML. [`TrainError::InvalidRecipe`] with every
    /// problem of text and overrides, or with the one of an `extends` that cannot be followed.
    pub fn read<S: AsRef<str>>(text: &str, origin: &str, overrides: &[S]) -> Result<Self> {
        read::recipe(text, origin, overrides)
    }

    /// [`Recipe::read`] of a file.
    ///
    /// # Errors
    /// As [`Recipe::read`]; [`TrainError::Io`] when the file cannot be read.
    pub fn open<S: AsRef<str>>(path: impl AsRef<Path>, overrides: &[S]) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(TrainError::io("reading", path))?;
        Self::read(&text, &path.display().to_string(), overrides)
    }

    /// The recipe as TOML, every default written out; [`Recipe::read`] reads it back.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] when a number is too large for TOML (64-bit signed).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| TrainError::Recipe {
            origin: "this recipe as TOML".into(),
            message: e.to_string(),
        })
    }

    /// Checks all values.
    ///
    /// # Errors
    /// [`TrainError::InvalidRecipe`] with every problem.
    pub fn validate(&self) -> Result<()> {
        let problems = self.problems();
        if problems.is_empty() {
            return Ok(());
        }
        Err(TrainError::InvalidRecipe {
            origin: format!("recipe `{}`", self.name),
            problems,
        })
    }

    /// The seed of a stage: its own, or one made of the recipe's and the stage's place.
    pub fn stage_seed(&self, stage: usize) -> u64 {
        let own = self.stages.get(stage).and_then(|s| s.seed);
        own.unwrap_or_else(|| self.seed.wrapping_add(stage as u64))
    }

    /// Everything out of range, each with its key.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let in_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(in_name) {
            problems.push("name must be letters, digits, `-` and `_`, and not empty".into());
        }
        // The largest integer of TOML; beyond it the recipe cannot be written beside a checkpoint.
        let seeds = std::iter::once(("seed".to_string(), Some(self.seed))).chain(
            self.stages
                .iter()
                .enumerate()
                .map(|(i, s)| (format!("stages[{i}].seed"), s.seed)),
        );
        for (at, seed) in seeds {
            if seed.is_some_and(|s| i64::try_from(s).is_err()) {
                problems.push(format!("{at} must be below 2^63"));
            }
        }
        self.model.problems(&mut problems);
        if self.checkpoints.keep_last == 0 {
            problems.push(
                "checkpoints.keep_last is 0; must be at least 1, the newest one is what resumes"
                    .into(),
            );
        }
        if let Some(best) = &self.checkpoints.keep_best {
            if !best.metric.starts_with("eval/") {
                problems.push(format!(
                    "checkpoints.keep_best.metric is `{}`; must be a value of an evaluation, for \
                     example `eval/loss` or `eval/region/acc@0.5`",
                    best.metric
                ));
            }
            if self.stages.iter().all(|s| s.evaluation.is_none()) {
                problems.push(
                    "checkpoints.keep_best: no stage has an `evaluation` that could tell".into(),
                );
            }
        }
        for (i, stage) in self.stages.iter().enumerate() {
            if stage.evaluate_every.is_some() && stage.evaluation.is_none() {
                problems.push(format!(
                    "stages[{i}] `{}`.evaluate_every: there is nothing to evaluate on; add \
                     `evaluation = {{ data = {{ sources = [..] }} }}`",
                    stage.name
                ));
            }
        }
        if self.logging.every_steps == 0 {
            problems.push("logging.every_steps is 0; must be at least 1".into());
        }
        problems.extend(stage::problems(&self.stages));
        problems
    }
}

impl ModelSpec {
    fn problems(&self, problems: &mut Vec<String>) {
        let given = [
            self.preset.is_some(),
            self.sizes.is_some(),
            self.directory.is_some(),
        ];
        match given.into_iter().filter(|g| *g).count() {
            0 => problems.push(
                "model: needs `preset` (built-in sizes), `sizes` (a directory with sizes and \
                 tokenizer) or `directory` (a model directory)"
                    .into(),
            ),
            1 => {}
            _ => {
                problems.push("model: `preset`, `sizes` and `directory` exclude each other".into())
            }
        }
        if self.start.is_none() && !self.fresh.is_empty() {
            problems.push("model.fresh: without `start` everything is fresh; leave it out".into());
        }
        if let Some(lora) = &self.lora {
            problems.extend(lora.problems("model.lora"));
        }
    }
}
