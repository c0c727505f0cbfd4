//! The head extension point: a task head turns the language model's last hidden state at its
//! task token into a dense prediction, and its loss flows back through the token.
//!
//! The heads of this project use exactly this interface; there is no private door. A head of
//! one's own is a [`TaskHead`] in any crate, added to a model with [`heads!`](crate::heads).

mod context;
mod losses;
mod metric;
mod output;
mod set;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;

pub use context::{FeatureSource, FrameSource, HeadContext, SampleContext, TaskCall};
pub use losses::{LossTerm, LossTerms};
pub use metric::HeadMetric;
pub use output::{Prediction, TaskOutput};
pub use set::{HeadNode, HeadScore, HeadSet, NoHeads, TargetSet};

use crate::error::Result;

/// Name and tokens of a head.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeadSpec {
    /// Name of the task, unique in a model.
    pub name: String,
    /// Routing token the language model emits, for example `<box_begin>`.
    pub routing: String,
    /// Placeholder whose input embedding becomes the task token, for example `<boxes>`.
    pub placeholder: String,
}

impl HeadSpec {
    /// A spec from its three strings.
    pub fn new(
        name: impl Into<String>,
        routing: impl Into<String>,
        placeholder: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            routing: routing.into(),
            placeholder: placeholder.into(),
        }
    }
}

/// A visual task head.
///
/// The order of work is `forward` → `loss` while training, `forward` → `decode` for answers, and
/// `forward` → `loss` → `metrics` in evaluations.
/// `n` is the number of task tokens in the batch, of any sample in any order;
/// [`HeadContext::sample`] says to which sample the i-th token belongs.
pub trait TaskHead: Module + ModuleDisplay + 'static {
    /// Ground truth of one task token.
    type Target: Send + 'static;
    /// What `forward` computes, on the device.
    type Output;
    /// A finished answer, in plain Rust types.
    type Prediction: Prediction;

    /// Name and tokens.
    fn spec(&self) -> HeadSpec;

    /// Runs the head on task embeddings `[n, d_llm]`.
    fn forward(&self, task: Tensor<2>, context: &HeadContext<'_>) -> Result<Self::Output>;

    /// Named, weighted loss terms against `n` targets.
    fn loss(
        &self,
        output: &Self::Output,
        targets: &[Self::Target],
        context: &HeadContext<'_>,
    ) -> Result<LossTerms>;

    /// Turns the output into `n` predictions.
    fn decode(
        &self,
        output: Self::Output,
        context: &HeadContext<'_>,
    ) -> Result<Vec<Self::Prediction>>;

    /// What the answers are worth against `n` targets, in the metrics of the task. Evaluations
    /// during training log them as `eval/<head>/<metric>`. A head without metrics is judged by its
    /// loss alone.
    fn metrics(
        &self,
        _output: Self::Output,
        _targets: &[Self::Target],
        _context: &HeadContext<'_>,
    ) -> Result<Vec<HeadMetric>> {
        Ok(Vec::new())
    }

    /// Embeds boxes `[n, 4]` (normalised xyxy) of a *question* as `[n, d_llm]`, for a head that
    /// also reads boxes. The first head of a model that answers `Some` is used.
    fn encode_boxes(&self, _boxes: Tensor<2>) -> Option<Tensor<2>> {
        None
    }
}

/// Joins heads into the [`HeadSet`] of a model: `heads![region, temporal, mask]`.
#[macro_export]
macro_rules! heads {
    () => { $crate::head::NoHeads::default() };
    ($first:expr $(, $rest:expr)* $(,)?) => {
        $crate::head::HeadNode { head: $first, rest: $crate::heads![$($rest),*] }
    };
}
