//! A frame's features and mask as a memory.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Conv2d, Conv2dConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use tpo_core::ops;

use super::config::MemoryEncoderConfig;
use super::prompt_encoder::MAP_NORM_EPS;
use crate::HeadsError;

/// Sides of a mask over sides of the memory (reference implementation).
const TOTAL_STRIDE: usize = 16;
/// Scale of the residual branches at initialisation (reference implementation).
const LAYER_SCALE: f64 = 1e-6;

/// One halving of the mask: convolution, norm, GELU.
#[derive(Module, Debug)]
pub struct MaskDownsampleLayer {
    /// Kernel 3, stride 2, padding 1.
    pub conv: Conv2d,
    /// Over the channels.
    pub norm: LayerNorm,
}

/// Brings a mask to the resolution and width of the features.
#[derive(Module, Debug)]
pub struct MaskDownsampler {
    /// Four halvings; every one quadruples the channels.
    pub layers: Vec<MaskDownsampleLayer>,
    /// To the width of the features.
    pub proj: Conv2d,
}

/// ConvNeXt block: depthwise convolution, norm, two pointwise layers, scaled residual.
#[derive(Module, Debug)]
pub struct ConvNextBlock {
    /// Depthwise, kernel 7.
    pub dwconv: Conv2d,
    /// Over the channels.
    pub norm: LayerNorm,
    /// To four times the width.
    pub pwconv1: Linear,
    /// Back.
    pub pwconv2: Linear,
    /// Scale of the branch `[dim]`.
    pub gamma: Param<Tensor<1>>,
}

/// Mixes features and mask.
#[derive(Module, Debug)]
pub struct Fuser {
    /// The blocks.
    pub layers: Vec<ConvNextBlock>,
}

/// The memory encoder.
#[derive(Module, Debug)]
pub struct MemoryEncoder {
    /// Mask to features.
    pub mask_downsampler: MaskDownsampler,
    /// Projects the image features.
    pub pix_feat_proj: Conv2d,
    /// Mixes both.
    pub fuser: Fuser,
    /// To the width of a memory; absent if the widths are the same.
    pub out_proj: Option<Conv2d>,
}

impl MemoryEncoderConfig {
    /// Creates the encoder. Values are drawn on first use.
    pub fn init(&self, device: &Device) -> MemoryEncoder {
        let dim = self.in_dim;
        let norm = |width: usize| {
            LayerNormConfig::new(width)
                .with_eps(MAP_NORM_EPS)
                .init(device)
        };
        let layers = (0..TOTAL_STRIDE.ilog2())
            .map(|i| MaskDownsampleLayer {
                conv: Conv2dConfig::new(4usize.pow(i), 4usize.pow(i + 1), 3)
                    .with_stride(2)
                    .with_padding(1)
                    .init(device),
                norm: norm(4usize.pow(i + 1)),
            })
            .collect();
        let block = || ConvNextBlock {
            dwconv: Conv2dConfig::new(dim, dim, self.fuser_kernel)
                .with_padding(self.fuser_kernel / 2)
                .with_groups(dim)
                .init(device),
            norm: norm(dim),
            pwconv1: LinearConfig::new(dim, 4 * dim).init(device),
            pwconv2: LinearConfig::new(4 * dim, dim).init(device),
            gamma: Initializer::Constant { value: LAYER_SCALE }.init([dim], device),
        };
        let pointwise = |from, to| Conv2dConfig::new(from, to, 1).init(device);
        MemoryEncoder {
            mask_downsampler: MaskDownsampler {
                layers,
                proj: pointwise(TOTAL_STRIDE * TOTAL_STRIDE, dim),
            },
            pix_feat_proj: pointwise(dim, dim),
            fuser: Fuser {
                layers: (0..self.fuser_layers).map(|_| block()).collect(),
            },
            out_proj: (self.out_dim != dim).then(|| pointwise(dim, self.out_dim)),
        }
    }
}

impl MaskDownsampler {
    /// `[batch, 16·rows, 16·columns, 1]` to `[batch, rows, columns, dim]`.
    pub fn forward(&self, mask: Tensor<4>) -> Tensor<4> {
        let x = self.layers.iter().fold(mask, |x, layer| {
            ops::gelu(layer.norm.forward(layer.conv.forward(x)))
        });
        self.proj.forward(x)
    }
}

impl ConvNextBlock {
    /// `[batch, rows, columns, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.norm.forward(self.dwconv.forward(x.clone()));
        let y = self.pwconv2.forward(ops::gelu(self.pwconv1.forward(y)));
        let gamma = self.gamma.val().cast(y.dtype());
        x + y * gamma.unsqueeze()
    }
}

impl MemoryEncoder {
    /// Fuses a frame's features with the mask of an object.
    ///
    /// # Shapes
    /// - `features` `[batch or 1, rows, columns, in_dim]`, without the no-memory embedding
    /// - `mask` `[batch, 16·rows, 16·columns]`, already scaled (see
    ///   [`Sam2::encode_memory`](super::Sam2::encode_memory))
    /// - output `[batch, rows, columns, out_dim]`
    ///
    /// # Errors
    /// [`HeadsError::Shape`].
    pub fn forward(&self, features: Tensor<4>, mask: Tensor<3>) -> Result<Tensor<4>, HeadsError> {
        let [images, rows, columns, _] = features.dims();
        let [batch, height, width] = mask.dims();
        if [height, width] != [TOTAL_STRIDE * rows, TOTAL_STRIDE * columns]
            || (images != batch && images != 1)
        {
            return Err(HeadsError::Shape {
                place: "MemoryEncoder::forward",
                what: "mask",
                expected: format!(
                    "[batch, {}, {}] with the batch of the features, {images}",
                    TOTAL_STRIDE * rows,
                    TOTAL_STRIDE * columns
                ),
                found: vec![batch, height, width],
            });
        }
        let dtype = features.dtype();
        let mask = mask.cast(dtype).reshape([batch, height, width, 1]);
        let x = self.pix_feat_proj.forward(features) + self.mask_downsampler.forward(mask);
        let x = self.fuser.layers.iter().fold(x, |x, b| b.forward(x));
        Ok(match &self.out_proj {
            Some(proj) => proj.forward(x),
            None => x,
        })
    }
}
