//! Constants of the optimizer, and in which numbers it works.

use serde::{Deserialize, Serialize};

/// Number format of weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Learning rate over time, for all groups.
    #[serde(default)]
    pub schedule: LrSchedule,
    /// Constants of the optimizer.
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
    pub lora: Option<LoraSpec>,
    /// Seed of this stage; absent: the recipe's plus the stage's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
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

/// Number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 (paper, Table 17). Norm statistics, softmax, losses and the optimizer's state stay
    /// in 32 bits.
    Bf16,
}

/// Constants of AdamW. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
        }
    }
}

impl AdamW {
    pub(super) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        for (field, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                problems.push(format!(
                    "{at}.{field} is {beta}; must be at least 0 and below 1"
                ));
            }
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            problems.push(format!(
                "{at}.epsilon is {}; must be above 0 and finite",
                self.epsilon
            ));
        }
    }
}
