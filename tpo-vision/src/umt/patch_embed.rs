//! Tubelet embedding.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig};
use tpo_core::ops;

use super::config::CHANNELS;

/// A convolution whose stride is its kernel, so that every output sees its own tubelet.
#[derive(Module, Debug)]
pub struct ConvPatch {
    /// Kernel `[dim, 3, tubelet, patch, patch]`.
    pub weight: Param<Tensor<5>>,
    /// Bias `[dim]`.
    pub bias: Param<Tensor<1>>,
}

/// Side in pixels of the squares that a stem reads.
pub(super) const STEM_SIDE: usize = 4;

/// Projects squares of 4 × 4 pixels, then layer norm and GELU.
#[derive(Module, Debug)]
pub struct Stem {
    /// The projection.
    pub proj: ConvPatch,
    /// Over channels.
    pub norm: LayerNorm,
}

/// Cuts a clip into tubelets and projects each to a token.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// What every frame passes before it is cut: a patch of 16 pixels is too much for one linear
    /// layer to learn outlines from when there is little to learn from ("Early Convolutions Help
    /// Transformers See Better", arXiv 2106.14881). None in the reference.
    pub stem: Option<Stem>,
    /// The projection.
    pub proj: ConvPatch,
}

impl ConvPatch {
    fn new(kernel: [usize; 5], device: &Device) -> Self {
        let fan_in: usize = kernel[1..].iter().product();
        let bound = 1.0 / (fan_in as f64).sqrt();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Self {
            weight: uniform.init(kernel, device),
            bias: uniform.init([kernel[0]], device),
        }
    }

    /// `[batch, channels, frames, height, width]` to `[batch, steps · rows · columns, dim]`.
    fn forward(&self, x: Tensor<5>) -> Tensor<3> {
        ops::conv_patch_embed(x, self.weight.val(), Some(self.bias.val()))
    }
}

impl PatchEmbed {
    /// Creates the layer for tokens of width `dim` that each cover `tubelet` frames of a square of
    /// `patch` pixels, with PyTorch's default for convolutions: uniform within
    /// `±1/sqrt(fan_in)`, weight and bias. `stem` is the number of channels of the stem.
    pub fn new(
        dim: usize,
        [tubelet, patch]: [usize; 2],
        stem: Option<usize>,
        device: &Device,
    ) -> Self {
        let (channels, side) = match stem {
            Some(channels) => (channels, patch / STEM_SIDE),
            None => (CHANNELS, patch),
        };
        let side = side.max(1);
        Self {
            stem: stem.map(|channels| Stem {
                proj: ConvPatch::new([channels, CHANNELS, 1, STEM_SIDE, STEM_SIDE], device),
                norm: LayerNormConfig::new(channels).init(device),
            }),
            proj: ConvPatch::new([dim, channels, tubelet, side, side], device),
        }
    }

    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`, a whole number of tubelets and patches
    /// - output `[batch, steps · rows · columns, dim]`, time slowest, then rows
    pub fn forward(&self, frames: Tensor<5>) -> Tensor<3> {
        let [batch, count, _, height, width] = frames.dims();
        let mut x = frames.swap_dims(1, 2);
        if let Some(stem) = &self.stem {
            let squares = ops::gelu(stem.norm.forward(stem.proj.forward(x)));
            let (rows, columns) = (height / STEM_SIDE, width / STEM_SIDE);
            let channels = squares.dims()[2];
            x = squares
                .reshape([batch, count, rows, columns, channels])
                .permute([0, 4, 1, 2, 3]);
        }
        self.proj.forward(x)
    }
}
