//! Linear layer with the weight in PyTorch's layout.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};

use super::Weight;
use crate::ops::QuantFormat;

/// Configuration of a [`Linear`] layer.
#[derive(Config, Debug)]
pub struct LinearConfig {
    /// Size of the last axis of the input.
    pub d_input: usize,
    /// Size of the last axis of the output.
    pub d_output: usize,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// Initial distribution of the weight. The default is Xavier uniform, which the reference
    /// uses for its vision encoder and heads.
    #[config(default = "Initializer::XavierUniform{gain:1.0}")]
    pub initializer: Initializer,
    /// How the weight is quantised, if it is and its lines are whole blocks.
    pub quantization: Option<QuantFormat>,
}

/// `y = x·Wᵀ + b`, the weight stored as `[d_output, d_input]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// Weight `[d_output, d_input]`.
    pub weight: Weight,
    /// Bias `[d_output]`; zero at initialisation.
    pub bias: Option<Param<Tensor<1>>>,
}

impl LinearConfig {
    /// Creates the layer on `device`. Values are drawn lazily, on first use; a quantised weight is zero
    /// until it is filled from a file.
    pub fn init(&self, device: &Device) -> Linear {
        let (shape, fan_in, fan_out) = ([self.d_output, self.d_input], self.d_input, self.d_output);
        let packed = self
            .quantization
            .and_then(|format| Weight::to_fill(format, shape, device));
        let weight = packed.unwrap_or_else(|| {
            let init = &self.initializer;
            Weight::Float(init.init_with(shape, Some(fan_in), Some(fan_out), device))
        });
        let bias = self
            .bias
            .then(|| Initializer::Zeros.init([self.d_output], device));
        Linear { weight, bias }
    }
}

impl Linear {
    /// Applies the layer to the last axis.
    ///
    /// # Shapes
    /// - input `[.., d_input]`
    /// - output `[.., d_output]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(|b| b.val());
        self.weight.apply(input, bias)
    }

    /// `(d_output, d_input)`.
    pub fn shape(&self) -> (usize, usize) {
        let [d_output, d_input] = self.weight.shape();
        (d_output, d_input)
    }
}
