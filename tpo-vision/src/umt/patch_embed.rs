//! Tubelet embedding.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
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
}

/// A convolution whose stride is its kernel, so that every output sees its own tubelet.
#[derive(Module, Debug)]
pub struct ConvPatch {
    /// Kernel `[dim, 3, tubelet, patch, patch]`.
    pub weight: Param<Tensor<5>>,
    /// Bias `[dim]`.
    pub bias: Param<Tensor<1>>,
}

/// Cuts a clip into tubelets and projects each to a token.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The projection.
    pub proj: ConvPatch,
}

impl PatchEmbedConfig {
    /// Creates the layer with PyTorch's default for convolutions: uniform within
    /// `±1/sqrt(fan_in)`, weight and bias.
    pub fn init(&self, device: &Device) -> PatchEmbed {
        let kernel = [
            self.dim,
            CHANNELS,
            self.tubelet_size,
            self.patch_size,
            self.patch_size,
        ];
        let fan_in: usize = kernel[1..].iter().product();
        let bound = 1.0 / (fan_in as f64).sqrt();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        PatchEmbed {
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
        ops::conv_patch_embed(
            frames.swap_dims(1, 2),
            self.proj.weight.val(),
            Some(self.proj.bias.val()),
        )
    }
}
