//! A pre-norm transformer block with normalised queries and keys and LayerScale.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig, merge_heads, split_heads};
use tpo_core::ops::{self, AttentionOptions};

use super::InternVideo2Config;
use crate::drop_path::{DropPath, DropPathConfig};
use crate::umt::UmtMlp;

/// Deviation of the initial linear weights (reference implementation: truncated normal 0.02).
pub(super) const INIT_STD: f64 = 0.02;

/// A linear layer with the tower's initialisation.
pub(super) fn linear(d_in: usize, d_out: usize, bias: bool) -> LinearConfig {
    LinearConfig::new(d_in, d_out)
        .with_bias(bias)
        .with_initializer(Initializer::Normal {
            mean: 0.0,
            std: INIT_STD,
        })
}

/// A linear layer of a block.
fn block_linear(
    config: &InternVideo2Config,
    [d_in, d_out]: [usize; 2],
    bias: bool,
    device: &Device,
) -> Linear {
    linear(d_in, d_out, bias)
        .with_quantization(config.quantization)
        .init(device)
}

/// Multi-head self-attention. Query and key are normalised over the **full** width, all heads
/// together, before they are split into heads.
#[derive(Module, Debug)]
pub struct InternVideo2Attention {
    /// Projection to query, key and value `[3·dim, dim]`.
    pub qkv: Linear,
    /// Norm of the query over the full width.
    pub q_norm: Option<RmsNorm>,
    /// Norm of the key over the full width.
    pub k_norm: Option<RmsNorm>,
    /// Output projection.
    pub proj: Linear,
    heads: usize,
}

/// Elementwise scale of a residual branch ("Going deeper with image transformers",
/// arXiv 2103.17239).
#[derive(Module, Debug)]
pub struct LayerScale {
    /// Scale per channel `[dim]`.
    pub gamma: Param<Tensor<1>>,
}

/// `x + ls1·attn(norm1(x))`, then `x + ls2·mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct InternVideo2Block {
    /// Norm before the attention.
    pub norm1: RmsNorm,
    /// The attention.
    pub attn: InternVideo2Attention,
    /// Scale of the attention branch.
    pub ls1: LayerScale,
    /// Norm before the MLP.
    pub norm2: RmsNorm,
    /// The MLP.
    pub mlp: UmtMlp,
    /// Scale of the MLP branch.
    pub ls2: LayerScale,
    /// Stochastic depth of both branches.
    pub drop_path: DropPath,
}

impl InternVideo2Attention {
    fn new(config: &InternVideo2Config, device: &Device) -> Self {
        let dim = config.embed_dim;
        let norm = || {
            config.qk_normalization.then(|| {
                RmsNormConfig::new(dim)
                    .with_eps(config.rms_norm_eps)
                    .init(device)
            })
        };
        Self {
            qkv: block_linear(config, [dim, 3 * dim], config.qkv_bias, device),
            q_norm: norm(),
            k_norm: norm(),
            proj: block_linear(config, [dim, dim], true, device),
            heads: config.num_heads,
        }
    }

    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dim = x.dims()[2];
        let qkv = self.qkv.forward(x);
        let part = |at: usize| qkv.clone().narrow(2, at * dim, dim);
        let normed = |x: Tensor<3>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let heads = |x| split_heads(x, self.heads);
        let q = heads(normed(part(0), &self.q_norm));
        let k = heads(normed(part(1), &self.k_norm));
        // Scaled by 1/sqrt(head width) by default.
        let out = ops::attention(q, k, heads(part(2)), AttentionOptions::default());
        self.proj.forward(merge_heads(out))
    }
}

impl LayerScale {
    fn new(config: &InternVideo2Config, device: &Device) -> Self {
        let value = config.init_values;
        Self {
            gamma: Initializer::Constant { value }.init([config.embed_dim], device),
        }
    }

    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        x * self.gamma.val().unsqueeze()
    }
}

impl InternVideo2Block {
    pub(super) fn new(config: &InternVideo2Config, drop_path: f64, device: &Device) -> Self {
        let (dim, hidden) = (config.embed_dim, config.mlp_hidden());
        let norm = || {
            RmsNormConfig::new(dim)
                .with_eps(config.rms_norm_eps)
                .init(device)
        };
        Self {
            norm1: norm(),
            attn: InternVideo2Attention::new(config, device),
            ls1: LayerScale::new(config, device),
            norm2: norm(),
            mlp: UmtMlp {
                fc1: block_linear(config, [dim, hidden], true, device),
                fc2: block_linear(config, [hidden, dim], true, device),
            },
            ls2: LayerScale::new(config, device),
            drop_path: DropPathConfig::new(drop_path).init(),
        }
    }

    /// `[batch, tokens, dim]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let branch = self.attn.forward(self.norm1.forward(x.clone()));
        let x = x + self.drop_path.forward(self.ls1.forward(branch));
        let branch = self.mlp.forward(self.norm2.forward(x.clone()));
        x + self.drop_path.forward(self.ls2.forward(branch))
    }
}
