//! PReLU with one learnable slope.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::ops;

/// Initial slope for negative values (PyTorch's default).
const SLOPE: f64 = 0.25;

/// `max(x, 0) + weight · min(x, 0)`.
#[derive(Module, Debug)]
pub struct PRelu {
    /// Slope `[1]`.
    pub weight: Param<Tensor<1>>,
}

impl PRelu {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            weight: Initializer::Constant { value: SLOPE }.init([1], device),
        }
    }

    /// Element by element; shape unchanged.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::prelu(x, self.weight.val())
    }
}
