//! Stages of training.

mod heads;
mod optimizer;
#[cfg(test)]
mod tests;

use burn::module::Module;
use serde::{Deserialize, Serialize};
use tpo_core::LoraConfig;

pub use heads::learning_heads;
pub(crate) use heads::place;
pub use optimizer::{AdamW, Muon, Precision};

use crate::check::Check;
use crate::error::{Result, TrainError};
use crate::groups::{ParamGroupSpec, ResolvedGroups, ResolvedParam, resolve, resolve_params};
use crate::loss::LossWeights;
use crate::recipe::{ANY_MODEL, EvaluationSpec, MixtureSpec};
use crate::schedule::LrSchedule;

/// One run of the optimizer: what learns, for how long, against which loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name, unique in the plan: letters, digits, `-`, `_`. Checkpoints and logs carry it.
    pub name: String,
    /// When it ends.
    pub length: StageLength,
    /// Samples per forward pass (micro-batch).
    pub batch_size: usize,
    /// Micro-batches per optimizer step; their gradients are averaged.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Weight decay of the groups that give none.
    #[serde(default)]
    pub weight_decay: f64,
    /// Bound on the L2 norm of all gradients together, applied after accumulation; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Number format of weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Learning rate over time, for all groups.
    #[serde(default)]
    pub schedule: LrSchedule,
    /// Constants of AdamW.
    #[serde(default)]
    pub adamw: AdamW,
    /// Factors of the losses.
    #[serde(default)]
    pub loss: LossWeights,
    /// What it learns from; absent: what the program gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<MixtureSpec>,
    /// Held-out samples it is evaluated on; absent: none, unless the program evaluates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationSpec>,
    /// The first bad row of its data ends the run, also in evaluations. Without it bad rows are
    /// skipped and counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// How often it is evaluated; absent: at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<StageLength>,
    /// How often a checkpoint is written; absent: at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<StageLength>,
    /// Adapters of the language model from this stage on; absent: as before it. Another dropout or
    /// alpha applies to those that are there, without a change of what the model computes. Another
    /// rank or other targets add the old adapters to the weights and start new ones, drawn from the
    /// stage's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Seed of this stage; absent: the recipe's plus the stage's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Optimizer steps within which every head that learns must have had a loss (its parameters or
    /// task token are in a group, and its loss has a weight). A run in which one has not stops with
    /// [`TrainError::SilentHeads`]: its data do not call the head. 0 lets it go on.
    #[serde(
        default = "heads::fire_within",
        skip_serializing_if = "heads::is_default"
    )]
    pub heads_must_fire_within: u64,
    /// What learns. Parameters of no group are frozen.
    pub groups: Vec<ParamGroupSpec>,
}

/// When a stage ends: `{ epochs = 3 }` or `{ steps = 1000 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageLength {
    /// Passes over the training data.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
}

/// Everything out of range in the stages of a recipe, each with its key.
pub(crate) fn problems(stages: &[Stage]) -> Vec<String> {
    let mut problems = Vec::new();
    if stages.is_empty() {
        problems.push("stages is empty".to_string());
    }
    for (i, stage) in stages.iter().enumerate() {
        let at = format!("stages[{i}] `{}`", stage.name);
        if stages[..i].iter().any(|s| s.name == stage.name) {
            problems.push(format!("{at}: an earlier stage has this name"));
        }
        stage.problems(&at, &mut problems);
    }
    problems
}

impl Stage {
    /// A stage of single samples, without accumulation, decay, clipping or warm-up, in f32; set
    /// the other fields as needed.
    #[cfg(test)]
    pub(crate) fn new(
        name: impl Into<String>,
        length: StageLength,
        groups: Vec<ParamGroupSpec>,
    ) -> Self {
        Self {
            name: name.into(),
            length,
            batch_size: 1,
            accumulation: 1,
            weight_decay: 0.0,
            clip_norm: None,
            precision: Precision::default(),
            schedule: LrSchedule::default(),
            adamw: AdamW::default(),
            loss: LossWeights::default(),
            data: None,
            evaluation: None,
            strict: false,
            evaluate_every: None,
            checkpoint_every: None,
            lora: None,
            seed: None,
            heads_must_fire_within: heads::FIRE_WITHIN,
            groups,
        }
    }

    /// Samples per optimizer step: `batch_size · accumulation`.
    pub fn total_batch(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulation)
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&ParamGroupSpec> {
        self.groups.iter().find(|g| g.name == name)
    }

    /// Checks all values of this stage.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`] with every problem.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        self.problems(&format!("stage `{}`", self.name), &mut problems);
        valid(problems)
    }

    /// Looks the groups up in `module`; groups without a weight decay get the stage's.
    ///
    /// # Errors
    /// As [`crate::resolve`].
    pub fn resolve<M: Module>(&self, module: &M) -> Result<ResolvedGroups> {
        Ok(self.with_decay(resolve(module, &self.groups)?))
    }

    /// [`Stage::resolve`] on a list of parameters in place of a module.
    ///
    /// # Errors
    /// As [`resolve_params`].
    pub fn resolve_params(&self, params: Vec<ResolvedParam>) -> Result<ResolvedGroups> {
        Ok(self.with_decay(resolve_params(params, &self.groups)?))
    }

    fn with_decay(&self, mut groups: ResolvedGroups) -> ResolvedGroups {
        for group in &mut groups.groups {
            group.weight_decay.get_or_insert(self.weight_decay);
        }
        groups
    }

    fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let in_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(in_name) {
            problems.push(format!(
                "{at}.name must be letters, digits, `-` and `_`, and not empty"
            ));
        }
        let mut check = Check::new(at, problems);
        for (field, length) in [
            ("length", Some(self.length)),
            ("evaluate_every", self.evaluate_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            match length {
                Some(StageLength::Epochs(n)) => check.not_zero(&format!("{field}.epochs"), n),
                Some(StageLength::Steps(n)) => check.not_zero(&format!("{field}.steps"), n),
                None => {}
            }
        }
        check.not_zero("batch_size", self.batch_size as u64);
        check.not_zero("accumulation", self.accumulation as u64);
        check.not_negative("weight_decay", self.weight_decay);
        if let Some(norm) = self.clip_norm {
            check.positive("clip_norm", norm, " (leave it out to not clip)");
        }
        if self.batch_size.checked_mul(self.accumulation).is_none() {
            problems.push(format!("{at}: batch_size times accumulation is too large"));
        }
        self.schedule.problems(&format!("{at}.schedule"), problems);
        self.adamw.problems(&format!("{at}.adamw"), problems);
        self.loss.problems(&format!("{at}.loss"), problems);
        if let Some(data) = &self.data {
            problems.extend(data.problems(&format!("{at}.data"), ANY_MODEL));
        }
        if let Some(evaluation) = &self.evaluation {
            evaluation.problems(&format!("{at}.evaluation"), problems);
        }
        if let Some(lora) = &self.lora {
            problems.extend(lora.problems(&format!("{at}.lora")));
        }
        if self.groups.is_empty() {
            problems.push(format!("{at}.groups is empty: nothing would learn"));
        }
        for (i, group) in self.groups.iter().enumerate() {
            let at = format!("{at}.groups[{i}] `{}`", group.name);
            if self.groups[..i].iter().any(|g| g.name == group.name) {
                problems.push(format!("{at}: an earlier group has this name"));
            }
            group.problems(&at, problems);
        }
    }
}

fn one() -> usize {
    1
}

pub(crate) fn valid(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(TrainError::InvalidPlan { problems })
    }
}
