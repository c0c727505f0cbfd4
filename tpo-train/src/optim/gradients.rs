//! Gradients of a module by path, summed over micro-batches.

use std::collections::{BTreeMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, FloatDType, Gradients, Tensor};
use tpo_core::ops;
use tpo_core::weights::PathStack;

/// Gradients by parameter path, each flat `[n]` in `f32` and without autodiff.
///
/// A parameter that the loss did not reach is absent, which is not the same as zero: the
/// optimizer leaves it alone.
#[derive(Debug, Clone)]
pub struct GradientSet {
    grads: BTreeMap<String, Tensor<1>>,
    scale: f64,
}

impl Default for GradientSet {
    fn default() -> Self {
        Self {
            grads: BTreeMap::new(),
            scale: 1.0,
        }
    }
}

impl GradientSet {
    /// No gradients.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the gradients of the parameters of `module` that require one. A parameter that stands in
    /// several places counts once, under the path of the first.
    pub fn add<M: Module>(&mut self, module: &M, grads: &Gradients) {
        struct Collector<'a> {
            stack: PathStack,
            grads: &'a Gradients,
            into: &'a mut BTreeMap<String, Tensor<1>>,
            seen: HashSet<ParamId>,
        }
        impl ModuleVisitor for Collector<'_> {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.stack.enter(name, container_type);
            }
            fn exit_module(&mut self, _name: &str, container_type: &str) {
                self.stack.exit(container_type);
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                // A parameter that was never used has no value yet, and no gradient.
                if !param.is_initialized() {
                    return;
                }
                // The gradient of a shared parameter is that of all its places together.
                if !self.seen.insert(param.id) {
                    return;
                }
                let value = param.val();
                let Some(grad) = value.grad(self.grads) else {
                    return;
                };
                let n = grad.shape().num_elements();
                let mut grad = grad.reshape([n]);
                if grad.dtype() != DType::F32 {
                    grad = grad.cast(FloatDType::F32);
                }
                let path = self.stack.path();
                let sum = match self.into.remove(&path) {
                    Some(sum) => sum + grad,
                    None => grad,
                };
                self.into.insert(path, sum);
            }
        }
        module.visit(&mut Collector {
            stack: PathStack::default(),
            grads,
            into: &mut self.grads,
            seen: HashSet::new(),
        });
    }

    /// Multiplies all gradients, for example by one over the number of micro-batches. Only the
    /// factor is kept; the optimizer applies it.
    pub fn scale(&mut self, factor: f64) {
        self.scale *= factor;
    }

    /// The factor that is not applied yet.
    pub fn factor(&self) -> f64 {
        self.scale
    }

    /// L2 norm of all gradients together, with the factor.
    pub fn norm(&self) -> f64 {
        ops::sum_of_squares(self.grads.values().cloned()).sqrt() * self.scale.abs()
    }

    /// Number of parameters with a gradient.
    pub fn len(&self) -> usize {
        self.grads.len()
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        self.grads.is_empty()
    }

    /// Paths of the parameters with a gradient, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.grads.keys().map(String::as_str)
    }

    /// The flat gradient `[n]` at `path`, without the factor.
    pub fn get(&self, path: &str) -> Option<&Tensor<1>> {
        self.grads.get(path)
    }

    /// Takes the gradient at `path` out.
    pub fn remove(&mut self, path: &str) -> Option<Tensor<1>> {
        self.grads.remove(path)
    }

    /// Sets the gradient at `path`, flat `[n]`.
    pub fn insert(&mut self, path: impl Into<String>, grad: Tensor<1>) {
        self.grads.insert(path.into(), grad);
    }
}
