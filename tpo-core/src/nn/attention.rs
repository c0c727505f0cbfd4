//! What attention layers share: heads of a width, and dropout of the attention weights.

use burn::nn::Dropout;
use burn::tensor::{Device, Tensor};

use crate::ops::{self, AttentionOptions};

/// `[batch, length, heads * dim]` to `[batch, heads, length, dim]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, width] = x.dims();
    x.reshape([batch, length, heads, width / heads])
        .swap_dims(1, 2)
}

/// `[batch, heads, length, dim]` to `[batch, length, heads * dim]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, length, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, heads * dim])
}

/// Whether the layer drops anything now: it trains and is not frozen.
pub fn drops(dropout: &Dropout, device: &Device) -> bool {
    dropout.prob > 0.0 && dropout.training.is_enabled() && device.is_autodiff()
}

/// [`ops::attention`] with the scale, `key_padding` and `bias` of `options`, whose weights pass
/// through dropout while the layer drops anything; no fused attention offers that.
///
/// # Shapes
/// - q `[batch, heads, queries, dim]`, k `[batch, heads, keys, dim]`, v `[batch, heads, keys, d_v]`
/// - output `[batch, heads, queries, d_v]`
pub fn attention_with_dropout(
    [q, k, v]: [Tensor<4>; 3],
    options: AttentionOptions,
    dropout: &Dropout,
) -> Tensor<4> {
    if !drops(dropout, &q.device()) {
        return ops::attention(q, k, v, options);
    }
    let [batch, heads, queries, dim] = q.dims();
    let keys = k.dims()[2];
    let scale = options.scale.unwrap_or_else(|| (dim as f64).powf(-0.5));
    let mut scores = (q * scale).matmul(k.swap_dims(2, 3));
    if let Some(bias) = options.bias {
        scores = scores + bias;
    }
    if let Some(padding) = options.key_padding {
        let hidden = padding.reshape([batch, 1, 1, keys]);
        scores = scores.mask_fill(hidden.expand([batch, heads, queries, keys]), -1e30);
    }
    dropout.forward(ops::softmax_last(scores)).matmul(v)
}
