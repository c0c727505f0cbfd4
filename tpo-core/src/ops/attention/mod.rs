//! Scaled dot-product attention.

mod composed;

use burn::tensor::{Bool, Tensor};

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
    /// Added to the scaled scores; every axis of `[batch, heads, q_len, k_len]` may be 1.
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
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: AttentionOptions,
) -> Tensor<4> {
    check_shapes(&q, &k, &v, &options);
    if q.device().is_autodiff() || is_flex(&q) {
        return composed::attention(q, k, v, options);
    }
    composed::fused(q, k, v, options)
}

fn is_flex(_q: &Tensor<4>) -> bool {
    true
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

/// Key range `[lo, hi)` that the query at `row` may see, before padding.
pub(crate) fn visible_keys(
    row: usize,
    q_len: usize,
    k_len: usize,
    options: &AttentionOptions,
) -> (usize, usize) {
    let offset = match options.query_offset {
        Some(offset) => offset as isize,
        None => k_len as isize - q_len as isize,
    };
    let position = row as isize + offset;
    let mut lo = 0isize;
    let mut hi = k_len as isize;
    if options.causal {
        hi = hi.min(position + 1);
    }
    if let Some(window) = options.sliding_window {
        let window = window.min(isize::MAX as usize / 4) as isize;
        lo = lo.max(position - window + 1);
        hi = hi.min(position + window);
    }
    let hi = hi.max(0);
    (lo.min(hi) as usize, hi as usize)
}
