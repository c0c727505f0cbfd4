//! Attention from Burn operations: differentiable on every device.

use burn::tensor::{
    Bool, Device, Int, Tensor, TensorData, activation, module, ops::AttentionModuleOptions,
};

use super::AttentionOptions;
use super::visibility::Visibility;
use crate::ops::to_f32;

/// Materialises the scores; used where gradients are recorded and no kernel of ours applies.
pub(super) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: AttentionOptions,
) -> Tensor<4> {
    let [batch, heads, q_len, dim] = q.dims();
    let [_, kv_heads, k_len, v_dim] = v.dims();
    let group = heads / kv_heads;
    let dtype = q.dtype();
    let device = q.device();
    let scale = options.scale.unwrap_or_else(|| (dim as f64).powf(-0.5));

    // The heads of a group are stacked along the query axis, so keys are not repeated.
    let q = (q * scale).reshape([batch, kv_heads, group * q_len, dim]);
    let scores = q
        .matmul(k.swap_dims(2, 3))
        .reshape([batch, heads, q_len, k_len]);
    let mut scores = to_f32(scores);
    if let Some(bias) = options.bias.clone() {
        let dtype = scores.dtype();
        // A bias off the graph, which the kernels take, joins scores that are on it.
        let bias = if device.is_autodiff() && !bias.device().is_autodiff() {
            bias.autodiff()
        } else {
            bias
        };
        scores = scores + bias.cast(dtype);
    }
    let weights = match mask(batch, q_len, k_len, &options, &device) {
        Some(mask) => {
            let mask = mask.expand([batch, heads, q_len, k_len]);
            // A finite fill keeps rows without a visible key free of NaN; the second fill zeroes them.
            let scores = scores.mask_fill(mask.clone(), -1e30);
            activation::softmax(scores, 3).mask_fill(mask, 0.0)
        }
        None => activation::softmax(scores, 3),
    };
    weights
        .cast(dtype)
        .reshape([batch, kv_heads, group * q_len, k_len])
        .matmul(v)
        .reshape([batch, heads, q_len, v_dim])
}

/// Burn's own attention, which is a flash kernel on GPU devices as long as no bias and no custom
/// scale is given: `q` is scaled beforehand and masks are boolean.
pub(super) fn fused(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: AttentionOptions,
) -> Tensor<4> {
    let [batch, heads, q_len, dim] = q.dims();
    let [_, kv_heads, k_len, v_dim] = v.dims();
    let group = heads / kv_heads;
    let device = q.device();
    let repeat = |x: Tensor<4>, dim: usize| {
        if group == 1 {
            return x;
        }
        x.reshape([batch, kv_heads, 1, k_len * dim])
            .expand([batch, kv_heads, group, k_len * dim])
            .reshape([batch, heads, k_len, dim])
    };
    let (k, v) = (repeat(k, dim), repeat(v, v_dim));
    let default_scale = (dim as f64).powf(-0.5);
    let q = match options.scale {
        Some(scale) if scale != default_scale => q * (scale / default_scale),
        _ => q,
    };

    let plain_causal = options.causal
        && options.sliding_window.is_none()
        && options.key_padding.is_none()
        && options.query_offset.is_none_or(|o| o + q_len == k_len)
        && q_len <= k_len;
    let mask = if plain_causal {
        None
    } else {
        mask(batch, q_len, k_len, &options, &device)
    };
    let hidden_rows = mask.clone().map(|mask| mask.all_dim(3));
    let full = [batch, heads, q_len, k_len];
    let out = module::attention(
        q,
        k,
        v,
        mask.map(|mask| mask.expand(full)),
        options.bias.map(|bias| bias.expand(full)),
        AttentionModuleOptions {
            is_causal: plain_causal,
            ..Default::default()
        },
    );
    match hidden_rows {
        Some(rows) => out.mask_fill(rows.expand([batch, heads, q_len, v_dim]), 0.0),
        None => out,
    }
}

/// `[batch or 1, 1, q_len, k_len]`, `true` where the key is hidden; `None` if nothing is.
fn mask(
    batch: usize,
    q_len: usize,
    k_len: usize,
    options: &AttentionOptions,
    device: &Device,
) -> Option<Tensor<4, Bool>> {
    let positions = (options.causal || options.sliding_window.is_some()).then(|| {
        let visibility = Visibility::new(options, q_len, k_len);
        let (first, end): (Vec<i64>, Vec<i64>) = (0..q_len)
            .map(|row| visibility.keys(row))
            .map(|(lo, hi)| (lo as i64, hi as i64))
            .unzip();
        // Compared on the device: only the bounds travel there, not their product.
        let ints = |values: Vec<i64>, shape: [usize; 4]| {
            Tensor::<4, Int>::from_data(TensorData::new(values, shape), device)
                .expand([1, 1, q_len, k_len])
        };
        let keys = ints((0..k_len as i64).collect(), [1, 1, 1, k_len]);
        let before = keys.clone().lower(ints(first, [1, 1, q_len, 1]));
        before.bool_or(keys.greater_equal(ints(end, [1, 1, q_len, 1])))
    });
    let padding = options
        .key_padding
        .clone()
        .map(|padding| padding.reshape([batch, 1, 1, k_len]));
    match (positions, padding) {
        (Some(a), Some(b)) => {
            let full = [batch, 1, q_len, k_len];
            Some(a.expand(full).bool_or(b.expand(full)))
        }
        (Some(mask), None) => Some(mask),
        (None, Some(mask)) => Some(mask.expand([batch, 1, q_len, k_len])),
        (None, None) => None,
    }
}
