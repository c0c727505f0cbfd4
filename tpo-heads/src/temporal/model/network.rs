//! The model: projections, dummies, transformer, and what it says about spans and clips.

use std::cmp::Ordering;

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, Mlp};
use tpo_core::ops::indices;

use super::config::{CgDetrConfig, TEF_COLUMNS};
use super::decoder::{inverse_sigmoid, mlp};
use super::decoder_layer::Memory;
use super::masks::{KeyMask, mask, padding};
use super::t2v::TextKeys;
use super::transformer::{Encoded, Prompts, Transformer, VideoTokens};
use crate::HeadsError;
use crate::temporal::layers::{
    Encoder, InputProjection, WeightInit, linear, normal_rows, sine_positions,
};

/// A padded batch.
#[derive(Debug, Clone)]
pub struct CgDetrInput {
    /// Clip features with the endpoint columns `[batch, clips, d_video + 2]`.
    pub video: Tensor<3>,
    /// Real clips per sample, at least 1.
    pub video_lengths: Vec<usize>,
    /// Text features `[batch, tokens, d_text]`.
    pub text: Tensor<3>,
    /// Real tokens per sample.
    pub text_lengths: Vec<usize>,
    /// The task embedding `[batch, d_text]`, put behind the last real token.
    pub prompt: Tensor<2>,
}

/// What the model says about a batch, and what its training pass goes on from.
#[derive(Debug, Clone)]
pub struct CgDetrOutput {
    /// Logits (foreground, background) of every decoder layer, the last one last,
    /// `[layers, batch, queries, 2]`.
    pub logits: Tensor<4>,
    /// Spans (centre, width), `[layers, batch, queries, 2]`: 0–1 of the clips that a video has, in
    /// training; decoding stretches them over its duration, as the reference does.
    pub spans: Tensor<4>,
    /// Saliency of every clip `[batch, clips]`, unbounded.
    pub saliency: Tensor<2>,
    /// Share of every clip's attention that went to the text, 0–1, `[batch, clips]`.
    pub text_attention: Tensor<2>,
    /// Attention of clips to dummies and text `[batch, clips, dummies + tokens + 1]`.
    pub attention: Tensor<3>,
    /// Dummies after they read the text `[batch, dummies, d_model]`.
    pub dummy_tokens: Tensor<3>,
    /// Real clips per sample.
    pub video_lengths: Vec<usize>,
    pub(super) text_lengths: Vec<usize>,
    /// Prompts of the saliency token `[prompts, d_model]`.
    pub prompts: Tensor<2>,
    pub(super) video: VideoTokens,
    pub(super) text: Tensor<3>,
    pub(super) text_positions: Tensor<3>,
}

/// Learned text positions: the published model has them but does not use them.
#[derive(Module, Debug)]
pub struct TextPositions {
    /// `[text_positions, d_model]`.
    pub position_embeddings: Embedding,
    /// Of text plus position.
    pub layer_norm: LayerNorm,
    /// After the norm.
    pub dropout: Dropout,
}

