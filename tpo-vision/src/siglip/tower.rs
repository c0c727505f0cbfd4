//! The tower.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{DType, Device, Tensor};
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::nn::{Embedding, EmbeddingConfig, in_parts};
use tpo_core::ops::{self, activation_dtype};
use tpo_core::traits::VisionEncoder;

use super::SiglipConfig;
use super::config::CHANNELS;
use super::layer::SiglipLayer;
use crate::error::{Result, VisionError, check_video};
use crate::frozen::{encode_frozen, is_frozen};

/// Keys of published files without a parameter here, and why.
pub const SIGLIP_UNUSED_KEYS: &[(&str, &str)] = &[
    (
        r"(^|\.)post_layernorm\.(weight|bias)$",
        "the norm after the last layer, before which the output is taken",
    ),
    (
        r"(^|\.)vision_model\.head\.",
        "the pooling head, which gives one vector per picture",
    ),
];

/// Tokens that go through the layers together where nothing is recorded: the widest activations, of the MLP, take
/// 70 MB each in f32 at the width of so400m.
const TOKENS: usize = 4096;

/// A convolution whose stride is its kernel, so that every output sees its own patch.
#[derive(Module, Debug)]
pub struct SiglipPatches {
    /// Kernel `[dim, 3, patch, patch]`.
    pub weight: Param<Tensor<4>>,
    /// Bias `[dim]`.
    pub bias: Param<Tensor<1>>,
}

/// Patches with their positions.
#[derive(Module, Debug)]
pub struct SiglipEmbeddings {
    /// Projects patches to tokens.
    pub patch_embedding: SiglipPatches,
    /// A row for each patch `[tokens, dim]`.
    pub position_embedding: Embedding,
}

/// The layers.
#[derive(Module, Debug)]
pub struct SiglipEncoder {
    /// In order.
    pub layers: Vec<SiglipLayer>,
}

/// The tower: pictures to tokens. Paths of the parameters are Hugging Face's keys below `vision_model.`.
#[derive(Module, Debug)]
pub struct Siglip {
    /// What the first layer reads.
    pub embeddings: SiglipEmbeddings,
    /// The layers.
    pub encoder: SiglipEncoder,
    #[module(skip)]
    config: SiglipConfig,
}

impl SiglipConfig {
    /// Creates the tower with linear weights Xavier uniform, patches and positions normal with deviations
    /// `1/sqrt(fan_in)` and `1/sqrt(dim)`, biases zero, as Hugging Face does. Values are drawn on first use.
    ///
    /// # Errors
    /// [`VisionError::Config`] when [`validate`](Self::validate) finds problems.
    pub fn init(&self, device: &Device) -> Result<Siglip> {
        self.validate()?;
        let (dim, patch) = (self.hidden_size, self.patch_size);
        let kernel = [dim, CHANNELS, patch, patch];
        let normal = Initializer::Normal {
            mean: 0.0,
            std: ((CHANNELS * patch * patch) as f64).powf(-0.5),
        };
        Ok(Siglip {
            embeddings: SiglipEmbeddings {
                patch_embedding: SiglipPatches {
                    weight: normal.init(kernel, device),
                    bias: Initializer::Zeros.init([dim], device),
                },
                position_embedding: EmbeddingConfig::new(self.tokens(), dim)
                    .with_std((dim as f64).powf(-0.5))
                    .init(device),
            },
            encoder: SiglipEncoder {
                layers: (0..self.num_hidden_layers)
                    .map(|_| SiglipLayer::new(self, device))
                    .collect(),
            },
            config: self.clone(),
        })
    }
}

impl SiglipEmbeddings {
    /// `[pictures, 3, height, width]` to `[pictures, tokens, dim]`, rows of patches from the top. Pixels that do not
    /// fill a patch are dropped.
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<3> {
        let kernel = self.patch_embedding.weight.val();
        let dtype = activation_dtype(&kernel);
        let pictures = pictures.cast(dtype).unsqueeze_dim(2);
        let bias = self.patch_embedding.bias.val();
        let patches = ops::conv_patch_embed(pictures, kernel.unsqueeze_dim(2), Some(bias));
        patches + self.position_embedding.weight.val().cast(dtype).unsqueeze()
    }
}

impl Siglip {
    /// The architecture.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// Dtype of the parameters, and of what the tower returns.
    pub fn dtype(&self) -> DType {
        self.embeddings.patch_embedding.bias.val().dtype()
    }

    /// Tokens of every picture, which none of the others has a part in.
    ///
    /// # Shapes
    /// - frames `[batch, pictures, 3, image_size, image_size]`, RGB normalised with mean and deviation 0.5
    /// - output `[batch, pictures · tokens, dim]`, picture after picture, rows of patches from the top
    ///
    /// # Errors
    /// [`VisionError::Frames`] for no pictures or pictures of another size.
    pub fn forward(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let batch = frames.dims()[0];
        let pictures = (TOKENS / self.config.tokens()).max(1);
        let layers = &self.encoder.layers;
        let run = |x| layers.iter().fold(x, |x, layer| layer.forward(x));
        let tokens = in_parts(self.embed(frames)?, 0, pictures, 1, run);
        Ok(self.together(tokens, batch))
    }

    /// What the first layer reads, `[batch · pictures, tokens, dim]`.
    fn embed(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        const PLACE: &str = "SigLIP";
        let [batch, pictures, channels, height, width] = frames.dims();
        check_video(PLACE, frames.dims())?;
        let side = self.config.image_size;
        if [height, width] != [side; 2] {
            return Err(VisionError::frames(
                PLACE,
                format_args!(
                    "pictures must be {side}x{side} pixels, found {height}x{width}; resize them"
                ),
            ));
        }
        let pictures = frames.reshape([batch * pictures, channels, height, width]);
        Ok(self.embeddings.forward(pictures))
    }

    /// Tokens of pictures as those of the clips they are of.
    fn together(&self, tokens: Tensor<3>, batch: usize) -> Tensor<3> {
        let [pictures, count, dim] = tokens.dims();
        let tokens = tokens.reshape([batch, pictures / batch * count, dim]);
        tokens.cast(self.dtype())
    }
}

impl VisionEncoder for Siglip {
    fn encode(&self, frames: Tensor<5>) -> tpo_core::Result<Tensor<3>> {
        Ok(encode_frozen(self, frames, Self::forward)?)
    }

    fn encode_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        tape: &mut Tape<'m>,
    ) -> tpo_core::Result<Tensor<3>> {
        if is_frozen(self, &frames) {
            return self.encode(frames);
        }
        let batch = frames.dims()[0];
        let mut x = self.embed(frames)?;
        for layer in &self.encoder.layers {
            x = tape.segment(x, move |x| layer.forward(x));
        }
        Ok(self.together(x, batch))
    }

    fn dim(&self) -> usize {
        self.config.hidden_size
    }
}
