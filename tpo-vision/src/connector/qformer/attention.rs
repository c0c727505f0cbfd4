//! Attention of the Q-Former, within the sequence and to the visual tokens.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Initializer};
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{
    LayerNorm, LayerNormConfig, Linear, LinearConfig, attention_with_dropout, merge_heads,
    split_heads,
};
use tpo_core::ops::AttentionOptions;

use super::QFormerConfig;
use crate::drop_path::{DropPath, DropPathConfig};

/// Multi-head attention with separate projections.
#[derive(Module, Debug)]
pub struct QFormerSelfAttention {
    /// Query projection.
    pub query: Linear,
    /// Key projection, from the visual width in cross-attention.
    pub key: Linear,
    /// Value projection, from the visual width in cross-attention.
    pub value: Linear,
    /// Dropout of the attention weights.
    pub dropout: Dropout,
    heads: usize,
}

/// Projection, dropout, drop-path, residual and norm, in this order.
#[derive(Module, Debug)]
pub struct ResidualOutput {
    /// The projection.
    pub dense: Linear,
    /// Norm of the sum.
    pub layer_norm: LayerNorm,
    /// Dropout of the branch.
    pub dropout: Dropout,
    /// Stochastic depth of the branch.
    pub drop_path: DropPath,
}

/// Post-norm attention: `LayerNorm(x + dense(attention(x)))`.
#[derive(Module, Debug)]
pub struct QFormerAttention {
    /// The attention (`self` in the checkpoint, in cross-attention too).
    pub self_attention: QFormerSelfAttention,
    /// Output projection with residual and norm.
    pub output: ResidualOutput,
}

/// A linear layer with the Q-Former's initialisation.
pub(super) fn linear(config: &QFormerConfig, from: usize, to: usize, device: &Device) -> Linear {
    LinearConfig::new(from, to)
        .with_initializer(Initializer::Normal {
            mean: 0.0,
            std: config.initializer_range,
        })
        .init(device)
}

impl ResidualOutput {
    pub(super) fn new(
        config: &QFormerConfig,
        d_input: usize,
        drop_path: f64,
        device: &Device,
    ) -> Self {
        Self {
            dense: linear(config, d_input, config.hidden_size, device),
            layer_norm: LayerNormConfig::new(config.hidden_size)
                .with_eps(config.layer_norm_eps)
                .init(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
            drop_path: DropPathConfig::new(drop_path).init(),
        }
    }

    /// # Shapes
    /// - hidden `[batch, length, d_input]`
    /// - residual and output `[batch, length, hidden_size]`
    pub fn forward(&self, hidden: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let branch = self.dropout.forward(self.dense.forward(hidden));
        self.layer_norm
            .forward(self.drop_path.forward(branch) + residual)
    }
}

impl QFormerSelfAttention {
    /// # Shapes
    /// - x `[batch, length, hidden_size]`
    /// - context `[batch, keys, d_key]`
    /// - bias, added to the scores, `[batch, 1, 1, keys]`
    /// - output `[batch, length, hidden_size]`
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>, bias: Option<Tensor<4>>) -> Tensor<3> {
        let heads = |x| split_heads(x, self.heads);
        let q = heads(self.query.forward(x));
        let k = heads(self.key.forward(context.clone()));
        let v = heads(self.value.forward(context));
        let options = AttentionOptions {
            bias,
            ..AttentionOptions::default()
        };
        merge_heads(attention_with_dropout([q, k, v], options, &self.dropout))
    }
}

impl QFormerAttention {
    /// `d_context` is the width of keys and values before projection.
    pub(super) fn new(
        config: &QFormerConfig,
        d_context: usize,
        drop_path: f64,
        device: &Device,
    ) -> Self {
        let dim = config.hidden_size;
        Self {
            self_attention: QFormerSelfAttention {
                query: linear(config, dim, dim, device),
                key: linear(config, d_context, dim, device),
                value: linear(config, d_context, dim, device),
                dropout: DropoutConfig::new(config.attention_probs_dropout_prob).init(),
                heads: config.num_attention_heads,
            },
            output: ResidualOutput::new(config, dim, drop_path, device),
        }
    }

    /// # Shapes
    /// As [`QFormerSelfAttention::forward`].
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>, bias: Option<Tensor<4>>) -> Tensor<3> {
        let attended = self.self_attention.forward(x.clone(), context, bias);
        self.output.forward(attended, x)
    }
}
