//! The causal language model.

use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig, Weight};
use tpo_core::traits::{AttentionMask, LanguageModel, TurnMap};
use tpo_core::{CoreError, LoraConfig};

use super::attention::Pass;
use super::block::Block;
use super::cache::KvCache;
use super::lora::{LoraAdapter, LoraLinear, OUTPUT_FORMAT};
use super::rope::Rope;
use crate::config::LlmConfig;
use crate::error::{LlmError, Result};

/// Embeddings, blocks and the final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embeddings `[vocab, hidden]`. Of a quantised model they are blocks of 8 bits where they are
    /// the output layer too, which every token reads.
    pub embed_tokens: Embedding,
    /// Blocks.
    pub layers: Vec<Block>,
    /// Final norm.
    pub norm: RmsNorm,
}

/// What makes logits. An arm has no segment of its own in the paths of parameters.
#[derive(Module, Debug)]
pub enum OutputLayer {
    /// A weight of its own.
    Own(LoraLinear),
    /// The embedding table.
    Tied(TiedOutput),
}

impl OutputLayer {
    /// The layer, unless it is the embedding table.
    pub fn own(&self) -> Option<&LoraLinear> {
        match self {
            Self::Own(layer) => Some(layer),
            Self::Tied(_) => None,
        }
    }

    /// The layer, unless it is the embedding table.
    pub fn own_mut(&mut self) -> Option<&mut LoraLinear> {
        match self {
            Self::Own(layer) => Some(layer),
            Self::Tied(_) => None,
        }
    }
}

/// What an output layer has beside the embedding table.
#[derive(Module, Debug)]
pub struct TiedOutput {
    /// Adapter of the output only: what is read of the table for a token's embedding stays as it is.
    pub lora: Option<LoraAdapter>,
}

/// A decoder with its output layer. Parameter paths are Hugging Face's key names.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// The decoder.
    pub model: Decoder,
    /// Output layer `[vocab, hidden]`.
    pub lm_head: OutputLayer,
    #[module(skip)]
    pub(super) config: LlmConfig,
}

impl Decoder {
    /// The type that embeddings enter the blocks in.
    fn activation_dtype(&self) -> DType {
        match &self.embed_tokens.weight {
            Weight::Float(table) => table.val().dtype(),
            // Unpacked rows have the type of the other weights.
            Weight::Quantized(_) => self.norm.weight.val().dtype(),
        }
    }
}

impl LlmConfig {
    /// Creates a model with random weights, initialised on first use.
    ///
    /// # Errors
    /// Every problem of [`LlmConfig::validate`].
    pub fn init(&self, device: &Device) -> Result<CausalLm> {
        self.validate()?;
        let sizes = [self.hidden_size, self.vocab_size];
        let lm_head = if self.tie_word_embeddings {
            let lora = self.adapter("lm_head", [self.vocab_size, self.hidden_size], device);
            OutputLayer::Tied(TiedOutput { lora })
        } else {
            OutputLayer::Own(self.linear("lm_head", sizes, false, device))
        };
        let tied = self.quantization.filter(|_| self.tie_word_embeddings);
        Ok(CausalLm {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(self.vocab_size, self.hidden_size)
                    .with_std(self.initializer_range)
                    .with_quantization(tied.map(|_| OUTPUT_FORMAT))
                    .init(device),
                layers: (0..self.num_hidden_layers)
                    .map(|i| Block::new(self, i, device))
                    .collect(),
                norm: RmsNormConfig::new(self.hidden_size)
                    .with_eps(self.rms_norm_eps)
                    .init(device),
            },
            lm_head,
            config: self.clone(),
        })
    }
}

impl CausalLm {
    /// The architecture.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Hidden states `[batch, length, hidden]` before the first block, after each block, and —
    /// last — after the final norm instead of the last block's raw output, as transformers
    /// returns them.
    ///
    /// `positions` `[batch or 1][length]` default to `0..length`.
    pub fn hidden_states(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        positions: Option<&[Vec<usize>]>,
    ) -> Result<Vec<Tensor<3>>> {
        let pass = self.begin(&embeds, mask, positions)?;
        let mut states = vec![embeds];
        for block in &self.model.layers {
            let last = states[states.len() - 1].clone();
            states.push(block.forward(last, &pass, None));
        }
        let last = states.pop().map(|raw| self.model.norm.forward(raw));
        states.extend(last);
        Ok(states)
    }

    /// All blocks and the final norm, with positions `0..length` on every row.
    pub(crate) fn forward(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
    ) -> Result<Tensor<3>> {
        let pass = self.begin(&embeds, mask, None)?;
        Ok(self.through(embeds, pass, None))
    }

