//! PReLU with one learnable slope.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::ops;

/// Configuration of [`PRelu`].
#[derive(Config, Debug)]
pub struct PReluConfig {
    /// Initial slope for negative values (PyTorch's default).
    #[config(default = 0.25)]
    pub slope: f64,
}

/// `max(x, 0) + weight · min(x, 0)`.
#[derive(Module, Debug)]
pub struct PRelu {
    /// Slope `[1]`.
    pub weight: Param<Tensor<1>>,
}

impl PReluConfig {
    /// Creates the layer.
    pub fn init(&self, device: &Device) -> PRelu {
        PRelu {
            weight: Initializer::Constant { value: self.slope }.init([1], device),
        }
    }
}

impl PRelu {
    /// Element by element; shape unchanged.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        ops::prelu(x, self.weight.val())
    }
}
