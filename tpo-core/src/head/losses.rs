//! Named, weighted loss terms.

use burn::tensor::Tensor;

/// One term of a loss.
#[derive(Debug, Clone)]
pub struct LossTerm {
    /// Name in logs, for example `l1`.
    pub name: String,
    /// The unweighted value, `[1]`.
    pub value: Tensor<1>,
    /// Factor in the sum.
    pub weight: f64,
}

/// The loss of a head as the sum of its terms.
#[derive(Debug, Clone, Default)]
pub struct LossTerms {
    terms: Vec<LossTerm>,
}

impl LossTerms {
    /// No terms yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a term.
    pub fn with(mut self, name: impl Into<String>, value: Tensor<1>, weight: f64) -> Self {
        self.terms.push(LossTerm {
            name: name.into(),
            value,
            weight,
        });
        self
    }

    /// The terms in the order they were added.
    pub fn terms(&self) -> &[LossTerm] {
        &self.terms
    }

    /// The weighted sum `[1]`; `None` without terms.
    pub fn total(&self) -> Option<Tensor<1>> {
        self.terms
            .iter()
            .map(|t| t.value.clone() * t.weight)
            .reduce(|a, b| a + b)
    }
}
