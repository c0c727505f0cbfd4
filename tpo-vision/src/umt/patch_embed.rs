//! Tubelet embedding.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Conv2d, Conv2dConfig, LayerNorm, LayerNormConfig};
use tpo_core::ops;

use super::config::CHANNELS;

/// Configuration of [`PatchEmbed`].
#[derive(Config, Debug)]
pub struct PatchEmbedConfig {
    /// Width of a token.
    pub dim: usize,
    /// Frames per tubelet.
    pub tubelet_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of the convolutions before the projection, each of which halves the sides; none
    /// in the reference.
    #[config(default = "Vec::new()")]
    pub stem: Vec<usize>,
}

/// A convolution whose stride is its kernel, so that every output sees its own tubelet.
#[derive(Module, Debug)]
pub struct ConvPatch {
    /// Kernel `[dim, 3, tubelet, patch, patch]`.
    pub weight: Param<Tensor<5>>,
    /// Bias `[dim]`.
    pub bias: Param<Tensor<1>>,
}

/// A convolution of a stem: kernel 3, stride 2, layer norm over channels, GELU.
#[derive(Module, Debug)]
pub struct StemLayer {
    /// The convolution.
    pub conv: Conv2d,
    /// Over channels.
    pub norm: LayerNorm,
}

/// Cuts a clip into tubelets and projects each to a token.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// Convolutions of every frame before it is cut ("Early Convolutions Help Transformers See
    /// Better", arXiv 2106.14881); for encoders trained from scratch on little. None in the
    /// reference.
    pub stem: Vec<StemLayer>,
    /// The projection.
    pub proj: ConvPatch,
}

impl PatchEmbedConfig {
    /// Creates the layer with PyTorch's default for convolutions: uniform within
    /// `±1/sqrt(fan_in)`, weight and bias.
    pub fn init(&self, device: &Device) -> PatchEmbed {
        // What the stem leaves of a patch.
        let side = (self.patch_size >> self.stem.len()).max(1);
        let channels = self.stem.last().copied().unwrap_or(CHANNELS);
        let kernel = [self.dim, channels, self.tubelet_size, side, side];
        let fan_in: usize = kernel[1..].iter().product();
        let bound = 1.0 / (fan_in as f64).sqrt();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        let widths = [&[CHANNELS], &self.stem[..]].concat();
        PatchEmbed {
            stem: widths
                .windows(2)
                .map(|w| StemLayer {
                    conv: Conv2dConfig::new(w[0], w[1], 3)
                        .with_stride(2)
                        .with_padding(1)
                        .init(device),
                    norm: LayerNormConfig::new(w[1]).init(device),
                })
                .collect(),
            proj: ConvPatch {
                weight: uniform.init(kernel, device),
                bias: uniform.init([self.dim], device),
            },
        }
    }
}

impl PatchEmbed {
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`, a whole number of tubelets and patches
    /// - output `[batch, steps · rows · columns, dim]`, time slowest, then rows
    pub fn forward(&self, frames: Tensor<5>) -> Tensor<3> {
        let frames = match self.stem.is_empty() {
            true => frames,
            false => self.convolved(frames),
        };
        ops::conv_patch_embed(
            frames.swap_dims(1, 2),
            self.proj.weight.val(),
            Some(self.proj.bias.val()),
        )
    }

    /// `[batch, frames, 3, height, width]` to `[batch, frames, channels, rows, columns]`.
    fn convolved(&self, frames: Tensor<5>) -> Tensor<5> {
        let [batch, count, channels, height, width] = frames.dims();
        let x = frames.reshape([batch * count, channels, height, width]);
        let x = self.stem.iter().fold(x.permute([0, 2, 3, 1]), |x, layer| {
            ops::gelu(layer.norm.forward(layer.conv.forward(x)))
        });
        let [_, rows, columns, channels] = x.dims();
        x.permute([0, 3, 1, 2])
            .reshape([batch, count, channels, rows, columns])
    }
}
