//! Self-attention with PyTorch's packed input projection, and what all attentions here share.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Initializer};
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{Linear, LinearConfig, attention_with_dropout, merge_heads, split_heads};
use tpo_core::ops::{self, AttentionOptions};

use super::LayerSizes;

/// Multi-head self-attention; positions are added to queries and keys, not to values.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query, key and value weights below each other `[3 * d_model, d_model]`.
    pub in_proj_weight: Param<Tensor<2>>,
    /// `[3 * d_model]`.
    pub in_proj_bias: Param<Tensor<1>>,
    /// `[d_model, d_model]`.
    pub out_proj: Linear,
    /// Of attention weights.
    pub dropout: Dropout,
    heads: usize,
}

impl SelfAttention {
    /// Xavier-uniform weights, zero biases (PyTorch).
    pub(super) fn new(sizes: &LayerSizes, device: &Device) -> Self {
        let d = sizes.d_model;
        Self {
            in_proj_weight: Initializer::XavierUniform { gain: 1.0 }.init_with(
                [3 * d, d],
                Some(d),
                Some(3 * d),
                device,
            ),
            in_proj_bias: Initializer::Zeros.init([3 * d], device),
            out_proj: LinearConfig::new(d, d).init(device),
            dropout: DropoutConfig::new(sizes.dropout).init(),
            heads: sizes.heads,
        }
    }

    /// # Shapes
    /// - x and positions `[batch, length, d_model]`
    /// - padding `[batch, length]`, `true` hides a key
    /// - output `[batch, length, d_model]`
    pub fn forward(
        &self,
        x: Tensor<3>,
        positions: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let d = x.dims()[2];
        let weight = self.in_proj_weight.val();
        let bias = self.in_proj_bias.val();
        // Queries and keys read the same input: one product for both.
        let qk = ops::linear(
            x.clone() + positions,
            weight.clone().narrow(0, 0, 2 * d).transpose(),
            Some(bias.clone().narrow(0, 0, 2 * d)),
        );
        let v = ops::linear(
            x,
            weight.narrow(0, 2 * d, d).transpose(),
            Some(bias.narrow(0, 2 * d, d)),
        );
        let q = split_heads(qk.clone().narrow(2, 0, d), self.heads);
        let k = split_heads(qk.narrow(2, d, d), self.heads);
        let v = split_heads(v, self.heads);
        let options = AttentionOptions {
            key_padding: padding,
            ..AttentionOptions::default()
        };
        let out = attention_with_dropout([q, k, v], options, &self.dropout);
        self.out_proj.forward(merge_heads(out))
    }
}
