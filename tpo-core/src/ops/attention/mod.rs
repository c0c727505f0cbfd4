//! Scaled dot-product attention.

mod backward;
mod composed;
mod cpu;
mod few_rows;
mod flash;
mod problem;
mod visibility;
mod window;

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Bool, Tensor};

pub(super) use self::problem::Rows;
pub use self::window::{WindowAttention, window_attention};
use super::flex::{differentiable, plain};

/// What [`attention`] does besides `softmax(q·kᵀ·scale)·v`.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Factor on the scores; `1 / sqrt(head_dim)` if absent.
    pub scale: Option<f64>,
    /// Query at position `p` sees keys `0..=p` only.
    pub causal: bool,
    /// Query at position `p` sees keys at a distance below this only: `p − j < window`, and without
    /// `causal` also `j − p < window` (Mistral's sliding window counts the token itself).
    pub sliding_window: Option<usize>,
    /// `[batch, k_len]`; `true` hides the key from every query of that item.
    pub key_padding: Option<Tensor<2, Bool>>,
    /// Added to the scaled scores; every axis of `[batch, heads, q_len, k_len]` may be 1. Off the
    /// graph (without autodiff) it costs no gradient, and the CPU kernels take it.
    pub bias: Option<Tensor<4>>,
    /// Position of the first query on the key axis, for `causal` and `sliding_window`. If absent the
    /// last query stands at the last key (`k_len − q_len`), which fits a key-value cache.
    pub query_offset: Option<usize>,
}

impl AttentionOptions {
    /// Causal attention with everything else at its default.
    pub fn causal() -> Self {
        AttentionOptions {
            causal: true,
            ..Default::default()
        }
    }
}

/// Scaled dot-product attention with grouped key-value heads.
///
/// Query head `h` attends with key-value head `h / (heads / kv_heads)`. A query that sees no key
/// gets zeros. Scores, soft-max and sums are in `f32`.
///
/// # Shapes
/// - `q` `[batch, heads, q_len, head_dim]`
/// - `k` `[batch, kv_heads, k_len, head_dim]`, `v` `[batch, kv_heads, k_len, v_dim]`, with
///   `kv_heads` dividing `heads`
/// - output `[batch, heads, q_len, v_dim]`, in `q`'s dtype
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: AttentionOptions) -> Tensor<4> {
    check_shapes(&q, &k, &v, &options);
    // A bias that may want a gradient takes the composed path.
    let bias = match options.bias.clone() {
        None => None,
        Some(bias) => match plain([bias.into_dispatch()]) {
            Ok([bias]) => Some(bias),
            Err(_) => return elsewhere(q, k, v, options),
        },
    };
    let run = |qkv: [FlexTensor; 3], tracked: bool| {
        let inputs = cpu::Inputs::new(qkv, bias, options.clone());
        let attended = cpu::solve(&inputs.problem());
        if !tracked {
            return (inputs.output(attended.out), None);
        }
        let out = inputs.output(attended.out.clone());
        let attended = Arc::new(attended);
        (out, Some(backward::Forward { inputs, attended }))
    };
    differentiable([q, k, v].map(Tensor::into_dispatch), run).unwrap_or_else(|qkv| {
        let [q, k, v] = qkv.map(Tensor::from_dispatch);
        elsewhere(q, k, v, options)
    })
}

/// Attention without a kernel of ours.
fn elsewhere(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: AttentionOptions) -> Tensor<4> {
    let autodiff = [&q, &k, &v]
        .into_iter()
        .chain(&options.bias)
        .any(|tensor| tensor.device().is_autodiff());
    if autodiff {
        composed::attention(q, k, v, options)
    } else {
        composed::fused(q, k, v, options)
    }
}

fn check_shapes(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, options: &AttentionOptions) {
    let [batch, heads, q_len, dim] = q.dims();
    let [batch_k, kv_heads, k_len, dim_k] = k.dims();
    let [batch_v, kv_heads_v, k_len_v, _] = v.dims();
    assert!(
        batch == batch_k && batch == batch_v && dim == dim_k,
        "attention: q {:?}, k {:?} and v {:?} differ in batch or head_dim",
        q.dims(),
        k.dims(),
        v.dims()
    );
    assert!(
        kv_heads == kv_heads_v && k_len == k_len_v,
        "attention: k {:?} and v {:?} differ in heads or length",
        k.dims(),
        v.dims()
    );
    assert!(
        kv_heads > 0 && heads % kv_heads == 0,
        "attention: {heads} query heads are not a multiple of {kv_heads} key-value heads"
    );
    if let Some(padding) = &options.key_padding {
        assert_eq!(
            padding.dims(),
            [batch, k_len],
            "attention: key_padding must be [batch, k_len]"
        );
    }
    if let Some(bias) = &options.bias {
        let full = [batch, heads, q_len, k_len];
        assert!(
            bias.dims().iter().zip(full).all(|(&b, f)| b == f || b == 1),
            "attention: bias {:?} does not broadcast to {full:?}",
            bias.dims()
        );
    }
}
