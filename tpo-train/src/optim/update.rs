//! Applying gradients to a module.

use std::any::Any;
use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, FloatDType, Tensor};
use tpo_core::ops::{self, AdamWUpdate};
use tpo_core::weights::PathStack;

use super::muon::{MuonUpdate, muon};
use super::{GradientSet, Moments, Optimizer};
use crate::error::{Result, TrainError};

impl Optimizer {
    /// Maps the module; returns how many parameters moved.
    pub(super) fn update<M: Module>(
        &mut self,
        module: M,
        grads: GradientSet,
        clip: f64,
        factor: f64,
    ) -> Result<(M, usize)> {
        let mut updater = Updater {
            stack: PathStack::default(),
            grad_scale: grads.factor() * clip,
            optimizer: self,
            grads,
            factor,
            tied: HashMap::new(),
            updated: 0,
            error: None,
        };
        let module = module.map(&mut updater);
        match updater.error {
            Some(error) => Err(error),
            None => Ok((module, updater.updated)),
        }
    }

    /// Remembers 32-bit values of the parameters at hand before a module is narrowed.
    pub(crate) fn set_master(&mut self, path: &str, value: Tensor<1>) {
        let moments = Moments {
            steps: 0,
            first: value.zeros_like(),
            second: None,
            master: Some(value),
        };
        self.moments.entry(path.to_string()).or_insert(moments);
    }
}

struct Updater<'a> {
    stack: PathStack,
    optimizer: &'a mut Optimizer,
    grads: GradientSet,
    grad_scale: f64,
    factor: f64,
    /// Updated values of parameters that may come again at another path.
    tied: HashMap<ParamId, Box<dyn Any>>,
    updated: usize,
    error: Option<TrainError>,
}

impl ModuleMapper for Updater<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.stack.path();
        let Some(slot) = self.optimizer.slots.get(&path).copied() else {
            // The second path of a tied parameter.
            let id = param.id;
            return match self
                .tied
                .get(&id)
                .and_then(|t| t.downcast_ref::<Tensor<D>>())
            {
                Some(value) => {
                    let value = value.clone();
                    param.map(|_| value)
                }
                None => param,
            };
        };
        let Some(grad) = self.grads.remove(&path) else {
            return param;
        };
        if self.error.is_some() {
            return param;
        }
        let group = &self.optimizer.groups[slot.group];
        let (lr, decay) = (group.learning_rate * self.factor, group.weight_decay);
        let moments = self
            .optimizer
            .moments
            .remove(&path)
            .unwrap_or_else(|| Moments {
                steps: 0,
                first: grad.zeros_like(),
                second: None,
                master: None,
            });
        let n = param.lazy_shape().num_elements();
        if moments.first.dims() != [n] || grad.dims() != [n] {
            self.error = Some(TrainError::OptimizerState {
                name: path,
                why: format!(
                    "the parameter has {n} values, its state {}, its gradient {}",
                    moments.first.dims()[0],
                    grad.dims()[0]
                ),
            });
            return param;
        }
        let constants = self.optimizer.constants;
        let weight_decay = if slot.decays { decay } else { 0.0 };
        let update = match slot.muon {
            Some(constants) => Update::Muon(MuonUpdate {
                lr,
                momentum: constants.momentum,
                iterations: constants.iterations,
                weight_decay,
                grad_scale: self.grad_scale,
            }),
            None => Update::AdamW(AdamWUpdate {
                lr,
                beta_1: constants.beta_1,
                beta_2: constants.beta_2,
                epsilon: constants.epsilon,
                weight_decay,
                step: moments.steps + 1,
                grad_scale: self.grad_scale,
            }),
        };
        let id = param.id;
        let mut after = None;
        let param = param.map(|value| {
            let (value, moments) = apply(value, grad, moments, &update);
            after = Some(moments);
            value
        });
        if let Some(moments) = after {
            self.optimizer.moments.insert(path, moments);
        }
        self.tied.insert(id, Box::new(param.val()));
        self.updated += 1;
        param
    }
}

/// What moves a parameter, with its numbers.
enum Update {
    AdamW(AdamWUpdate),
    Muon(MuonUpdate),
}

/// Updates a parameter and puts its autodiff state back.
fn apply<const D: usize>(
    value: Tensor<D>,
    grad: Tensor<1>,
    moments: Moments,
    update: &Update,
) -> (Tensor<D>, Moments) {
    let strategy = value.gradient_checkpointing_strategy();
    let dtype = value.dtype();
    let shape = value.shape();
    let n = shape.num_elements();
    let weight = match moments.master {
        Some(master) => master,
        None => {
            let flat = value.inner().reshape([n]);
            match dtype {
                DType::F32 => flat,
                _ => flat.cast(FloatDType::F32),
            }
        }
    };
    let (weight, first, second) = match update {
        Update::AdamW(update) => {
            let second = moments.second.unwrap_or_else(|| moments.first.zeros_like());
            let (weight, [first, second]) =
                ops::adamw(weight, grad, [moments.first, second], update);
            (weight, first, Some(second))
        }
        Update::Muon(update) => {
            let [rows, columns] = [shape[0], n / shape[0].max(1)];
            let (weight, momentum) = muon(weight, grad, moments.first, [rows, columns], update);
            (weight, momentum, None)
        }
    };
    let (value, master) = if dtype == DType::F32 {
        (weight.reshape(shape), None)
    } else {
        let narrow = weight.clone().cast(dtype).reshape(shape);
        (narrow, Some(weight))
    };
    let value: Tensor<D> = value;
    let value = match strategy {
        Some(strategy) => value
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy)
            .require_grad(),
        None => value,
    };
    let moments = Moments {
        steps: moments.steps + 1,
        first,
        second,
        master,
    };
    (value, moments)
}
