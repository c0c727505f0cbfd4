//! A pre-norm layer of the tower.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, merge_heads, split_heads};
use tpo_core::ops::{self, AttentionOptions};

use super::SiglipConfig;

/// Multi-head self-attention of every patch with all others of its picture.
#[derive(Module, Debug)]
pub struct SiglipAttention {
    /// Queries `[dim, dim]`.
    pub q_proj: Linear,
    /// Keys `[dim, dim]`. Soft-max takes no notice of their bias, whose gradient is zero.
    pub k_proj: Linear,
    /// Values `[dim, dim]`.
    pub v_proj: Linear,
    /// Output `[dim, dim]`.
    pub out_proj: Linear,
    heads: usize,
}

/// Two linear layers with a tanh-approximated GELU between them.
#[derive(Module, Debug)]
pub struct SiglipMlp {
    /// To the hidden width.
    pub fc1: Linear,
    /// Back to the token width.
    pub fc2: Linear,
}

/// `x + self_attn(layer_norm1(x))`, then `x + mlp(layer_norm2(x))`.
#[derive(Module, Debug)]
pub struct SiglipLayer {
    /// Norm before the attention.
    pub layer_norm1: LayerNorm,
    /// The attention.
    pub self_attn: SiglipAttention,
    /// Norm before the MLP.
    pub layer_norm2: LayerNorm,
    /// The MLP.
    pub mlp: SiglipMlp,
}

impl SiglipAttention {
    /// `[pictures, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let heads = |layer: &Linear| split_heads(layer.forward(x.clone()), self.heads);
        let (q, k, v) = (
            heads(&self.q_proj),
            heads(&self.k_proj),
            heads(&self.v_proj),
        );
        // Scaled by 1/sqrt(head width) by default.
        let out = ops::attention(q, k, v, AttentionOptions::default());
        self.out_proj.forward(merge_heads(out))
    }
}

impl SiglipMlp {
    /// `[pictures, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(ops::gelu_tanh(self.fc1.forward(x)))
    }
}

impl SiglipLayer {
    pub(super) fn new(config: &SiglipConfig, device: &Device) -> Self {
        let (dim, hidden) = (config.hidden_size, config.intermediate_size);
        let norm = || {
            LayerNormConfig::new(dim)
                .with_eps(config.layer_norm_eps)
                .init(device)
        };
        let linear = |d_in, d_out| {
            LinearConfig::new(d_in, d_out)
                .with_quantization(config.quantization)
                .init(device)
        };
        Self {
            layer_norm1: norm(),
            self_attn: SiglipAttention {
                q_proj: linear(dim, dim),
                k_proj: linear(dim, dim),
                v_proj: linear(dim, dim),
                out_proj: linear(dim, dim),
                heads: config.num_attention_heads,
            },
            layer_norm2: norm(),
            mlp: SiglipMlp {
                fc1: linear(dim, hidden),
                fc2: linear(hidden, dim),
            },
        }
    }

    /// `[pictures, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x));
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}
