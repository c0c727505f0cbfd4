//! Constants of the optimizer, and in which numbers it works.

use serde::{Deserialize, Serialize};

use crate::check::Check;

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
        let mut check = Check::new(at, problems);
        check.below_one("beta_1", self.beta_1);
        check.below_one("beta_2", self.beta_2);
        check.positive("epsilon", self.epsilon, "");
    }
}

/// Constants of Muon (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024).
/// Defaults are the author's.
///
/// The update of a matrix is its momentum with all singular values near one, times
/// `0.2 √max(rows, columns)`, which gives it the size of an AdamW update, so that learning rates and
/// weight decay mean what they mean there (Liu et al., arXiv 2502.16982, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Muon {
    /// Decay of the momentum (Nesterov's).
    pub momentum: f64,
    /// Newton-Schulz iterations; each takes two products of the matrix with its smaller square and
    /// one of that square with itself.
    pub iterations: usize,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            iterations: 5,
        }
    }
}

/// Most Newton-Schulz iterations that a recipe may ask for.
const MOST_ITERATIONS: usize = 20;

impl Muon {
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let mut check = Check::new(at, problems);
        check.below_one("momentum", self.momentum);
        let holds = (1..=MOST_ITERATIONS).contains(&self.iterations);
        let must = format!("1 to {MOST_ITERATIONS}");
        check.must(holds, "iterations", self.iterations, &must);
    }
}