    /// All blocks and the final norm; with a tape every block is a checkpointed segment.
    fn through<'m>(
        &'m self,
        embeds: Tensor<3>,
        pass: Pass,
        tape: Option<&mut Tape<'m>>,
    ) -> Tensor<3> {
        let mut x = embeds;
        match tape {
            Some(tape) => {
                let pass = std::sync::Arc::new(pass);
                for block in &self.model.layers {
                    let pass = pass.clone();
                    x = tape.segment(x, move |x| block.forward(x, &pass, None));
                }
            }
            None => {
                for block in &self.model.layers {
                    x = block.forward(x, &pass, None);
                }
            }
        }
        self.model.norm.forward(x)
    }

    /// Checks the input of a pass without cache and makes what its blocks share.
    fn begin(
        &self,
        embeds: &Tensor<3>,
        mask: Option<&AttentionMask>,
        positions: Option<&[Vec<usize>]>,
    ) -> Result<Pass> {
        let [b, s, _] = self.check(embeds)?;
        if let Some(m) = mask
            && (m.len() != b || m.iter().any(|r| r.len() != s))
        {
            return Err(LlmError::Shape {
                place: "CausalLm::hidden",
                expected: format!("a mask of [{b}, {s}]"),
                found: m.iter().map(Vec::len).collect(),
            });
        }
        let default = [(0..s).collect::<Vec<_>>()];
        let positions = positions.unwrap_or(&default);
        if ![1, b].contains(&positions.len()) || positions.iter().any(|r| r.len() != s) {
            return Err(LlmError::Shape {
                place: "CausalLm::hidden",
                expected: format!("positions of [1 or {b}, {s}]"),
                found: positions.iter().map(Vec::len).collect(),
            });
        }
        Ok(self.pass(positions, mask, &embeds.device()))
    }

    /// Appends embeddings to the cache; see [`LanguageModel::step`].
    pub fn forward_cached(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>> {
        let [b, s, _] = self.check(&embeds)?;
        let positions = cache.begin(b, s, mask)?;
        let all = cache.padding().map(<[Vec<bool>]>::to_vec);
        let pass = self.pass(&positions, all.as_deref(), &embeds.device());
        let mut x = embeds;
        for (i, block) in self.model.layers.iter().enumerate() {
            x = block.forward(x, &pass, Some((cache, i)));
        }
        cache.commit(s);
        Ok(self.model.norm.forward(x))
    }

    /// Replaces every linear layer, given its name ([`LORA_TARGETS`](crate::LORA_TARGETS)), but for an
    /// output layer that is the embedding table.
    pub(super) fn map_linears(self, f: impl Fn(&str, LoraLinear) -> LoraLinear) -> Self {
        Self {
            model: Decoder {
                layers: self
                    .model
                    .layers
                    .into_iter()
                    .map(|b| b.map_linears(&f))
                    .collect(),
                ..self.model
            },
            lm_head: match self.lm_head {
                OutputLayer::Own(head) => OutputLayer::Own(f("lm_head", head)),
                tied => tied,
            },
            ..self
        }
    }

    /// [`CausalLm::map_linears`] of what changes adapters only, an output layer that is the embedding
    /// table included.
    pub(super) fn map_adapters(self, f: impl Fn(&str, LoraLinear) -> LoraLinear) -> Self {
        let mut this = self.map_linears(&f);
        if let OutputLayer::Tied(tied) = this.lm_head {
            let lora = f("lm_head", tied.into_linear(&this.model.embed_tokens.weight)).lora;
            this.lm_head = OutputLayer::Tied(TiedOutput { lora });
        }
        this
    }

    fn check(&self, embeds: &Tensor<3>) -> Result<[usize; 3]> {
        let dims = embeds.dims();
        if dims[2] != self.config.hidden_size || dims[0] == 0 || dims[1] == 0 {
            return Err(LlmError::Shape {
                place: "CausalLm",
                expected: format!(
                    "embeddings of [batch, length, {}], neither empty",
                    self.config.hidden_size
                ),
                found: dims.to_vec(),
            });
        }
        Ok(dims)
    }

    fn pass(
        &self,
        positions: &[Vec<usize>],
        mask: Option<&AttentionMask>,
        device: &Device,
    ) -> Pass {
        let padded = mask.filter(|m| m.iter().flatten().any(|real| !real));
        Pass {
            rope: Rope::new(
                positions,
                self.config.head_dim,
                self.config.rope_theta,
                device,
            ),
            padding: padded.map(|m| {
                let (b, s) = (m.len(), m[0].len());
                let flat: Vec<bool> = m.iter().flatten().map(|real| !real).collect();
                Tensor::<2, Bool>::from_data(TensorData::new(flat, [b, s]), device)
            }),
            hidden_keys: None,
        }
    }

    /// Checks the input of a pass over rows of packed turns and makes what its blocks share.
    fn begin_packed(
        &self,
        embeds: &Tensor<3>,
        mask: Option<&AttentionMask>,
        turns: &TurnMap,
    ) -> tpo_core::Result<Pass> {
        let [b, s, _] = embeds.dims();
        if let Some(window) = self.config.sliding_window.filter(|window| *window < s) {
            return Err(CoreError::TurnsApart {
                why: format!(
                    "a window of {window} positions is narrower than the {s} of the rows, and would \
                     be counted across turns; take fewer turns a row, or leave `packed_turns` out"
                ),
            });
        }
        if turns.len() != b || turns.iter().any(|row| row.len() != s) {
            return Err(CoreError::TurnsApart {
                why: format!("the map of turns must be [{b}, {s}], as the embeddings"),
            });
        }
        let positions = turns
            .iter()
            .map(|row| packed_positions(row))
            .collect::<tpo_core::Result<Vec<_>>>()?;
        let mut pass = self.begin(embeds, mask, Some(&positions))?;
        // Detached: attention has no kernel for a bias that may need a gradient.
        pass.hidden_keys = Some(packed_keys(turns, &embeds.device().inner()));
        Ok(pass)
    }
}

