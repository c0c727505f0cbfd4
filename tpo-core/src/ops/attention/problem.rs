//! An attention call as plain slices and numbers, for the CPU kernels.

use std::borrow::Cow;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};

use super::visibility::Visibility;
use crate::ops::flex::floats;
use crate::ops::half::HalfFloat;

/// Rows of a `[batch, heads, len, width]` tensor, or pixels of `[images, height, width, channels]`,
/// each contiguous, read where they lie in any float dtype.
pub(in crate::ops) struct Rows<'a> {
    values: Values<'a>,
    start: usize,
    /// Of batch (or image), head and position (or pixel).
    strides: [usize; 3],
    pub(super) width: usize,
    /// The batch is cut from images; with it the row of a pixel outside, `[heads, width]`.
    windows: Option<(Windows, &'a [f32])>,
}

/// A tensor's storage.
enum Values<'a> {
    F32(Cow<'a, [f32]>),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    fn new(tensor: &'a FlexTensor) -> Self {
        match tensor.dtype() {
            DType::F16 => Values::F16(tensor.storage()),
            DType::BF16 => Values::Bf16(tensor.storage()),
            _ => Values::F32(Cow::Borrowed(tensor.storage())),
        }
    }

    /// Copies the values from place `at` on.
    fn widen(&self, at: usize, dst: &mut [f32]) {
        let range = at..at + dst.len();
        match self {
            Values::F32(data) => dst.copy_from_slice(&data[range]),
            Values::F16(data) => f16::widen_slice(&data[range], dst),
            Values::Bf16(data) => bf16::widen_slice(&data[range], dst),
        }
    }
}

/// Consecutive rows as `f32`.
pub(in crate::ops) struct Run<'s> {
    data: &'s [f32],
    stride: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<'s> Run<'s> {
    /// Row `at` of the run.
    #[inline(always)]
    pub(in crate::ops) fn row(&self, at: usize) -> &'s [f32] {
        &self.data[at * self.stride..][..self.width]
    }
}

impl<'a> Rows<'a> {
    /// Rows of windows, read in place from an image `[images, height, width, ..]` of ordered
    /// values: head 0 of the first pixel is at `start`, pixels are `pixel` values apart. Pixels
    /// outside take their values from `padding` `[heads, width]`.
    pub(super) fn windowed(
        image: &'a FlexTensor,
        (start, pixel, width): (usize, usize, usize),
        windows: Windows,
        padding: &'a [f32],
    ) -> Self {
        Rows {
            values: Values::new(image),
            start: image.layout().start_offset() + start,
            strides: [windows.height * windows.width * pixel, width, pixel],
            width,
            windows: Some((windows, padding)),
        }
    }

    /// Borrows the tensor's storage if its rows are contiguous, else orders and widens a copy.
    pub(in crate::ops) fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let [_, heads, len, width] = layout.shape().dims::<4>();
        let strides = layout.strides();
        let borrowable = (strides[3] == 1 || width == 1) && strides.iter().all(|&s| s >= 0);
        let (values, start, strides) = if borrowable {
            let strides = [0, 1, 2].map(|axis| strides[axis].unsigned_abs());
            (Values::new(tensor), layout.start_offset(), strides)
        } else {
            let strides = [heads * len * width, len * width, width];
            (Values::F32(floats(tensor)), 0, strides)
        };
        Rows {
            values,
            start,
            strides,
            width,
            windows: None,
        }
    }

    /// Rows `positions`, one at least, of `(batch, head)`: in place if they are stored as `f32` at
    /// equal distances, else brought into `scratch`.
    #[inline(always)]
    pub(in crate::ops) fn run<'s>(
        &'s self,
        (batch, head): (usize, usize),
        positions: Range<usize>,
        scratch: &'s mut Vec<f32>,
    ) -> Run<'s> {
        let (rows, width) = (positions.len(), self.width);
        let (data, stride) = match (&self.values, &self.windows) {
            (Values::F32(data), None) => {
                let at = self.place(batch, head, positions.start);
                (&data[at..], self.strides[2])
            }
            _ => {
                self.gather((batch, head), positions, scratch);
                (&scratch[..], width)
            }
        };
        Run {
            data,
            stride,
            rows,
            width,
        }
    }

    fn gather(
        &self,
        (batch, head): (usize, usize),
        positions: Range<usize>,
        scratch: &mut Vec<f32>,
    ) {
        scratch.resize(positions.len() * self.width, 0.0);
        let Some((windows, padding)) = &self.windows else {
            // Rows that lie together are widened together.
            let together = self.strides[2] == self.width;
            let rows = if together { positions.len() } else { 1 };
            let pieces = scratch.chunks_exact_mut(rows * self.width);
            for (dst, position) in pieces.zip(positions.step_by(rows)) {
                self.values.widen(self.place(batch, head, position), dst);
            }
            return;
        };
        for (dst, position) in scratch.chunks_exact_mut(self.width).zip(positions) {
            match windows.pixel(batch, position) {
                (image, Some(pixel)) => self.values.widen(self.place(image, head, pixel), dst),
                (_, None) => dst.copy_from_slice(&padding[head * self.width..][..self.width]),
            }
        }
    }

    /// Where in the storage a row begins.
    #[inline(always)]
    fn place(&self, batch: usize, head: usize, position: usize) -> usize {
        self.start + batch * self.strides[0] + head * self.strides[1] + position * self.strides[2]
    }
}