/// CG-DETR. Parameters have the reference's names up to [`CG_DETR_KEYS`](crate::temporal::CG_DETR_KEYS).
#[derive(Module, Debug)]
pub struct CgDetr {
    /// Encoders and decoder.
    pub transformer: Transformer,
    /// Decoder output to a change of its span.
    pub span_embed: Mlp,
    /// Decoder output to (foreground, background).
    pub class_embed: Linear,
    /// Row 0 marks text, row 1 video `[2, d_model]`.
    pub token_type_embeddings: Embedding,
    /// Logits of the spans the decoder starts from `[queries, 2]`.
    pub query_embed: Embedding,
    /// Text features to `d_model`.
    pub input_txt_proj: Vec<InputProjection>,
    /// Video features to `d_model`.
    pub input_vid_proj: Vec<InputProjection>,
    /// Of clips, for the saliency product.
    pub saliency_proj1: Linear,
    /// Of the saliency token, for the saliency product.
    pub saliency_proj2: Linear,
    /// Prompts of the saliency token `[prompts, d_model]`.
    pub global_rep_token: Param<Tensor<2>>,
    /// Position of the saliency token `[1, d_model]`.
    pub global_rep_pos: Param<Tensor<2>>,
    /// Token that sums a moment up while training `[d_model]`.
    pub moment_rep_token: Param<Tensor<1>>,
    /// Its position.
    pub moment_rep_pos: Param<Tensor<1>>,
    /// Dummy tokens `[dummies, d_model]`.
    pub dummy_rep_token: Param<Tensor<2>>,
    /// Their positions.
    pub dummy_rep_pos: Param<Tensor<2>>,
    /// Token that sums a sentence up while training `[d_model]`.
    pub sent_rep_token: Param<Tensor<1>>,
    /// Its position.
    pub sent_rep_pos: Param<Tensor<1>>,
    /// Not used by the published model; in its checkpoint.
    pub txt_proj_linear: InputProjection,
    /// See [`TextPositions`].
    pub txt_position_embed: TextPositions,
    /// Lets the dummies read the text.
    pub txtproj_encoder: Encoder,
    /// Sums sentences up while training.
    pub scls_encoder: Encoder,
    #[module(skip)]
    pub(super) config: CgDetrConfig,
}

impl CgDetr {
    pub(super) fn new(config: &CgDetrConfig, device: &Device) -> Self {
        let c = config;
        let d = c.d_model;
        let init = WeightInit::Default;
        let projection = |d_in: usize| {
            vec![
                InputProjection::new([d_in, d], c.input_dropout, true, device),
                InputProjection::new([d, d], c.input_dropout, false, device),
            ]
        };
        // Outside the transformer: rate 0.1 whatever the configuration says, in the reference.
        // One rate for all is what a user expects; the presets agree.
        let sizes = c.layers(init);
        let encoder = |depth| Encoder::new(&sizes, depth, device);
        Self {
            transformer: Transformer::new(c, device),
            span_embed: mlp(&[d, d, d, 2], init, false, device),
            class_embed: linear(d, 2, init, device),
            token_type_embeddings: EmbeddingConfig::new(2, d).init(device),
            query_embed: EmbeddingConfig::new(c.num_queries, 2)
                .with_std(1.0)
                .init(device),
            input_txt_proj: projection(c.d_text),
            input_vid_proj: projection(c.d_video + TEF_COLUMNS),
            saliency_proj1: linear(d, d, init, device),
            saliency_proj2: linear(d, d, init, device),
            global_rep_token: normal_rows([c.total_prompts, d], 1.0, device),
            global_rep_pos: normal_rows([1, d], 1.0, device),
            moment_rep_token: normal_rows([d], 1.0, device),
            moment_rep_pos: normal_rows([d], 1.0, device),
            dummy_rep_token: normal_rows([c.num_dummies, d], 1.0, device),
            dummy_rep_pos: normal_rows([c.num_dummies, d], 1.0, device),
            sent_rep_token: normal_rows([d], 1.0, device),
            sent_rep_pos: normal_rows([d], 1.0, device),
            txt_proj_linear: InputProjection::new([c.d_text, d], c.dropout, true, device),
            txt_position_embed: TextPositions {
                position_embeddings: EmbeddingConfig::new(c.text_positions, d)
                    .with_std(1.0)
                    .init(device),
                layer_norm: LayerNormConfig::new(d).init(device),
                dropout: DropoutConfig::new(c.input_dropout).init(),
            },
            txtproj_encoder: encoder(c.dummy_layers),
            scls_encoder: encoder(c.sentence_layers),
            config: c.clone(),
        }
    }

    /// Sizes of the model.
    pub fn config(&self) -> &CgDetrConfig {
        &self.config
    }

