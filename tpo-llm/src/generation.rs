//! Generating text with a language model alone.

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::traits::{DecodeCache, LanguageModel};

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
    /// make sense.
    pub fn stream(
        &self,
        prompt: &[u32],
        config: GenerationConfig,
        device: &Device,
    ) -> Result<TokenStream<'_>> {
        check_ids(self, prompt)?;
        let sampler = Sampler::new(config.sampling.clone())?;
        let mut config = config;
        config.max_new_tokens = room(self, prompt.len(), &config);
        let mut cache = self.cache(1, prompt.len() + config.max_new_tokens, device);
        let embeds = self.embed(ids_tensor(&[prompt.to_vec()], device));
        let hidden = self.advance(embeds, None, &mut cache)?;
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

    /// Generates for several prompts at once, padded on the left. A row ends at its first stop
    /// token; rows sample with the seeds `seed`, `seed + 1`, …
    ///
    /// # Errors
    /// As [`CausalLm::stream`].
    pub fn generate_batch(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
        device: &Device,
    ) -> Result<Vec<Vec<u32>>> {
        for prompt in prompts {
            check_ids(self, prompt)?;
        }
        let (batch, longest) = (
            prompts.len(),
            prompts.iter().map(Vec::len).max().unwrap_or(0),
        );
        if batch == 0 {
            return Ok(Vec::new());
        }
        let mut samplers = (0..batch)
            .map(|row| {
                let mut sampling = config.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(row as u64);
                Sampler::new(sampling)
            })
            .collect::<Result<Vec<_>>>()?;
        let pad = |p: &Vec<u32>| [vec![0; longest - p.len()], p.clone()].concat();
        let padded: Vec<Vec<u32>> = prompts.iter().map(pad).collect();
        let mask: Vec<Vec<bool>> = prompts
            .iter()
            .map(|p| (0..longest).map(|i| i >= longest - p.len()).collect())
            .collect();
        let most = room(self, longest, config);
        let mut cache = self.cache(batch, longest + most, device);
        let embeds = self.embed(ids_tensor(&padded, device));
        let mut hidden = self.advance(embeds, Some(&mask), &mut cache)?;
        let mut history = prompts.to_vec();
        let mut done = vec![false; batch];
        for step in 0..most {
            let logits = self.last_logits(hidden)?;
            let mut next = vec![vec![0]; batch];
            for (row, logits) in logits.chunks_exact(self.vocab_size()).enumerate() {
                if done[row] {
                    continue;
                }
                let id = samplers[row].sample(logits, &history[row])?;
                next[row] = vec![id];
                history[row].push(id);
                done[row] = config.stop.contains(&id);
            }
            if done.iter().all(|d| *d) || step + 1 == most {
                break;
            }
            hidden = self.advance(self.embed(ids_tensor(&next, device)), None, &mut cache)?;
        }
        Ok(history
            .into_iter()
            .zip(prompts)
            .map(|(all, prompt)| all[prompt.len()..].to_vec())
            .collect())
    }

    /// Feeds embeddings and keeps the hidden state of the last position `[batch, 1, dim]`.
    fn advance(
        &self,
        embeds: Tensor<3>,
        mask: Option<&[Vec<bool>]>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>> {
        let hidden = self.forward_cached(embeds, mask, cache)?;
        let [b, s, d] = hidden.dims();
        Ok(hidden.slice([0..b, s - 1..s, 0..d]))
    }

    fn last_logits(&self, hidden: Tensor<3>) -> Result<Vec<f32>> {
        let logits = self.logits(hidden);
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

impl TokenStream<'_> {
    /// Positions in the cache: prompt and new tokens fed so far.
    pub fn position(&self) -> usize {
        self.cache.len()
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
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
                let embeds = self.lm.embed(ids_tensor(&[vec![last]], &self.device));
                match self.lm.advance(embeds, None, &mut self.cache) {
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
}

impl TokenStream<'_> {
    fn stop(&mut self, error: LlmError) -> LlmError {
        self.new = self.config.max_new_tokens;
        error
    }
}

/// New tokens that are asked for and have a position after `prompt` tokens; at least one.
fn room(lm: &CausalLm, prompt: usize, config: &GenerationConfig) -> usize {
    let left = lm.max_length().saturating_sub(prompt).max(1);
    config.max_new_tokens.min(left)
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

fn ids_tensor(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let (b, s) = (rows.len(), rows.first().map_or(0, Vec::len));
    let flat: Vec<i64> = rows.iter().flatten().map(|id| *id as i64).collect();
    Tensor::from_data(TensorData::new(flat, [b, s]), device)
}
