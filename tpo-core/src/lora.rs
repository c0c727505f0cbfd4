//! Low-rank adapters, as recipes, model directories and language models name them.

use serde::{Deserialize, Serialize};

/// Low-rank adapters of a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the adapters' input while training.
    #[serde(default)]
    pub dropout: f64,
    /// Names of the linear layers that get one. In a recipe empty: all the model can adapt.
    #[serde(default)]
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// Adapters without dropout.
    pub fn new(rank: usize, alpha: f64, targets: Vec<String>) -> Self {
        Self {
            rank,
            alpha,
            dropout: 0.0,
            targets,
        }
    }

    /// Sets the dropout.
    pub fn with_dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// What is out of range; `at` is where these adapters are named.
    pub fn problems(&self, at: &str) -> Vec<String> {
        let Self {
            rank,
            alpha,
            dropout,
            targets,
        } = self;
        let mut problems = Vec::new();
        if *rank == 0 {
            problems.push(format!("{at}.rank is 0; leave `lora` out for none"));
        }
        if !(alpha.is_finite() && *alpha > 0.0) {
            problems.push(format!("{at}.alpha is {alpha}; must be above 0 and finite"));
        }
        if !(0.0..1.0).contains(dropout) {
            problems.push(format!(
                "{at}.dropout is {dropout}; must be at least 0 and below 1"
            ));
        }
        for (i, target) in targets.iter().enumerate() {
            if targets[..i].contains(target) {
                problems.push(format!("{at}.targets: `{target}` is there twice"));
            }
        }
        problems
    }
}
