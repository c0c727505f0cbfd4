//! The head extension point: a task head turns the language model's last hidden state at its
//! task token into a dense prediction, and its loss flows back through the token.
//!
//! The heads of this project use exactly this interface; there is no private door. Your own head is
//! a [`TaskHead`] in any crate, put beside others with [`heads!`](crate::heads).

mod config;
mod context;
mod drawing;
mod erased;
mod losses;
mod metric;
mod output;
mod set;
mod target;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use config::{HeadConfigs, ModelSizes};
pub use context::{FeatureSource, FrameSource, HeadContext, Sample, TaskCall};
pub use drawing::{Drawing, Shape};
pub use erased::{AnyHead, HeadScore};
pub use losses::{LossTerm, LossTerms};
pub use metric::HeadMetric;
pub use output::{Prediction, TaskOutput};
pub use set::{HeadSet, NoHeads, named_alike};
pub use target::{TargetMaker, TargetSet};

use crate::error::Result;
use crate::truth::Truth;
use crate::weights::{self, KeyRules};

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

/// Checkpoint keys of a head.
#[derive(Debug)]
pub struct HeadKeys {
    /// Key of the head's task token.
    pub token: String,
    /// Keys of its parameters; paths count from the head.
    pub rules: Vec<KeyRules>,
}

/// A visual task head, with everything of its task.
///
/// The order of work is `init`, then `target` → `forward` → `loss` in training, `forward` →
/// `decode` for answers, and `forward` → `loss` → `metrics` in evaluations.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::{Device, Tensor, TensorData};
/// use serde::{Deserialize, Serialize};
/// use tpo_core::Result;
/// use tpo_core::head::{HeadContext, LossTerms, ModelSizes, TaskHead};
/// use tpo_core::nn::{Mlp, MlpConfig};
/// use tpo_core::truth::Truth;
///
/// #[derive(Module, Debug)]
/// struct CountHead {
///     mlp: Mlp,
/// }
///
/// #[derive(Serialize, Deserialize, Clone, Debug, Default)]
/// #[serde(default, deny_unknown_fields)]
/// struct CountConfig {
///     hidden: Option<usize>,
/// }
///
/// impl TaskHead for CountHead {
///     type Config = CountConfig;
///     type Target = f32;
///     type Output = Tensor<2>;
///     type Prediction = f32;
///     const NAME: &str = "count"; // called by <count_begin>, its place is <count>
///
///     fn init(config: &CountConfig, sizes: &ModelSizes, device: &Device) -> Result<Self> {
///         let hidden = config.hidden.unwrap_or(sizes.llm);
///         let mlp = MlpConfig::new(vec![sizes.llm, hidden, 1]).init(device);
///         Ok(Self { mlp })
///     }
///     fn target(&self, truth: &Truth) -> Result<f32> {
///         truth.to_value()
///     }
///     fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> Result<Tensor<2>> {
///         Ok(self.mlp.forward(task)) // [n, d_llm] -> [n, 1]
///     }
///     fn loss(&self, out: &Tensor<2>, targets: &[f32], _: &HeadContext<'_>) -> Result<LossTerms> {
///         let data = TensorData::new(targets.to_vec(), [targets.len(), 1]);
///         let target = Tensor::<2>::from_data(data, &out.device());
///         Ok(LossTerms::new().with("l1", (out.clone() - target).abs().mean(), 1.0))
///     }
///     fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> Result<Vec<f32>> {
///         Ok(out.into_data().iter::<f32>().collect())
///     }
/// }
///
/// tpo_core::heads! {
///     /// One head; name others beside it.
///     pub struct MyHeads { count: CountHead }
/// }
/// # fn main() {}
/// ```
pub trait TaskHead: Module + ModuleDisplay + Sync + 'static {
    /// Sizes and settings: under `heads.NAME` in `tpo.json` and in recipes. Where nothing is
    /// written, what `{}` reads as.
    type Config: Serialize + DeserializeOwned;
    /// Ground truth of one task token.
    type Target: Send + 'static;
    /// What `forward` computes, on the device.
    type Output;
    /// A finished answer, in plain Rust types.
    type Prediction: Prediction;

    /// Name of the task, and of the field in the set of heads.
    const NAME: &'static str;
    /// Whether the rules of benchmarks say what its answers are worth (mAP, J&F: of all questions
    /// together) in place of [`TaskHead::score`]. For heads that answer with the prediction of a
    /// head of this library.
    const SCORED_BY_BENCHMARKS: bool = false;

    /// Name and tokens: `<NAME_begin>` and `<NAME>` unless the head says otherwise.
    fn spec() -> HeadSpec {
        let name = Self::NAME;
        HeadSpec::new(name, format!("<{name}_begin>"), format!("<{name}>"))
    }

    /// Creates the head with random weights, drawn on first use, for a model of these sizes.
    ///
    /// # Errors
    /// For a configuration that does not work, or not with this model.
    fn init(config: &Self::Config, sizes: &ModelSizes, device: &Device) -> Result<Self>;

    /// What it learns from an annotation. Runs on the threads that read data. An error costs the
    /// row: it is skipped and counted, or ends a run that is strict.
    ///
    /// # Errors
    /// [`Truth::unusable`] for an annotation of another kind.
    fn target(&self, truth: &Truth) -> Result<Self::Target>;

    /// Runs the head on task embeddings `[n, d_llm]`: `n` task tokens of the batch, of any sample in
    /// any order; [`HeadContext::sample`] says to which sample the i-th token belongs.
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

    /// What one answer is worth, as named values whose means are the metrics of the task; `None`
    /// where the model did not call the head. A head without scores is judged by its loss alone.
    fn score(
        &self,
        _answer: Option<&Self::Prediction>,
        _target: &Self::Target,
    ) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// What the answers are worth against `n` targets, in the metrics of the task: the means of
    /// [`TaskHead::score`], unless the head says otherwise. Evaluations during training log them as
    /// `eval/<head>/<metric>`.
    fn metrics(
        &self,
        output: Self::Output,
        targets: &[Self::Target],
        context: &HeadContext<'_>,
    ) -> Result<Vec<HeadMetric>> {
        let answers = self.decode(output, context)?;
        let scores = answers.iter().zip(targets);
        Ok(HeadMetric::means_of(
            scores.map(|(a, t)| self.score(Some(a), t)),
        ))
    }

    /// How an answer is shown: in words, and as shapes on the picture or on the time line. The
    /// default says the prediction as JSON.
    fn draw(prediction: &Self::Prediction) -> Drawing {
        Drawing::text(prediction.to_json().to_string())
    }

    /// Names of the features of frozen towers that it asks of [`HeadContext::require_features`].
    fn features() -> &'static [&'static str] {
        &[]
    }

    /// Names in checkpoints. The default: `heads.NAME.<path in the head>` and `task_tokens.NAME`.
    ///
    /// # Errors
    /// For rules that do not parse.
    fn keys() -> weights::Result<HeadKeys> {
        let name = Self::NAME;
        let prefix = format!("heads.{name}.");
        Ok(HeadKeys {
            token: format!("task_tokens.{name}"),
            rules: vec![KeyRules::new().owns([prefix.as_str()]).prefix(&prefix, "")],
        })
    }

    /// Embeds boxes `[n, 4]` (normalised xyxy) of a *question* as `[n, d_llm]`, for a head that
    /// also reads boxes. The first head of a model that answers `Some` is used.
    fn encode_boxes(&self, _boxes: Tensor<2>) -> Option<Tensor<2>> {
        None
    }
}
