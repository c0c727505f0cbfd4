//! A decoder as a text tower: hidden states of a query, no output layer.
//!
//! InternVideo2-CLIP's text tower is the LLaMA-7B of InternVL-C with LoRA on `q_proj` and
//! `v_proj`. The temporal head reads its hidden states after the final norm, one per token, before
//! any projection (reference implementation).

mod load;
mod tokenizer;

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use tpo_core::LoraConfig;
use tpo_core::traits::LanguageModel;
use tpo_core::weights::cast_params;

use crate::config::LlmConfig;
use crate::decoder::CausalLm;
use crate::error::{LlmError, Result};

pub use load::{TEXT_PREFIX, TEXT_UNUSED_KEYS, TextFiles, text_rules};
pub use tokenizer::{QUERY_LENGTH, QUERY_PREFIX, QueryTokenizer};

/// Architecture of a [`TextTower`].
#[derive(Config, Debug, PartialEq)]
pub struct TextTowerConfig {
    /// The decoder. It has no output layer, which is what tied embeddings mean here.
    pub decoder: LlmConfig,
    /// Width of the pooled CLIP embedding.
    pub clip_embed_dim: usize,
    /// Id of padding, whose positions are masked and not part of the features.
    #[config(default = 0)]
    pub pad_token_id: u32,
}

impl TextTowerConfig {
    /// InternVideo2-CLIP's: LLaMA-7B geometry with 49 954 rows, norm epsilon 1e-6, rope base
    /// 10 000, LoRA rank 16, alpha 32 and dropout 0.1 on `q_proj` and `v_proj`
    /// (reference implementation). 6 692 417 536 parameters.
    pub fn internvideo2_clip() -> Self {
        let decoder = LlmConfig::new(49954, 4096, 11008, 32, 32, 32, 128)
            .with_rms_norm_eps(1e-6)
            .with_max_position_embeddings(2048);
        Self::of(decoder, Self::internvideo2_lora(), 768)
    }

    /// A small tower for tests and examples; `vocab_size` comes from the tokenizer.
    pub fn mini(vocab_size: usize) -> Self {
        let decoder = LlmConfig::new(vocab_size, 96, 256, 2, 4, 4, 24).with_rms_norm_eps(1e-6);
        Self::of(decoder, Self::internvideo2_lora(), 64)
    }

    /// A tower around a decoder, whose output layer is left out.
    pub fn of(decoder: LlmConfig, lora: LoraConfig, clip_embed_dim: usize) -> Self {
        Self::new(
            decoder.with_tie_word_embeddings(true).lora(lora),
            clip_embed_dim,
        )
    }

    /// The adapters of the published tower: peft's default targets for LLaMA.
    pub fn internvideo2_lora() -> LoraConfig {
        LoraConfig::new(16, 32.0, vec!["q_proj".into(), "v_proj".into()]).with_dropout(0.1)
    }

    /// Creates the tower with random weights, drawn on first use.
    ///
    /// # Errors
    /// [`LlmError::Config`] with every problem.
    pub fn init(&self, device: &Device) -> Result<TextTower> {
        if !self.decoder.tie_word_embeddings || self.clip_embed_dim == 0 {
            return Err(LlmError::Config {
                problems: format!(
                    "a text tower has no output layer (tie_word_embeddings must be true, is {}) \
                     and a pooled embedding (clip_embed_dim is {})",
                    self.decoder.tie_word_embeddings, self.clip_embed_dim
                ),
            });
        }
        Ok(TextTower {
            transformer: self.decoder.init(device)?,
            // Deviation of the reference's projections.
            text_projection: Initializer::Normal {
                mean: 0.0,
                std: (self.decoder.hidden_size as f64).powf(-0.5),
            }
            .init([self.decoder.hidden_size, self.clip_embed_dim], device),
            pad: self.pad_token_id,
        })
    }
}

/// A decoder without output layer, and the projection of the pooled embedding.
#[derive(Module, Debug)]
pub struct TextTower {
    /// The decoder.
    pub transformer: CausalLm,
    /// Projection of the last token, `[hidden, clip_embed_dim]`: multiplied from the right, not
    /// transposed.
    pub text_projection: Param<Tensor<2>>,
    pad: u32,
}

impl TextTower {
    /// Width of a hidden state.
    pub fn dim(&self) -> usize {
        self.transformer.config().hidden_size
    }

    /// Hidden states after the final norm of one query, one row per token.
    ///
    /// `n` is the number of ids that are not padding, and the first `n` positions are returned.
    /// Padding inside a query is masked, and shortens the result at its end, as in the reference.
    /// Positions after them are not computed: attention is causal.
    ///
    /// # Shapes
    /// - output `[n, hidden]`
    ///
    /// # Errors
    /// [`LlmError::Shape`] when nothing but padding is given, [`LlmError::UnknownTokenId`].
    pub fn features(&self, ids: &[u32]) -> Result<Tensor<2>> {
        let n = self.valid(ids)?;
        self.hidden(&ids[..n])
    }

    /// The pooled CLIP embedding of one query: the state of its last token, projected, not
    /// normalised.
    ///
    /// # Shapes
    /// - output `[clip_embed_dim]`
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn clip_embedding(&self, ids: &[u32]) -> Result<Tensor<1>> {
        let n = self.valid(ids)?;
        let last = self.hidden(&ids[..n])?.narrow(0, n - 1, 1);
        Ok(last.matmul(self.text_projection.val()).squeeze_dim(0))
    }

    /// Merges the adapters into the weights; see [`CausalLm::merge_lora`].
    pub fn merge_lora(self) -> Self {
        Self {
            transformer: self.transformer.merge_lora(),
            ..self
        }
    }

    /// Casts the parameters, for example to half precision after loading in f32.
    pub fn cast(self, dtype: FloatDType) -> Self {
        cast_params(self, dtype)
    }

    /// Number of ids that are not padding, at least one.
    fn valid(&self, ids: &[u32]) -> Result<usize> {
        let vocab_size = self.transformer.config().vocab_size;
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(LlmError::UnknownTokenId { id, vocab_size });
        }
        let n = ids.iter().filter(|id| **id != self.pad).count();
        if n == 0 {
            return Err(LlmError::Shape {
                place: "TextTower",
                expected: "at least one id that is not padding".into(),
                found: vec![ids.len()],
            });
        }
        Ok(n)
    }

    fn hidden(&self, ids: &[u32]) -> Result<Tensor<2>> {
        let device = self.text_projection.lazy_device();
        let mask: Vec<bool> = ids.iter().map(|id| *id != self.pad).collect();
        let data: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(data, [1, ids.len()]), &device);
        let embeds = self.transformer.embed(ids);
        let hidden = self.transformer.forward(embeds, Some(&[mask]))?;
        Ok(hidden.squeeze_dim(0))
    }
}
