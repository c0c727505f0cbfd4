//! The encoder with the layer norm that follows it.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::nn::{LayerNorm, LayerNormConfig};
use tpo_core::traits::VisionEncoder;

use super::{Umt, UmtConfig};
use crate::error::Result;
use crate::frozen::{encode_frozen, is_frozen};

/// Added to the variance in the layer norm after the encoder (reference implementation).
const VISION_LAYER_NORM_EPS: f64 = 1e-12;

/// [`Umt`] and `vision_layernorm`: frames to visual tokens.
#[derive(Module, Debug)]
pub struct VideoEncoder {
    /// The video transformer.
    pub encoder: Umt,
    /// The norm after it.
    pub vision_layernorm: LayerNorm,
}

impl VideoEncoder {
    /// Creates the encoder on `device`.
    ///
    /// # Errors
    /// [`VisionError::Config`](crate::VisionError::Config) when the config does not add up.
    pub fn new(config: &UmtConfig, device: &Device) -> Result<Self> {
        Ok(Self {
            encoder: config.init(device)?,
            vision_layernorm: LayerNormConfig::new(config.encoder_embed_dim)
                .with_eps(VISION_LAYER_NORM_EPS)
                .init(device),
        })
    }

    /// Encodes clips, always in the module's own mode.
    ///
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`
    /// - output `[batch, tokens, dim]`
    ///
    /// # Errors
    /// As [`Umt::forward`].
    pub fn forward(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let tokens = self.encoder.forward(frames)?;
        Ok(self
            .vision_layernorm
            .forward(tokens)
            .cast(self.encoder.dtype()))
    }

    /// Encodes clips; without autodiff when nothing here is trained and the frames are not part of a graph.
    /// The output then joins the graph as a constant.
    ///
    /// # Shapes and errors
    /// As [`forward`](Self::forward).
    pub fn encode(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        encode_frozen(self, frames, Self::forward)
    }
}

impl VisionEncoder for VideoEncoder {
    fn encode(&self, frames: Tensor<5>) -> tpo_core::Result<Tensor<3>> {
        Ok(VideoEncoder::encode(self, frames)?)
    }

    fn encode_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        tape: &mut Tape<'m>,
    ) -> tpo_core::Result<Tensor<3>> {
        if is_frozen(self, &frames) {
            return Ok(VideoEncoder::encode(self, frames)?);
        }
        let tokens = self.encoder.forward_checkpointed(frames, tape)?;
        Ok(self.vision_layernorm.forward(tokens))
    }

    fn dim(&self) -> usize {
        self.encoder.config().encoder_embed_dim
    }
}
