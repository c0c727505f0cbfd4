//! Grouped-query self-attention.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::ops::{self, AttentionOptions};

use super::cache::KvCache;
use super::lora::LoraLinear;
use super::rope::Rope;
use crate::config::LlmConfig;

/// Self-attention with rotary positions; parameters as Hugging Face names them.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries `[heads * head_dim, hidden]`.
    pub q_proj: LoraLinear,
    /// Keys `[kv_heads * head_dim, hidden]`.
    pub k_proj: LoraLinear,
    /// Values `[kv_heads * head_dim, hidden]`.
    pub v_proj: LoraLinear,
    /// Output `[hidden, heads * head_dim]`.
    pub o_proj: LoraLinear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

/// What every layer of a forward pass shares.
pub(crate) struct Pass {
    pub rope: Rope,
    /// `[batch, keys]`, true where padded.
    pub padding: Option<Tensor<2, Bool>>,
    /// `[batch, 1, length, length]`, minus infinity where a query must not see a key; without a
    /// gradient.
    pub hidden_keys: Option<Tensor<4>>,
}

impl SelfAttention {
    pub(crate) fn new(config: &LlmConfig, layer: usize, device: &Device) -> Self {
        let (d, bias) = (config.hidden_size, config.attention_bias);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        Self {
            q_proj: config.linear("q_proj", [d, q], bias, device),
            k_proj: config.linear("k_proj", [d, kv], bias, device),
            v_proj: config.linear("v_proj", [d, kv], bias, device),
            o_proj: config.linear("o_proj", [q, d], false, device),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            window: config.window_of(layer),
        }
    }

    /// # Shapes
    /// - x `[batch, length, hidden]`, output the same
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        pass: &Pass,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        let [b, s, d] = x.dims();
        let split =
            |t: Tensor<3>, heads: usize| t.reshape([b, s, heads, self.head_dim]).swap_dims(1, 2);
        let queries = |x| {
            let q = split(self.q_proj.forward(x), self.heads);
            pass.rope.apply(q)
        };
        let keys_and_values = |x: Tensor<3>| {
            let k = split(self.k_proj.forward(x.clone()), self.kv_heads);
            let v = split(self.v_proj.forward(x), self.kv_heads);
            (pass.rope.apply(k), v)
        };
        let weights = d * self.head_dim * self.heads.min(2 * self.kv_heads);
        let drawn = [&self.q_proj, &self.k_proj, &self.v_proj]
            .iter()
            .all(|layer| layer.is_drawn());
        let (q, (k, v)) = ops::together(x, weights, drawn, queries, keys_and_values);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.append(layer, k, v),
            None => (k, v),
        };
        let options = AttentionOptions {
            causal: true,
            sliding_window: self.window,
            key_padding: pass.padding.clone(),
            bias: pass.hidden_keys.clone(),
            ..Default::default()
        };
        let y = ops::attention(q, k, v, options).swap_dims(1, 2).reshape([
            b,
            s,
            self.heads * self.head_dim,
        ]);
        self.o_proj.forward(y)
    }

    pub(crate) fn map_linears(self, f: &impl Fn(&str, LoraLinear) -> LoraLinear) -> Self {
        Self {
            q_proj: f("q_proj", self.q_proj),
            k_proj: f("k_proj", self.k_proj),
            v_proj: f("v_proj", self.v_proj),
            o_proj: f("o_proj", self.o_proj),
            ..self
        }
    }
}
