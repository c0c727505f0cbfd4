//! Changing the adapters of a language model.

use std::collections::BTreeSet;

use tpo_core::LoraConfig;

use super::causal_lm::{CausalLm, OutputLayer, TiedOutput};
use crate::config::{LORA_TARGETS, LlmConfig};
use crate::error::Result;

impl CausalLm {
    /// Merges every adapter into its weight (see [`LoraLinear::merge`](super::LoraLinear::merge)). That of
    /// an output layer that is the embedding table is applied as before: the embeddings must not change.
    pub fn merge_lora(self) -> Self {
        self.map_linears(|_, linear| linear.merge())
    }

    /// Subtracts merged adapters from the weights again.
    pub fn unmerge_lora(self) -> Self {
        self.map_linears(|_, linear| linear.unmerge())
    }

    /// Merges every adapter into its weight and removes it: the same outputs from a plain decoder. An output
    /// layer that was the embedding table and had an adapter has a weight of its own then
    /// (`tie_word_embeddings` of [`CausalLm::config`]).
    pub fn bake_lora(self) -> Self {
        let mut baked = self.map_linears(|_, linear| linear.bake());
        if let OutputLayer::Tied(TiedOutput { lora: Some(_) }) = &baked.lm_head
            && let OutputLayer::Tied(tied) = baked.lm_head
        {
            let head = tied.into_linear(&baked.model.embed_tokens.weight);
            baked.lm_head = OutputLayer::Own(head.bake());
            baked.config.tie_word_embeddings = false;
        }
        baked.config.lora = None;
        baked
    }

    /// Removes the adapters and puts new ones in their place, initialised on first use; what the
    /// removed ones had learned is lost. `None` leaves a plain decoder.
    ///
    /// # Errors
    /// Every problem of [`LlmConfig::validate`](crate::LlmConfig::validate).
    pub fn replace_lora(self, lora: Option<LoraConfig>) -> Result<Self> {
        let mut config = self.config.clone();
        config.lora = lora.clone();
        config.validate()?;
        let wanted = |name: &str| {
            lora.as_ref()
                .filter(|l| l.targets.iter().any(|t| t == name))
        };
        let mut model = self
            .unmerge_lora()
            .map_adapters(|name, linear| linear.with_adapter(wanted(name)));
        model.config = config;
        Ok(model)
    }

    /// Gives the model these adapters without changing its outputs.
    ///
    /// With the rank and targets it has already, dropout and scale are set; the second factor takes
    /// up the change of the scale. Otherwise the old adapters are merged into the weights and new
    /// ones, whose product is zero, are initialised on first use.
    ///
    /// # Errors
    /// As [`CausalLm::replace_lora`].
    pub fn set_lora(self, lora: LoraConfig) -> Result<Self> {
        let same = self.config.lora.as_ref().is_some_and(|old| {
            let targets = |l: &LoraConfig| l.targets.iter().cloned().collect::<BTreeSet<_>>();
            old.rank == lora.rank && targets(old) == targets(&lora)
        });
        if !same {
            return self.bake_lora().replace_lora(Some(lora));
        }
        let mut config = self.config.clone();
        config.lora = Some(lora.clone());
        config.validate()?;
        let mut model = self
            .unmerge_lora()
            .map_adapters(|_, linear| linear.with_adapter_settings(&lora));
        model.config = config;
        Ok(model)
    }
}

impl LlmConfig {
    /// These adapters for this model: without targets all layers get one, but for an output layer that is
    /// the embedding table, which must be named.
    pub fn adapters(&self, lora: &LoraConfig) -> LoraConfig {
        let mut lora = lora.clone();
        if lora.targets.is_empty() {
            let plain = |target: &&str| !(self.tie_word_embeddings && *target == "lm_head");
            lora.targets = LORA_TARGETS
                .into_iter()
                .filter(plain)
                .map(String::from)
                .collect();
        }
        lora
    }
}