/// Square windows that tile images, the last row and column of windows possibly reaching beyond
/// the edge. The windows of all images in order are a batch; its positions are the pixels of a
/// window, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) height: usize,
    pub(super) width: usize,
    side: usize,
    down: usize,
    across: usize,
}

impl Windows {
    /// Windows of `side` pixels over images of `height` by `width` pixels.
    pub(super) fn new(height: usize, width: usize, side: usize) -> Self {
        Windows {
            height,
            width,
            side,
            down: height.div_ceil(side),
            across: width.div_ceil(side),
        }
    }

    /// One window per image, the image itself.
    pub(super) fn whole(height: usize, width: usize) -> Self {
        Windows {
            height: 1,
            width: height * width,
            side: height * width,
            down: 1,
            across: 1,
        }
    }

    /// Windows per image.
    pub(super) fn count(&self) -> usize {
        self.down * self.across
    }

    /// Image and pixel of a position of a window; no pixel beyond the edge.
    #[inline(always)]
    fn pixel(&self, window: usize, position: usize) -> (usize, Option<usize>) {
        let (row, column) = (window / self.across, window % self.across);
        let (image, row) = (row / self.down, row % self.down);
        let y = row * self.side + position / self.side;
        let x = column * self.side + position % self.side;
        let inside = y < self.height && x < self.width;
        (image, inside.then(|| y * self.width + x))
    }

    /// Window and position of pixel `at`, counted over all images.
    #[inline(always)]
    fn position(&self, at: usize) -> (usize, usize) {
        let (line, x) = (at / self.width, at % self.width);
        let (image, y) = (line / self.height, line % self.height);
        let row = image * self.down + y / self.side;
        (
            row * self.across + x / self.side,
            y % self.side * self.side + x % self.side,
        )
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
    /// The batch is cut from images, and the output is put together again.
    pub(super) windows: Option<Windows>,
}

impl Problem<'_> {
    /// Query heads per key-value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Number of output lines: query positions, without those beyond the edge of an image.
    pub(super) fn lines(&self) -> usize {
        match &self.windows {
            None => self.batch * self.q_len,
            Some(w) => self.batch / w.count().max(1) * w.height * w.width,
        }
    }

    /// Batch and query of an output line.
    #[inline(always)]
    pub(super) fn source(&self, line: usize) -> (usize, usize) {
        match &self.windows {
            None => (line / self.q_len, line % self.q_len),
            Some(windows) => windows.position(line),
        }
    }

    /// Output line of a query, if it has one.
    #[inline(always)]
    pub(super) fn line(&self, batch: usize, query: usize) -> Option<usize> {
        match &self.windows {
            None => Some(batch * self.q_len + query),
            Some(windows) => {
                let (image, pixel) = windows.pixel(batch, query);
                Some(image * windows.height * windows.width + pixel?)
            }
        }
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
    /// `[batch, q_len, heads, v_dim]`, or `[images, height, width, heads, v_dim]` of windows.
    pub(super) out: Vec<f32>,
    /// Base-2 log of the sum of `2^score`, `[batch, kv_heads, rows]`; `−inf` for rows without a
    /// visible key.
    pub(super) log_sum: Vec<f32>,
}