    /// Runs the model.
    ///
    /// # Errors
    /// [`HeadsError::Shape`] when shapes and lengths do not fit, or a sample has no clip.
    pub fn forward(&self, input: CgDetrInput) -> Result<CgDetrOutput, HeadsError> {
        self.check(&input)?;
        let device = input.video.device();
        let text = with_prompt(input.text, &input.text_lengths, input.prompt);
        let text_lengths: Vec<usize> = input.text_lengths.iter().map(|n| n + 1).collect();
        let video = self.video_tokens(input.video, &input.video_lengths);

        let text = self
            .input_txt_proj
            .iter()
            .fold(text, |x, layer| layer.forward(x));
        let [batch, tokens, d] = text.dims();
        let text = text + self.token_type(0);
        // The published model does not use its table of text positions.
        let text_positions = Tensor::zeros([batch, tokens, d], (&device, text.dtype()));

        let dummies = self.config.num_dummies;
        let rows =
            |p: &Param<Tensor<2>>| p.val().reshape([1, dummies, d]).expand([batch, dummies, d]);
        let positions = Tensor::cat(vec![rows(&self.dummy_rep_pos), text_positions.clone()], 1);
        let clips = video.values.dims()[1];
        let dummy_tokens = self
            .txtproj_encoder
            .forward(
                Tensor::cat(vec![rows(&self.dummy_rep_token), text.clone()], 1),
                positions.clone(),
                Some(padding(&text_lengths, dummies, tokens, &device)),
            )
            .narrow(1, 0, dummies);
        let keys = TextKeys {
            values: Tensor::cat(vec![dummy_tokens.clone(), text.clone()], 1),
            positions,
            hidden: self.key_mask(
                &input.video_lengths,
                &text_lengths,
                [clips, tokens],
                &device,
            ),
            dummies,
        };

        let encoded = self.transformer.encode(&video, &keys, &self.prompts());
        let memory = Memory {
            values: encoded.local.clone(),
            positions: video.positions.clone(),
            padding: Some(video.padding.clone()),
        };
        let decoded = self
            .transformer
            .decoder
            .forward(self.query_embed.weight.val(), &memory);
        let layers = self.config.decoder_layers;
        let queries = self.config.num_queries;
        let shape = [layers, batch, queries, 2];
        let logits = self
            .class_embed
            .forward(decoded.hidden.clone())
            .reshape(shape);
        let change = self.span_embed.forward(decoded.hidden);
        let spans = sigmoid(change + inverse_sigmoid(decoded.references)).reshape(shape);
        Ok(CgDetrOutput {
            logits,
            spans,
            saliency: self.saliency(&encoded),
            text_attention: self.text_attention(&encoded, &text_lengths),
            attention: encoded.attention,
            dummy_tokens,
            prompts: self.global_rep_token.val(),
            video_lengths: input.video_lengths,
            text_lengths,
            video,
            text,
            text_positions,
        })
    }

    fn check(&self, input: &CgDetrInput) -> Result<(), HeadsError> {
        let [batch, clips, d_video] = input.video.dims();
        let [batch_text, tokens, d_text] = input.text.dims();
        let c = &self.config;
        let wrong = |what, expected: String, found: Vec<usize>| {
            Err(HeadsError::Shape {
                place: "CgDetr::forward",
                what,
                expected,
                found,
            })
        };
        if batch == 0 || d_video != c.d_video + TEF_COLUMNS {
            let expected = format!("[at least 1, clips, {}]", c.d_video + TEF_COLUMNS);
            return wrong("video", expected, input.video.dims().to_vec());
        }
        if batch_text != batch || d_text != c.d_text {
            let expected = format!("[{batch}, tokens, {}]", c.d_text);
            return wrong("text", expected, input.text.dims().to_vec());
        }
        if input.prompt.dims() != [batch, d_text] {
            let expected = format!("[{batch}, {d_text}]");
            return wrong("prompt", expected, input.prompt.dims().to_vec());
        }
        let lengths = &input.video_lengths;
        if lengths.len() != batch || lengths.iter().any(|n| !(1..=clips).contains(n)) {
            let expected = format!("{batch} numbers from 1 to {clips}");
            return wrong("video_lengths", expected, lengths.clone());
        }
        let lengths = &input.text_lengths;
        if lengths.len() != batch || lengths.iter().any(|n| *n > tokens) {
            let expected = format!("{batch} numbers up to {tokens}");
            return wrong("text_lengths", expected, lengths.clone());
        }
        Ok(())
    }

