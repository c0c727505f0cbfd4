//! The encoder with the layer norm that follows it.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::nn::{LayerNorm, LayerNormConfig};
use tpo_core::traits::VisionEncoder;

use super::{Umt, UmtConfig};
use crate::error::Result;

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

    /// Encodes clips; without autodiff when nothing here is trained.
    ///
    /// On an autodiff device attention keeps every `[heads, tokens, tokens]` matrix, 630 MB per
    /// block for 16 frames in f32. If no parameter requires a gradient and the frames are not part
    /// of a graph, the encoder therefore runs as [`Module::valid`] would and its output joins the
    /// graph as a constant.
    ///
    /// # Shapes and errors
    /// As [`forward`](Self::forward).
    pub fn encode(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let Some(strategy) = frames.gradient_checkpointing_strategy() else {
            return self.forward(frames);
        };
        if frames.is_tracked() || is_trained(self) {
            return self.forward(frames);
        }
        let tokens = self.valid().forward(frames.inner())?;
        Ok(tokens
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy))
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
        if !frames.is_tracked() && !is_trained(self) {
            return Ok(VideoEncoder::encode(self, frames)?);
        }
        let tokens = self.encoder.forward_checkpointed(frames, tape)?;
        Ok(self.vision_layernorm.forward(tokens))
    }

    fn dim(&self) -> usize {
        self.encoder.config().encoder_embed_dim
    }
}

/// Whether any parameter requires a gradient.
fn is_trained<M: Module>(module: &M) -> bool {
    struct Trained(bool);
    impl ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 = self.0 || param.is_require_grad();
        }
    }
    let mut visitor = Trained(false);
    module.visit(&mut visitor);
    visitor.0
}
