//! Projection of one kind of features to the width of the head.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear};

use super::{WeightInit, linear};

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

impl InputProjection {
    /// From `d_input` to `d_output` columns.
    pub(in crate::temporal) fn new(
        [d_input, d_output]: [usize; 2],
        dropout: f64,
        relu: bool,
        device: &Device,
    ) -> Self {
        Self {
            layer_norm: LayerNormConfig::new(d_input).init(device),
            linear: linear(d_input, d_output, WeightInit::Default, device),
            dropout: DropoutConfig::new(dropout).init(),
            relu,
        }
    }

    /// `[batch, rows, d_input]` to `[batch, rows, d_output]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.dropout.forward(self.layer_norm.forward(x));
        let x = self.linear.forward(x);
        if self.relu { relu(x) } else { x }
    }
}
