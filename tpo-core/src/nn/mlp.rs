//! Multi-layer perceptron with ReLU between the layers.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use super::{Linear, LinearConfig};

/// Configuration of an [`Mlp`]: widths from input to output, at least two.
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Widths, for example `[4096, 4096, 768]` for two layers.
    pub widths: Vec<usize>,
    /// Dropout probability after **every** layer, the last included, as the reference's MLP
    /// does while training.
    #[config(default = 0.0)]
    pub dropout: f64,
}

/// `layers.0` … `layers.n` with ReLU between them; parameters are named as the reference's MLP.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The linear layers in order.
    pub layers: Vec<Linear>,
    dropout: burn::nn::Dropout,
}

impl MlpConfig {
    /// Creates the layers.
    pub fn init(&self, device: &Device) -> Mlp {
        Mlp {
            layers: self
                .widths
                .windows(2)
                .map(|w| LinearConfig::new(w[0], w[1]).init(device))
                .collect(),
            dropout: burn::nn::DropoutConfig::new(self.dropout).init(),
        }
    }
}

impl Mlp {
    /// Applies all layers to the last axis.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let last = self.layers.len().saturating_sub(1);
        let mut x = input;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if i < last {
                x = relu(x);
            }
            x = self.dropout.forward(x);
        }
        x
    }
}
