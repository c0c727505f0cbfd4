//! Normalisation layers; statistics are taken in f32 whatever the dtype of the input.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};

use crate::ops;

/// Configuration of [`LayerNorm`].
#[derive(Config, Debug)]
pub struct LayerNormConfig {
    /// Size of the normalised (last) axis.
    pub d_model: usize,
    /// Added to the variance.
    #[config(default = 1e-5)]
    pub eps: f64,
}

/// Affine layer normalisation over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale `[d_model]`.
    pub weight: Param<Tensor<1>>,
    /// Shift `[d_model]`.
    pub bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNormConfig {
    /// Creates the layer with scale one and shift zero.
    pub fn init(&self, device: &Device) -> LayerNorm {
        LayerNorm {
            weight: Initializer::Ones.init([self.d_model], device),
            bias: Initializer::Zeros.init([self.d_model], device),
            eps: self.eps,
        }
    }
}

impl LayerNorm {
    /// Normalises the last axis; shape unchanged.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        ops::layer_norm(input, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// Configuration of [`RmsNorm`].
#[derive(Config, Debug)]
pub struct RmsNormConfig {
    /// Size of the normalised (last) axis.
    pub d_model: usize,
    /// Added to the mean square.
    #[config(default = 1e-6)]
    pub eps: f64,
}

/// Root-mean-square normalisation over the last axis, without centring or shift.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Scale `[d_model]`.
    pub weight: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNormConfig {
    /// Creates the layer with scale one.
    pub fn init(&self, device: &Device) -> RmsNorm {
        RmsNorm {
            weight: Initializer::Ones.init([self.d_model], device),
            eps: self.eps,
        }
    }
}

impl RmsNorm {
    /// Normalises the last axis; shape unchanged.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        ops::rms_norm(input, self.weight.val(), self.eps)
    }
}
