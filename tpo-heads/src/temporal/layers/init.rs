//! Initial values as PyTorch draws them.

use burn::module::Param;
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Linear, LinearConfig};

/// How the weight of a linear layer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::temporal) enum WeightInit {
    /// Inside the transformer the reference redraws every matrix: Xavier uniform.
    Transformer,
    /// Outside it PyTorch's own: uniform in `±1 / sqrt(d_in)`.
    Default,
    /// Zero, for the last layer of the span refinement: the first reference stays where the query
    /// put it (reference implementation).
    Zero,
}

impl WeightInit {
    pub(in crate::temporal) fn initializer(self, d_in: usize) -> Initializer {
        match self {
            Self::Transformer => Initializer::XavierUniform { gain: 1.0 },
            Self::Default => default_uniform(d_in),
            Self::Zero => Initializer::Zeros,
        }
    }
}

fn default_uniform(d_in: usize) -> Initializer {
    let bound = 1.0 / (d_in.max(1) as f64).sqrt();
    Initializer::Uniform {
        min: -bound,
        max: bound,
    }
}

/// A linear layer whose bias starts uniform in `±1 / sqrt(d_in)` as PyTorch's does, or at zero
/// with [`WeightInit::Zero`].
pub(in crate::temporal) fn linear(
    d_in: usize,
    d_out: usize,
    init: WeightInit,
    device: &Device,
) -> Linear {
    let mut layer = LinearConfig::new(d_in, d_out)
        .with_initializer(init.initializer(d_in))
        .init(device);
    if init != WeightInit::Zero {
        layer.bias = Some(default_uniform(d_in).init([d_out], device));
    }
    layer
}

/// Rows drawn from a normal distribution.
pub(in crate::temporal) fn normal_rows<const D: usize>(
    shape: [usize; D],
    std: f64,
    device: &Device,
) -> Param<Tensor<D>> {
    Initializer::Normal { mean: 0.0, std }.init(shape, device)
}