impl TiedOutput {
    /// The output layer as any other, with the embedding table as its weight.
    pub(super) fn into_linear(self, table: &Weight) -> LoraLinear {
        LoraLinear {
            weight: table.clone(),
            bias: None,
            lora: self.lora,
        }
    }
}

/// Positions of a row of packed turns: each turn continues after the part that all share.
fn packed_positions(turns: &[u32]) -> tpo_core::Result<Vec<usize>> {
    let shared = turns.iter().take_while(|turn| **turn == 0).count();
    let (mut last, mut at) = (0, 0);
    let mut positions = Vec::with_capacity(turns.len());
    for (i, &turn) in turns.iter().enumerate() {
        // Zeros at the end are padding.
        if turn < last && turn != 0 || turn > 0 && i > 0 && turns[i - 1] == 0 && last > 0 {
            return Err(CoreError::TurnsApart {
                why: format!(
                    "position {i} is of turn {turn}, after one of turn {last}; turns must be in \
                     order, and what they share in front of them"
                ),
            });
        }
        if turn > last {
            at = shared;
            last = turn;
        }
        positions.push(at);
        at += 1;
    }
    Ok(positions)
}

/// Minus infinity where a position must not see another, `[batch, 1, length, length]`.
fn packed_keys(turns: &TurnMap, device: &Device) -> Tensor<4> {
    let (b, s) = (turns.len(), turns[0].len());
    let mut values = Vec::with_capacity(b * s * s);
    for row in turns {
        for query in row {
            let sees = |key: &u32| *key == 0 || key == query;
            let line = row
                .iter()
                .map(|key| if sees(key) { 0.0f32 } else { f32::NEG_INFINITY });
            values.extend(line);
        }
    }
    Tensor::from_data(TensorData::new(values, [b, 1, s, s]), device)
}

impl LanguageModel for CausalLm {
    type Cache = KvCache;

    fn dim(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let rows = self.model.embed_tokens.forward(ids);
        rows.cast(self.model.activation_dtype())
    }

    fn hidden(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
    ) -> tpo_core::Result<Tensor<3>> {
        Ok(self.forward(embeds, mask)?)
    }

    fn hidden_checkpointed<'m>(
        &'m self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        tape: &mut Tape<'m>,
    ) -> tpo_core::Result<Tensor<3>> {
        let pass = self.begin(&embeds, mask, None)?;
        Ok(self.through(embeds, pass, Some(tape)))
    }

    fn hidden_packed<'m>(
        &'m self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        turns: &TurnMap,
        tape: Option<&mut Tape<'m>>,
    ) -> tpo_core::Result<Tensor<3>> {
        let pass = self.begin_packed(&embeds, mask, turns)?;
        Ok(self.through(embeds, pass, tape))
    }

    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.lm_head {
            OutputLayer::Own(head) => head.forward(hidden),
            OutputLayer::Tied(tied) => {
                let table = &self.model.embed_tokens.weight;
                tied.clone().into_linear(table).forward(hidden)
            }
        }
    }

    fn max_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn cache(&self, batch: usize, capacity: usize, _device: &Device) -> KvCache {
        let device = self.model.embed_tokens.weight.device();
        let dtype = self.model.activation_dtype();
        KvCache::new(&self.config, batch, capacity, (&device, dtype))
    }

    fn with_adapters(self, adapters: &LoraConfig) -> tpo_core::Result<Self> {
        let lora = self.config.adapters(adapters);
        Ok(self.set_lora(lora)?)
    }

    fn step(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        cache: &mut KvCache,
    ) -> tpo_core::Result<Tensor<3>> {
        Ok(self.forward_cached(embeds, mask, cache)?)
    }
}
