//! What a stage is judged by.

use serde::{Deserialize, Serialize};
use tpo_data::feed::MixtureSpec;

use super::ANY_MODEL;
use crate::check::Check;

/// Held-out samples that a stage is evaluated on, the same ones every time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSpec {
    /// At most so many batches; absent: one pass over the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batches: Option<u64>,
    /// Samples per batch; absent: the stage's micro-batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// The samples.
    pub data: MixtureSpec,
}

impl EvaluationSpec {
    /// Appends what is out of range; `at` is where in the recipe this is.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let mut check = Check::new(at, problems);
        check.not_zero("batches", self.batches.unwrap_or(1));
        check.not_zero("batch_size", self.batch_size.unwrap_or(1) as u64);
        problems.extend(self.data.problems(&format!("{at}.data"), ANY_MODEL));
    }
}
