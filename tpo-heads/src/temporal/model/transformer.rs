//! Everything the reference calls `transformer`.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};

use super::config::CgDetrConfig;
use super::decoder::Decoder;
use super::saliency_prompt::saliency_prompt;
use super::t2v::{T2vEncoder, TextKeys};
use crate::temporal::layers::{Encoder, WeightInit};

/// The video side of a pass.
#[derive(Debug, Clone)]
pub struct VideoTokens {
    /// Projected clips `[batch, clips, d_model]`.
    pub values: Tensor<3>,
    /// Their positions, same shape.
    pub positions: Tensor<3>,
    /// `[batch, clips]`, 1 for real clips.
    pub mask: Tensor<2>,
    /// `[batch, clips]`, `true` hides a clip.
    pub padding: Tensor<2, Bool>,
    /// The same with a visible token in front `[batch, 1 + clips]`.
    pub padding_with_token: Tensor<2, Bool>,
    /// Mean of the real clips, without gradient, `[batch, 1, d_model]`.
    pub context: Tensor<3>,
}

/// Learned prompts of the saliency token.
#[derive(Debug, Clone)]
pub struct Prompts {
    /// `[prompts, d_model]`.
    pub tokens: Tensor<2>,
    /// Position of the saliency token `[1, d_model]`.
    pub position: Tensor<2>,
    /// How many are used at a time.
    pub keep: usize,
}

/// Clips after text and self-attention.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Clips plus the saliency token `[batch, clips, d_model]`.
    pub local: Tensor<3>,
    /// The saliency token `[batch, d_model]`.
    pub global: Tensor<2>,
    /// Attention of clips to dummies and text, averaged over heads and layers
    /// `[batch, clips, dummies + tokens]`.
    pub attention: Tensor<3>,
}

/// Encoders and decoder.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Of moments, for distillation while training.
    pub mcls_encoder: Encoder,
    /// Text into video.
    pub t2v_encoder: T2vEncoder,
    /// Clips among themselves.
    pub encoder: Encoder,
    /// Spans.
    pub decoder: Decoder,
}

impl Transformer {
    pub(super) fn new(config: &CgDetrConfig, device: &Device) -> Self {
        let c = config;
        let sizes = c.layers(WeightInit::Transformer);
        Self {
            mcls_encoder: Encoder::new(&sizes, c.moment_layers, device),
            t2v_encoder: T2vEncoder::new(&sizes, c.t2v_layers, device),
            encoder: Encoder::new(&sizes, c.encoder_layers, device),
            decoder: Decoder::new(&sizes, c.decoder_layers, device),
        }
    }

    /// Text into video, saliency token in front, encoder.
    pub(super) fn encode(
        &self,
        video: &VideoTokens,
        text: &TextKeys,
        prompts: &Prompts,
    ) -> Encoded {
        let [batch, clips, d] = video.values.dims();
        let (moved, attention) =
            self.t2v_encoder
                .forward(video.values.clone(), video.positions.clone(), text);
        let tokens = text.values.dims()[1] - text.dummies;
        let text_weight = attention
            .clone()
            .detach()
            .narrow(2, text.dummies, tokens)
            .sum_dim(2)
            .reshape([batch, clips])
            * video.mask.clone();
        let token = saliency_prompt(
            video.values.clone(),
            video.context.clone(),
            prompts.tokens.clone(),
            prompts.keep,
            text_weight,
        );
        let token = self.t2v_encoder.forward_alone(token);
        let position = prompts
            .position
            .clone()
            .reshape([1, 1, d])
            .expand([batch, 1, d]);
        let memory = self.encoder.forward(
            Tensor::cat(vec![token, moved], 1),
            Tensor::cat(vec![position, video.positions.clone()], 1),
            Some(video.padding_with_token.clone()),
        );
        let global = memory.clone().narrow(1, 0, 1);
        Encoded {
            local: memory.narrow(1, 1, clips) + global.clone(),
            global: global.reshape([batch, d]),
            attention,
        }
    }
}