    fn video_tokens(&self, video: Tensor<3>, lengths: &[usize]) -> VideoTokens {
        let values = self
            .input_vid_proj
            .iter()
            .fold(video, |x, layer| layer.forward(x))
            + self.token_type(1);
        let [batch, clips, d] = values.dims();
        let (device, dtype) = (values.device(), values.dtype());
        let mask = mask(lengths, clips, &device, dtype);
        let sum = (values.clone().detach() * mask.clone().reshape([batch, clips, 1])).sum_dim(1);
        let count = mask.clone().sum_dim(1).reshape([batch, 1, 1]);
        VideoTokens {
            positions: sine_positions(lengths, clips, d, &device, dtype),
            padding: padding(lengths, 0, clips, &device),
            padding_with_token: padding(lengths, 1, clips, &device),
            context: sum / count,
            mask,
            values,
        }
    }

    fn token_type(&self, row: usize) -> Tensor<3> {
        let d = self.config.d_model;
        let rows = self.token_type_embeddings.weight.val();
        rows.narrow(0, row, 1).reshape([1, 1, d])
    }

    /// Which words are hidden from which clips; `padded` are the clips and tokens with padding.
    pub(super) fn key_mask(
        &self,
        clips: &[usize],
        tokens: &[usize],
        padded: [usize; 2],
        device: &Device,
    ) -> Tensor<4, Bool> {
        KeyMask {
            clips,
            tokens,
            padded,
            dummies: self.config.num_dummies,
            heads: self.config.heads,
            crossed: self.config.crossed_masks,
        }
        .tensor(device)
    }

    pub(super) fn prompts(&self) -> Prompts {
        Prompts {
            tokens: self.global_rep_token.val(),
            position: self.global_rep_pos.val(),
            keep: self.config.num_prompts,
        }
    }

    /// Product of clips and saliency token over `√d_model`, `[batch, clips]`.
    pub(super) fn saliency(&self, encoded: &Encoded) -> Tensor<2> {
        let [batch, clips, d] = encoded.local.dims();
        let local = self.saliency_proj1.forward(encoded.local.clone());
        let global = self.saliency_proj2.forward(encoded.global.clone());
        (local * global.reshape([batch, 1, d]))
            .sum_dim(2)
            .reshape([batch, clips])
            / (d as f64).sqrt()
    }

    /// Attention to the real text of each sample, 0–1, `[batch, clips]`.
    pub(super) fn text_attention(&self, encoded: &Encoded, lengths: &[usize]) -> Tensor<2> {
        let [batch, clips, keys] = encoded.attention.dims();
        let tokens = keys - self.config.num_dummies;
        let attention = encoded.attention.clone();
        let real = mask(lengths, tokens, &attention.device(), attention.dtype());
        (attention.narrow(2, self.config.num_dummies, tokens) * real.reshape([batch, 1, tokens]))
            .sum_dim(2)
            .reshape([batch, clips])
            .clamp(0.0, 1.0)
    }
}

/// Puts the prompt of each sample behind its last real token: `[batch, tokens + 1, d]`.
fn with_prompt(text: Tensor<3>, lengths: &[usize], prompt: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, d] = text.dims();
    let device = text.device();
    let prompt = prompt.cast(text.dtype());
    // Rows of all texts, then all prompts; every output row is one of them.
    let at = lengths.iter().enumerate().flat_map(|(b, &n)| {
        (0..=tokens).map(move |t| match t.cmp(&n) {
            Ordering::Less => b * tokens + t,
            Ordering::Equal => batch * tokens + b,
            Ordering::Greater => b * tokens + t - 1,
        })
    });
    let at = indices(at, &device);
    let all = if tokens == 0 {
        prompt
    } else {
        Tensor::cat(vec![text.reshape([batch * tokens, d]), prompt], 0)
    };
    all.select(0, at).reshape([batch, tokens + 1, d])
}
