//! A pre-norm transformer block of the video encoder.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, merge_heads, split_heads};
use tpo_core::ops::{self, AttentionOptions};

use super::UmtConfig;
use crate::drop_path::{DropPath, DropPathConfig};

/// Multi-head self-attention with one projection for query, key and value. Query and value have
/// biases, the key has none.
#[derive(Module, Debug)]
pub struct UmtAttention {
    /// Projection to query, key and value, `[3·dim, dim]`, without bias.
    pub qkv: Linear,
    /// Bias of the query `[dim]`.
    pub q_bias: Param<Tensor<1>>,
    /// Bias of the value `[dim]`.
    pub v_bias: Param<Tensor<1>>,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

/// Two linear layers with an exact (erf) GELU between them.
#[derive(Module, Debug)]
pub struct UmtMlp {
    /// To the hidden width.
    pub fc1: Linear,
    /// Back to the token width.
    pub fc2: Linear,
}

/// `x + attn(norm1(x))`, then `x + mlp(norm2(x))`, both branches under drop-path.
#[derive(Module, Debug)]
pub struct UmtBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// The attention.
    pub attn: UmtAttention,
    /// Norm before the MLP.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: UmtMlp,
    /// Stochastic depth of both branches.
    pub drop_path: DropPath,
}

impl UmtAttention {
    fn new(config: &UmtConfig, device: &Device) -> Self {
        let dim = config.encoder_embed_dim;
        Self {
            qkv: LinearConfig::new(dim, 3 * dim)
                .with_bias(false)
                .with_quantization(config.quantization)
                .init(device),
            q_bias: Initializer::Zeros.init([dim], device),
            v_bias: Initializer::Zeros.init([dim], device),
            proj: LinearConfig::new(dim, dim)
                .with_quantization(config.quantization)
                .init(device),
            heads: config.encoder_num_heads,
        }
    }

    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dim = x.dims()[2];
        let q_bias = self.q_bias.val();
        let bias = Tensor::cat(
            vec![q_bias.clone(), q_bias.zeros_like(), self.v_bias.val()],
            0,
        );
        let qkv = self.qkv.weight.apply(x, Some(bias));
        let heads = |part: usize| split_heads(qkv.clone().narrow(2, part * dim, dim), self.heads);
        // Scaled by 1/sqrt(head width) by default.
        let out = ops::attention(heads(0), heads(1), heads(2), AttentionOptions::default());
        self.proj.forward(merge_heads(out))
    }
}

impl UmtMlp {
    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.fc2.forward(ops::gelu(self.fc1.forward(x)))
    }
}

impl UmtBlock {
    /// Creates a block with the given drop-path probability.
    pub(crate) fn new(config: &UmtConfig, drop_path: f64, device: &Device) -> Self {
        let dim = config.encoder_embed_dim;
        let hidden = dim * config.mlp_ratio;
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
            norm1: norm(),
            attn: UmtAttention::new(config, device),
            norm2: norm(),
            mlp: UmtMlp {
                fc1: linear(dim, hidden),
                fc2: linear(hidden, dim),
            },
            drop_path: DropPathConfig::new(drop_path).init(),
        }
    }

    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let branch = self.attn.forward(self.norm1.forward(x.clone()));
        let x = x + self.drop_path.forward(branch);
        let branch = self.mlp.forward(self.norm2.forward(x.clone()));
        x + self.drop_path.forward(branch)
    }
}
