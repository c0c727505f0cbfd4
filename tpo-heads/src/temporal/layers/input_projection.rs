//! Projection of one kind of features to the width of the head.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear};

use super::{WeightInit, linear};

/// Configuration of [`InputProjection`].
#[derive(Config, Debug)]
pub struct InputProjectionConfig {
    /// Width of the features.
    pub d_input: usize,
    /// Width of the head.
    pub d_output: usize,
    /// Probability of dropping an element of the normalised features while training.
    pub dropout: f64,
    /// Whether a ReLU follows.
    #[config(default = true)]
    pub relu: bool,
}

/// Layer norm over the **input** width, dropout, linear layer, perhaps ReLU.
#[derive(Module, Debug)]
pub struct InputProjection {
    /// Over `d_input`.
    pub layer_norm: LayerNorm,
    /// `[d_output, d_input]`.
    pub linear: Linear,
    /// Of the normalised features.
    pub dropout: Dropout,
    relu: bool,
}

impl InputProjectionConfig {
    /// Creates the layer.
    pub fn init(&self, device: &Device) -> InputProjection {
        InputProjection {
            layer_norm: LayerNormConfig::new(self.d_input).init(device),
            linear: linear(self.d_input, self.d_output, WeightInit::Default, device),
            dropout: DropoutConfig::new(self.dropout).init(),
            relu: self.relu,
        }
    }
}

impl InputProjection {
    /// `[batch, rows, d_input]` to `[batch, rows, d_output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.dropout.forward(self.layer_norm.forward(x));
        let x = self.linear.forward(x);
        if self.relu { relu(x) } else { x }
    }
}
