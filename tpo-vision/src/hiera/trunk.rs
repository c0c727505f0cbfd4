//! The hierarchical trunk.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{DType, Device, Tensor};
use tpo_core::nn::{Conv2d, Conv2dConfig};
use tpo_core::ops::activation_dtype;

use super::block::HieraBlock;
use super::config::{CHANNELS, HieraConfig, PATCH};
use super::position::windowed_table;
use crate::drop_path::DropPathConfig;
use crate::error::{Result, VisionError, check_patches};

/// Overlapping patches, projected.
#[derive(Module, Debug)]
pub struct HieraPatchEmbed {
    /// Convolution with kernel 7, stride 4 and padding 3.
    pub proj: Conv2d,
}

/// The trunk without the pyramid, see [`ImageEncoder`](super::ImageEncoder).
#[derive(Module, Debug)]
pub struct Hiera {
    /// Patch embedding.
    pub patch_embed: HieraPatchEmbed,
    /// Position table that is resized to the image, `[1, embed_dim, rows, columns]`.
    pub pos_embed: Param<Tensor<4>>,
    /// Position table that is repeated for every window of the first stage, `[1, embed_dim, side,
    /// side]`.
    pub pos_embed_window: Param<Tensor<4>>,
    /// The blocks.
    pub blocks: Vec<HieraBlock>,
    #[module(skip)]
    config: HieraConfig,
}

impl HieraConfig {
    /// Creates the trunk; position tables start as zeros, as in the reference. Values are drawn
    /// on first use.
    ///
    /// # Errors
    /// [`VisionError::Config`] when [`validate`](Self::validate) finds problems.
    pub fn init(&self, device: &Device) -> Result<Hiera> {
        self.validate()?;
        let (kernel, stride, padding) = PATCH;
        let [rows, columns] = self.window_pos_embed_bkg_spatial_size;
        let side = self.window_spec[0];
        let rates = DropPathConfig::linear_decay(self.drop_path_rate, self.depth());
        Ok(Hiera {
            patch_embed: HieraPatchEmbed {
                proj: Conv2dConfig::new(CHANNELS, self.embed_dim, kernel)
                    .with_stride(stride)
                    .with_padding(padding)
                    .init(device),
            },
            pos_embed: Initializer::Zeros.init([1, self.embed_dim, rows, columns], device),
            pos_embed_window: Initializer::Zeros.init([1, self.embed_dim, side, side], device),
            blocks: self
                .blocks()
                .into_iter()
                .zip(rates)
                .map(|(shape, rate)| HieraBlock::new(self, shape, rate, device))
                .collect(),
            config: self.clone(),
        })
    }
}

impl Hiera {
    /// The architecture.
    pub fn config(&self) -> &HieraConfig {
        &self.config
    }

    /// Dtype that images are cast to, and that the maps have.
    pub fn dtype(&self) -> DType {
        activation_dtype(&self.patch_embed.proj.bias.val())
    }

    /// Checks the shape of images.
    ///
    /// # Errors
    /// [`VisionError::Shape`] for an empty batch or other than three channels,
    /// [`VisionError::Frames`] for sides that are no multiple of
    /// [`side_multiple`](HieraConfig::side_multiple).
    pub fn check(&self, shape: [usize; 4]) -> Result<()> {
        const PLACE: &str = "image encoder";
        let [_, channels, height, width] = shape;
        if shape.contains(&0) || channels != CHANNELS {
            return Err(VisionError::Shape {
                place: PLACE,
                what: "images",
                expected: "[batch, 3, height, width], none of them zero".into(),
                found: shape.to_vec(),
            });
        }
        check_patches(PLACE, [height, width], self.config.side_multiple())
    }

    /// Outputs of the four stages, finest first.
    ///
    /// # Shapes
    /// - images `[batch, 3, height, width]`, normalised with the ImageNet statistics
    /// - outputs `[batch, height / 4, width / 4, embed_dim]` to
    ///   `[batch, height / 32, width / 32, 8·embed_dim]`
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn forward(&self, images: Tensor<4>) -> Result<Vec<Tensor<4>>> {
        self.check(images.dims())?;
        let dtype = self.dtype();
        let images = images.cast(dtype).permute([0, 2, 3, 1]);
        let x = self.patch_embed.proj.forward(images);
        let [_, height, width, _] = x.dims();
        let positions = windowed_table(
            self.pos_embed.val().cast(dtype),
            self.pos_embed_window.val().cast(dtype),
            [height, width],
        );
        let mut x = x + positions;
        let mut outputs = Vec::new();
        for (block, shape) in self.blocks.iter().zip(self.config.blocks()) {
            x = block.forward(x);
            if shape.ends_stage {
                outputs.push(x.clone());
            }
        }
        Ok(outputs)
    }
}
