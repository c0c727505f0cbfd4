//! Linear layer with the weight in PyTorch's layout.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};

use crate::ops;

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
}

/// `y = x·Wᵀ + b`, the weight stored as `[d_output, d_input]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// Weight `[d_output, d_input]`.
    pub weight: Param<Tensor<2>>,
    /// Bias `[d_output]`; zero at initialisation.
    pub bias: Option<Param<Tensor<1>>>,
}

impl LinearConfig {
    /// Creates the layer on `device`. Values are drawn lazily, on first use.
    pub fn init(&self, device: &Device) -> Linear {
        let weight = self.initializer.init_with(
            [self.d_output, self.d_input],
            Some(self.d_input),
            Some(self.d_output),
            device,
        );
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
        ops::linear(
            input,
            self.weight.val().transpose(),
            self.bias.as_ref().map(|b| b.val()),
        )
    }

    /// `(d_output, d_input)`.
    pub fn shape(&self) -> (usize, usize) {
        let shape = self.weight.lazy_shape();
        (shape[0], shape[1])
    }
}
