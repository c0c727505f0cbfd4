//! What a model of our own size begins with.
//!
//! The paper starts from parts that can see already: a video encoder and a SAM 2 trained by others
//! on millions of clips. For sizes of your own nobody offers such parts, so they are made here, on
//! the synthetic world: [`pretrain_perception`] teaches the vision encoder what every token shows
//! and the Q-Former to pass that on, and [`pretrain_masks`] teaches SAM 2 to follow a shape from its
//! box. The stages of a recipe then start from the model directory.

mod masks;
mod patches;
mod perception;

pub use masks::{MaskPretraining, pretrain_masks};
pub use perception::{PerceptionPretraining, pretrain_perception};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use tpo_train::{AdamW, GradientSet, Muon, Optimizer, ParamGroupSpec, resolve};

use crate::error::Result;
use crate::model::Tpo;

/// Steps and rates of a pretraining: the rate rises linearly, then falls as half a cosine.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Steps of the optimizer.
    pub steps: u64,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Steps in which the rate rises.
    pub warmup: u64,
    /// Weight decay of matrices and kernels.
    pub weight_decay: f64,
    /// Whether Muon moves the matrices, and with which constants; AdamW moves everything else.
    pub muon: Option<Muon>,
}

impl Schedule {
    /// The rate of a step as a share of the largest.
    fn factor(&self, step: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let done = step as f64 / self.steps.max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        warm * (0.02 + 0.98 * cosine)
    }
}

/// The optimizer of a part that learns as a whole.
struct Mover {
    schedule: Schedule,
    optimizer: Optimizer,
}

impl Mover {
    /// One for all parameters of a module, which must have their values.
    fn new<M: Module>(module: &M, schedule: &Schedule) -> Result<Self> {
        let group = ParamGroupSpec {
            weight_decay: Some(schedule.weight_decay),
            muon: schedule.muon,
            ..ParamGroupSpec::new("all", ["**"], schedule.learning_rate)
        };
        let groups = resolve(module, &[group])?;
        Ok(Self {
            schedule: schedule.clone(),
            optimizer: Optimizer::new(&groups, AdamW::default(), None),
        })
    }

    /// The module after a step along the gradients of a loss `[1]`.
    fn step<M: Module>(&mut self, step: u64, module: M, loss: &Tensor<1>) -> Result<M> {
        let mut grads = GradientSet::new();
        grads.add(&module, &loss.backward());
        let factor = self.schedule.factor(step);
        Ok(self.optimizer.step(module, grads, factor)?.0)
    }
}

/// A step of a pretraining.
pub struct PretrainStep<'a> {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Named values of the step.
    pub values: &'a [(&'static str, f64)],
    /// The model with the part as it is now.
    pub model: &'a dyn Fn() -> Tpo,
}

/// Called with every step; an error ends the pretraining.
pub type OnStep<'a> = dyn FnMut(PretrainStep<'_>) -> Result<()> + 'a;

/// A loss `[1]` with named values of its step.
type StepLoss = (Tensor<1>, Vec<(&'static str, f64)>);

/// Lets a part learn as a whole. `loss` computes a step, or nothing where there is nothing to
/// learn from; `model` puts the part, off the graph, into a model.
fn pretrain<M: Module>(
    part: M,
    schedule: &Schedule,
    mut loss: impl FnMut(&M, u64) -> Result<Option<StepLoss>>,
    model: impl Fn(M) -> Tpo,
    heard: &mut OnStep<'_>,
) -> Result<Tpo> {
    let mut part = learning(part);
    let mut mover = Mover::new(&part, schedule)?;
    for step in 0..schedule.steps {
        let Some((loss, values)) = loss(&part, step)? else {
            continue;
        };
        part = mover.step(step, part, &loss)?;
        heard(PretrainStep {
            step: step + 1,
            steps: schedule.steps,
            values: &values,
            model: &|| model(part.valid()),
        })?;
    }
    Ok(model(part.valid().no_grad()))
}

/// The value of a tensor `[1]` on the graph.
fn value(x: &Tensor<1>) -> f64 {
    x.clone().inner().into_scalar::<f32>().into()
}

/// Puts every parameter of a module on the graph.
fn learning<M: Module>(module: M) -> M {
    struct Learn;
    impl ModuleMapper for Learn {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let value = if value.device().is_autodiff() {
                    value.inner()
                } else {
                    value
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use tpo_core::nn::LinearConfig;

    use super::*;

    /// Both optimizers move the weight by about the rate in the first step, Muon along all singular
    /// directions alike.
    #[test]
    fn a_step_is_as_long_as_the_rate() {
        for muon in [None, Some(Muon::default())] {
            let device = Device::flex();
            let layer = learning(LinearConfig::new(4, 3).init(&device));
            let schedule = Schedule {
                steps: 10,
                learning_rate: 0.01,
                warmup: 0,
                weight_decay: 0.0,
                muon,
            };
            assert_eq!(schedule.factor(0), 1.0);
            let mut mover = Mover::new(&layer, &schedule).unwrap();
            let x = Tensor::<2>::eye(4, &device).autodiff();
            let loss = layer.forward(x).powi_scalar(2).sum();
            let moved = mover.step(0, layer.clone(), &loss).unwrap();
            let step = (moved.weight.val() - layer.weight.val()).inner();
            let size = step.powi_scalar(2).mean().sqrt().into_scalar::<f32>();
            // Muon: 0.2 √4 times singular values between 0.7 and 1.2, of which there are three.
            let expected = match muon {
                None => 0.0099..0.0101,
                Some(_) => 0.0014..0.0025,
            };
            assert!(expected.contains(&size), "{size}");
        }
    }
}
