//! Generating text with a language model alone.

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::ops::activation_dtype;
use tpo_core::threads::in_pool;
use tpo_core::traits::LanguageModel;

use crate::decoder::{CausalLm, KvCache};
use crate::error::{LlmError, Result};
use crate::sampling::{Sampler, SamplingConfig};

/// How long to generate and how to choose.
#[derive(Debug, Clone)]
pub struct GenerationConfig {
    /// Most new tokens; fewer where the model's positions end
    /// ([`LlmConfig::max_position_embeddings`](crate::LlmConfig)).
    pub max_new_tokens: usize,
    /// Ids that end a sequence; they are emitted.
    pub stop: Vec<u32>,
    /// Choice of the next token.
    pub sampling: SamplingConfig,
}

impl GenerationConfig {
    /// Greedy, up to `max_new_tokens`, until one of `stop`.
    pub fn greedy(max_new_tokens: usize, stop: Vec<u32>) -> Self {
        Self {
            max_new_tokens,
            stop,
            sampling: SamplingConfig::greedy(),
        }
    }
}

/// New tokens of one prompt, one at a time.
pub struct TokenStream<'a> {
    lm: &'a CausalLm,
    config: GenerationConfig,
    sampler: Sampler,
    cache: KvCache,
    device: Device,
    hidden: Option<Tensor<3>>,
    ids: Vec<u32>,
    new: usize,
}

impl CausalLm {
    /// Runs the prompt and returns the stream of new tokens. The prompt counts for the
    /// repetition penalty, as in transformers.
    ///
    /// # Errors
    /// An empty prompt, an id outside the vocabulary, a sampling configuration that does not
    /// make sense; [`LlmError::PromptTooLong`] for a prompt longer than the model's positions.
    pub fn stream(
        &self,
        prompt: &[u32],
        config: GenerationConfig,
        device: &Device,
    ) -> Result<TokenStream<'_>> {
        check_ids(self, prompt)?;
        let sampler = Sampler::new(config.sampling.clone())?;
        let (tokens, positions) = (prompt.len(), self.max_length());
        let Some(room) = positions.checked_sub(tokens) else {
            return Err(LlmError::PromptTooLong { tokens, positions });
        };
        // The first token is chosen at the prompt's last position.
        let max_new_tokens = config.max_new_tokens.min(room.max(1));
        let config = GenerationConfig {
            max_new_tokens,
            ..config
        };
        let mut cache = self.cache(1, prompt.len() + config.max_new_tokens, device);
        let embeds = self.embed(ids_tensor(prompt, device));
        let hidden = in_pool(|| self.advance(embeds, &mut cache))?;
        Ok(TokenStream {
            lm: self,
            config,
            sampler,
            cache,
            device: device.clone(),
            hidden: Some(hidden),
            ids: prompt.to_vec(),
            new: 0,
        })
    }

    /// Feeds embeddings and keeps the hidden state of the last position `[batch, 1, dim]`.
    fn advance(&self, embeds: Tensor<3>, cache: &mut KvCache) -> Result<Tensor<3>> {
        let hidden = self.forward_cached(embeds, None, cache)?;
        let [b, s, d] = hidden.dims();
        Ok(hidden.slice([0..b, s - 1..s, 0..d]))
    }

    fn last_logits(&self, hidden: Tensor<3>) -> Result<Vec<f32>> {
        // Half-precision logits would have ties.
        let dtype = activation_dtype(&hidden);
        let logits = self.logits(hidden.cast(dtype));
        let shape = logits.dims().to_vec();
        logits
            .into_data()
            .convert::<f32>()
            .try_into_vec()
            .map_err(|e| LlmError::Shape {
                place: "logits",
                expected: format!("readable values ({e:?})"),
                found: shape,
            })
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        in_pool(|| self.choose_next())
    }
}

impl TokenStream<'_> {
    fn choose_next(&mut self) -> Option<Result<u32>> {
        if self.new >= self.config.max_new_tokens {
            return None;
        }
        let hidden = match (self.hidden.take(), self.new) {
            (Some(hidden), _) => hidden,
            (None, 0) => return None,
            (None, _) => {
                let last = *self.ids.last()?;
                if self.config.stop.contains(&last) {
                    return None;
                }
                let embeds = self.lm.embed(ids_tensor(&[last], &self.device));
                match self.lm.advance(embeds, &mut self.cache) {
                    Ok(hidden) => hidden,
                    Err(e) => return Some(Err(self.stop(e))),
                }
            }
        };
        let chosen = self
            .lm
            .last_logits(hidden)
            .and_then(|logits| self.sampler.sample(&logits, &self.ids));
        match chosen {
            Ok(id) => {
                self.ids.push(id);
                self.new += 1;
                Some(Ok(id))
            }
            Err(e) => Some(Err(self.stop(e))),
        }
    }

    fn stop(&mut self, error: LlmError) -> LlmError {
        self.new = self.config.max_new_tokens;
        error
    }
}

fn check_ids(lm: &CausalLm, ids: &[u32]) -> Result<()> {
    let vocab = lm.vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(LlmError::Shape {
            place: "prompt",
            expected: format!("ids below {vocab}"),
            found: vec![*id as usize],
        });
    }
    if ids.is_empty() {
        return Err(LlmError::Shape {
            place: "prompt",
            expected: "at least one id".into(),
            found: vec![0],
        });
    }
    Ok(())
}

fn ids_tensor(ids: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let shape = [1, ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}
