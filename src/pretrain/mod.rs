//! What a model of our own size begins with.
//!
//! The paper starts from parts that can see already: a video encoder and a SAM 2 trained by others
//! on millions of clips. For sizes of one's own nobody offers such parts, so they are made here, on
//! the synthetic world: [`pretrain_perception`] teaches the vision encoder what every token shows
//! and the Q-Former to pass that on, and [`pretrain_masks`] teaches SAM 2 to follow a shape from its
//! box. The stages of a recipe then start from the model directory.

mod masks;
mod patches;
mod perception;

pub use masks::{MaskPretraining, pretrain_masks};
pub use patches::{PatchHead, PatchLabels, PatchScores};
pub use perception::{Perception, PerceptionPretraining, pretrain_perception};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Steps and rates of a pretraining: the rate rises linearly, then falls as half a cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Steps in which the rate rises.
    pub warmup: u64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
}

impl Schedule {
    /// The rate of a step.
    pub fn rate(&self, step: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let done = step as f64 / self.steps.max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.learning_rate * warm * (0.02 + 0.98 * cosine)
    }
}

/// What a pretraining tells of a step.
#[derive(Debug)]
pub struct Told<'a, M> {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Named values of the step.
    pub values: &'a [(&'static str, f64)],
    /// The part as it is now, on the graph.
    pub part: &'a M,
}

/// Who is told of every step; returns `false` to stop early.
pub type Heard<'a, M> = dyn FnMut(Told<'_, M>) -> Result<bool> + 'a;

/// Puts every parameter of a module on the graph.
pub(crate) fn learning<M: Module>(module: M) -> M {
    struct Learn;
    impl ModuleMapper for Learn {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let value = match value.device().is_autodiff() {
                    true => value.inner(),
                    false => value,
                };
                value.autodiff().require_grad()
            })
        }
    }
    // Values are drawn when they are first looked at.
    struct Draw;
    impl ModuleVisitor for Draw {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
    }
    module.visit(&mut Draw);
    module.map(&mut Learn)
}
