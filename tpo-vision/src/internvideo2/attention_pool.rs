//! Attention pooling of all tokens of a clip to one vector.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, merge_heads, split_heads};
use tpo_core::ops::{self, AttentionOptions};

use super::InternVideo2Config;
use super::block::linear;

/// Cross-attention whose biases are separate parameters beside the weights.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Query weight `[dim, dim]`.
    pub q: Linear,
    /// Key weight `[dim, dim]`.
    pub k: Linear,
    /// Value weight `[dim, dim]`.
    pub v: Linear,
    /// Query bias `[dim]`.
    pub q_bias: Param<Tensor<1>>,
    /// Key bias `[dim]`.
    pub k_bias: Param<Tensor<1>>,
    /// Value bias `[dim]`.
    pub v_bias: Param<Tensor<1>>,
    /// Output projection `[clip_embed_dim, dim]` with bias.
    pub proj: Linear,
    heads: usize,
}

/// One query, the mean of all tokens, attends to all tokens; each of the three inputs has its own
/// layer norm.
#[derive(Module, Debug)]
pub struct AttentionPool {
    /// Norm of the query's input.
    pub norm1_q: LayerNorm,
    /// Norm of the keys' input.
    pub norm1_k: LayerNorm,
    /// Norm of the values' input.
    pub norm1_v: LayerNorm,
    /// The attention.
    pub cross_attn: CrossAttention,
}

impl CrossAttention {
    fn new(config: &InternVideo2Config, device: &Device) -> Self {
        let dim = config.embed_dim;
        let weight = || linear(dim, dim, false).init(device);
        let bias = || Initializer::Zeros.init([dim], device);
        Self {
            q: weight(),
            k: weight(),
            v: weight(),
            q_bias: bias(),
            k_bias: bias(),
            v_bias: bias(),
            proj: linear(dim, config.clip_embed_dim, true).init(device),
            heads: config.attn_pool_num_heads,
        }
    }

    /// # Shapes
    /// - q `[batch, queries, dim]`, k and v `[batch, tokens, dim]`
    /// - output `[batch, queries, clip_embed_dim]`
    pub fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let project = |x: Tensor<3>, weight: &Linear, bias: &Param<Tensor<1>>| {
            split_heads(weight.weight.apply(x, Some(bias.val())), self.heads)
        };
        let out = ops::attention(
            project(q, &self.q, &self.q_bias),
            project(k, &self.k, &self.k_bias),
            project(v, &self.v, &self.v_bias),
            AttentionOptions::default(),
        );
        self.proj.forward(merge_heads(out))
    }
}

impl AttentionPool {
    pub(super) fn new(config: &InternVideo2Config, device: &Device) -> Self {
        let norm = || {
            LayerNormConfig::new(config.embed_dim)
                .with_eps(config.pool_norm_eps)
                .init(device)
        };
        Self {
            norm1_q: norm(),
            norm1_k: norm(),
            norm1_v: norm(),
            cross_attn: CrossAttention::new(config, device),
        }
    }

    /// # Shapes
    /// - tokens `[batch, tokens, dim]`, the class token included
    /// - output `[batch, 1, clip_embed_dim]`, not normalised
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let query = mean_token(tokens.clone());
        self.cross_attn.forward(
            self.norm1_q.forward(query),
            self.norm1_k.forward(tokens.clone()),
            self.norm1_v.forward(tokens),
        )
    }
}

/// Mean over the tokens `[batch, 1, dim]`, summed in f32.
pub(crate) fn mean_token(tokens: Tensor<3>) -> Tensor<3> {
    let dtype = tokens.dtype();
    ops::to_f32(tokens).mean_dim(1).cast(dtype)
}
