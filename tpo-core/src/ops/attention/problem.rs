//! An attention call as plain slices and numbers, for the CPU kernels.

use std::borrow::Cow;

use burn::backend::flex::FlexTensor;
use burn::tensor::DType;

use super::visibility::Visibility;
use crate::ops::flex::floats;

/// Rows of a `[batch, heads, len, width]` tensor, each contiguous.
pub(super) struct Rows<'a> {
    data: Cow<'a, [f32]>,
    start: usize,
    strides: [usize; 3],
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// Borrows the tensor's storage if its rows are contiguous `f32`, else converts.
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [_, heads, len, width] = layout.shape().dims::<4>();
        let strides = layout.strides();
        let borrowable = tensor.dtype() == DType::F32
            && (strides[3] == 1 || width == 1)
            && strides.iter().all(|&s| s >= 0);
        if borrowable {
            return Rows {
                data: Cow::Borrowed(tensor.storage::<f32>()),
                start: layout.start_offset(),
                strides: [0, 1, 2].map(|axis| strides[axis].unsigned_abs()),
                width,
            };
        }
        Rows {
            data: floats(tensor),
            start: 0,
            strides: [heads * len * width, len * width, width],
            width,
        }
    }

    /// The row at `(batch, head, position)`.
    #[inline(always)]
    pub(super) fn row(&self, batch: usize, head: usize, position: usize) -> &[f32] {
        let at = self.start
            + batch * self.strides[0]
            + head * self.strides[1]
            + position * self.strides[2];
        &self.data[at..at + self.width]
    }
}

/// Additive bias `[batch or 1, heads or 1, q_len or 1, k_len or 1]`; broadcast axes have stride 0.
pub(super) struct Bias<'a> {
    data: Cow<'a, [f32]>,
    strides: [usize; 4],
}

impl<'a> Bias<'a> {
    pub(super) fn new(tensor: &'a FlexTensor) -> Self {
        let dims = tensor.layout().shape().dims::<4>();
        let mut strides = [0; 4];
        let mut step = 1;
        for axis in (0..4).rev() {
            strides[axis] = if dims[axis] == 1 { 0 } else { step };
            step *= dims[axis];
        }
        Bias {
            data: floats(tensor),
            strides,
        }
    }

    /// Adds `factor · bias` of keys `first..first + scores.len()` to the scores of one query.
    #[inline(always)]
    pub(super) fn add(
        &self,
        [batch, head, query]: [usize; 3],
        first: usize,
        factor: f32,
        scores: &mut [f32],
    ) {
        let at = batch * self.strides[0] + head * self.strides[1] + query * self.strides[2];
        if self.strides[3] == 0 {
            let value = factor * self.data[at];
            scores.iter_mut().for_each(|score| *score += value);
        } else {
            let bias = &self.data[at + first..at + first + scores.len()];
            for (score, bias) in scores.iter_mut().zip(bias) {
                *score += factor * bias;
            }
        }
    }
}

/// Everything the kernels need to know. Queries of the heads that share a key-value head are
/// stacked to one list of rows: row `r` is query `r % q_len` of head `kv_head · group + r / q_len`.
pub(super) struct Problem<'a> {
    pub(super) q: Rows<'a>,
    pub(super) k: Rows<'a>,
    pub(super) v: Rows<'a>,
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) q_len: usize,
    pub(super) k_len: usize,
    /// Factor on the raw scores, with `log2 e`: the soft-max is taken to base 2.
    pub(super) scale: f32,
    pub(super) visibility: Visibility,
    /// `[batch, k_len]`, `true` = hidden.
    pub(super) padding: Option<&'a [bool]>,
    pub(super) bias: Option<Bias<'a>>,
}

impl Problem<'_> {
    /// Query heads per key-value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Stacked query rows per key-value head.
    pub(super) fn rows(&self) -> usize {
        self.group() * self.q_len
    }

    /// Head and query position of a stacked row.
    #[inline(always)]
    pub(super) fn head_and_query(&self, kv_head: usize, row: usize) -> (usize, usize) {
        (kv_head * self.group() + row / self.q_len, row % self.q_len)
    }

    /// Adds the bias and hides keys in the scores of one row; `scores` start at key `first` and may
    /// reach beyond the last key.
    #[inline(always)]
    pub(super) fn mask_row(
        &self,
        batch: usize,
        kv_head: usize,
        row: usize,
        first: usize,
        scores: &mut [f32],
    ) {
        let (head, query) = self.head_and_query(kv_head, row);
        let real = scores.len().min(self.k_len - first);
        if let Some(bias) = &self.bias {
            bias.add(
                [batch, head, query],
                first,
                std::f32::consts::LOG2_E,
                &mut scores[..real],
            );
        }
        if let Some(padding) = &self.padding {
            let hidden = &padding[batch * self.k_len + first..][..real];
            for (score, &hidden) in scores.iter_mut().zip(hidden) {
                *score = if hidden { f32::NEG_INFINITY } else { *score };
            }
        }
        let (lo, hi) = self.visibility.keys(query);
        let lo = lo.clamp(first, first + scores.len()) - first;
        let hi = hi.clamp(first, first + scores.len()) - first;
        scores[..lo].fill(f32::NEG_INFINITY);
        scores[hi.max(lo)..].fill(f32::NEG_INFINITY);
    }
}

/// Output of a kernel.
#[derive(Debug)]
pub(super) struct Attended {
    /// `[batch, q_len, heads, v_dim]`.
    pub(super) out: Vec<f32>,
    /// Base-2 log of the sum of `2^score`, `[batch, kv_heads, rows]`; `−inf` for rows without a
    /// visible key.
    pub(super) log_sum: Vec<f32>,
}
