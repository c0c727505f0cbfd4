//! Weights of the losses in the sum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Check;

/// Factors of the sum `L = L_lm + Σ L_head` (paper, equation 1).
///
/// The equation has no factors, so all default to 1. `L_lm` is the language model's cross entropy
/// over text *and* routing tokens: the paper's `L_assign` is part of it. A head's terms (`l1`,
/// `giou`, …) carry weights of their own, given by the head's configuration; what is named here
/// replaces them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossWeights {
    /// Factor on the language model's loss.
    pub language: f64,
    /// Factor on the loss of every head that `heads` does not name. 0 switches them off.
    pub other_heads: f64,
    /// By name of the head.
    pub heads: BTreeMap<String, HeadLossWeights>,
}

/// Factors of one head's loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadLossWeights {
    /// Factor on the head's whole loss. 0 switches the head off.
    pub weight: f64,
    /// Factor per term, instead of the one that the head gives it.
    pub terms: BTreeMap<String, f64>,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self {
            language: 1.0,
            other_heads: 1.0,
            heads: BTreeMap::new(),
        }
    }
}

impl Default for HeadLossWeights {
    fn default() -> Self {
        Self {
            weight: 1.0,
            terms: BTreeMap::new(),
        }
    }
}

impl LossWeights {
    /// Factor on the loss of `head`.
    pub fn head(&self, head: &str) -> f64 {
        self.heads.get(head).map_or(self.other_heads, |h| h.weight)
    }

    /// Factor on one term of `head` in the whole sum; `own` is the weight that the head gave it.
    pub fn term(&self, head: &str, term: &str, own: f64) -> f64 {
        let given = self.heads.get(head).and_then(|h| h.terms.get(term));
        self.head(head) * given.copied().unwrap_or(own)
    }

    /// Appends what is out of range; `at` is where in the plan these weights are.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let mut check = Check::new(at, problems);
        check.not_negative("language", self.language);
        check.not_negative("other_heads", self.other_heads);
        for (name, head) in &self.heads {
            check.not_negative(&format!("heads.{name}.weight"), head.weight);
            for (term, weight) in &head.terms {
                check.not_negative(&format!("heads.{name}.terms.{term}"), *weight);
            }
        }
        let nothing = self.language == 0.0
            && self.other_heads == 0.0
            && self.heads.values().all(|h| h.weight == 0.0);
        if nothing {
            problems.push(format!(
                "{at}: every weight is 0, there is nothing to minimise"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_multiply_and_replace() {
        let weights = LossWeights {
            other_heads: 0.5,
            heads: BTreeMap::from([(
                "region".to_string(),
                HeadLossWeights {
                    weight: 3.0,
                    terms: BTreeMap::from([("l1".to_string(), 4.0)]),
                },
            )]),
            ..LossWeights::default()
        };
        // 3 · 4: the head's own 2 is replaced. 3 · 0.2: the head's own weight stays.
        assert_eq!(weights.term("region", "l1", 2.0), 12.0);
        assert!((weights.term("region", "giou", 0.2) - 0.6).abs() < 1e-12);
        assert_eq!(weights.term("temporal", "span", 10.0), 5.0);
        assert_eq!(weights.head("region"), 3.0);
    }

    #[test]
    fn problems_name_the_field() {
        let mut weights = LossWeights {
            language: 0.0,
            other_heads: 0.0,
            heads: BTreeMap::new(),
        };
        let mut problems = Vec::new();
        weights.problems("loss", &mut problems);
        assert_eq!(
            problems,
            ["loss: every weight is 0, there is nothing to minimise"]
        );
        problems.clear();
        weights.heads.insert(
            "region".into(),
            HeadLossWeights {
                weight: 1.0,
                terms: BTreeMap::from([("l1".to_string(), -1.0)]),
            },
        );
        weights.problems("loss", &mut problems);
        assert_eq!(
            problems,
            ["loss.heads.region.terms.l1 is -1; must be 0 or more and finite"]
        );
    }
}
