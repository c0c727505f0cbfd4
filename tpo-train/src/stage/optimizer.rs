//! Constants of the optimizer, and in which numbers it works.

use serde::{Deserialize, Serialize};

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
