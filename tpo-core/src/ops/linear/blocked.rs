//! A moderate number of rows: blocks of the weight are widened to `f32`, turned into the order the
//! general matrix product reads fastest, and multiplied.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Shape, bf16, f16};
use rayon::prelude::*;

use super::Weight;
use crate::ops::half::HalfFloat;

/// A weight whose lines can be widened to `f32` piece by piece.
pub(super) trait Lines: Sync {
    /// `(d_in, d_out)`.
    fn sizes(&self) -> (usize, usize);
    /// The elements of one output lie together.
    fn by_output(&self) -> bool;
    /// Elements `range` of line `line` as `f32`; `range` starts at a multiple of [`STRIP`].
    fn widen(&self, line: usize, range: std::ops::Range<usize>, dst: &mut [f32]);
}

impl<T: Element> Lines for Weight<'_, T> {
    fn sizes(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    fn by_output(&self) -> bool {
        self.by_output
    }

    #[inline(always)]
    fn widen(&self, line: usize, range: std::ops::Range<usize>, dst: &mut [f32]) {
        T::widen(self.line(line, range), dst);
    }
}

/// Elements of one block: 4 MiB, which stays in the last-level cache.
pub(super) const BLOCK: usize = 1 << 20;
/// Inputs turned together; their lines of the block fit the first-level cache.
pub(super) const STRIP: usize = 32;
/// Extra elements per line of the block: lines at a power-of-two distance would fall on the same
/// few places of the cache.
const SLACK: usize = 16;

/// Element of a weight.
pub(super) trait Element: Copy + Send + Sync {
    /// Copies `src` to `dst` as `f32`.
    fn widen(src: &[Self], dst: &mut [f32]);
}

impl Element for f32 {
    fn widen(src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }
}

impl Element for f16 {
    fn widen(src: &[f16], dst: &mut [f32]) {
        f16::widen_slice(src, dst);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(src: &[bf16], dst: &mut [f32]) {
        // Too short for a dispatch on the instruction set.
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
        }
    }
}

/// `[rows, d_out]` products of `x` `[rows, d_in]`.
pub(super) fn apply(x: &[f32], rows: usize, weight: &impl Lines, bias: Option<&[f32]>) -> Vec<f32> {
    let (d_in, d_out) = weight.sizes();
    let x = FlexTensor::new(
        Bytes::from_elems(x.to_vec()),
        Layout::contiguous(Shape::new([rows, d_in])),
        DType::F32,
    );
    let width = (BLOCK / d_in).max(64).min(d_out);
    let mut out = vec![0.0f32; rows * d_out];
    for first in (0..d_out).step_by(width) {
        let n = width.min(d_out - first);
        let product = Flex::float_matmul(x.clone(), block(weight, first, n));
        let product = product.as_slice::<f32>().unwrap_or_default();
        out.par_chunks_mut(d_out)
            .zip(product.par_chunks(n))
            .for_each(|(line, product)| {
                let line = &mut line[first..first + n];
                match bias {
                    Some(bias) => {
                        for ((y, p), b) in line.iter_mut().zip(product).zip(&bias[first..]) {
                            *y = p + b;
                        }
                    }
                    None => line.copy_from_slice(product),
                }
            });
    }
    out
}

/// Outputs `first..first + n` as an `f32` matrix `[d_in, n]` whose outputs are contiguous.
fn block(weight: &impl Lines, first: usize, n: usize) -> FlexTensor {
    let (d_in, _) = weight.sizes();
    let stride = n + SLACK;
    let mut block = vec![0.0f32; d_in * stride];
    if weight.by_output() {
        block
            .par_chunks_mut(STRIP * stride)
            .enumerate()
            .for_each(|(at, strip)| {
                let begin = at * STRIP;
                let len = STRIP.min(d_in - begin);
                let mut scratch = [0.0f32; STRIP];
                for output in 0..n {
                    let scratch = &mut scratch[..len];
                    weight.widen(first + output, begin..begin + len, scratch);
                    for (line, &w) in strip.chunks_exact_mut(stride).zip(scratch.iter()) {
                        line[output] = w;
                    }
                }
            });
    } else {
        block
            .par_chunks_mut(stride)
            .enumerate()
            .for_each(|(at, line)| weight.widen(at, first..first + n, &mut line[..n]));
    }
    let layout = Layout::new(Shape::new([d_in, n]), vec![stride as isize, 1], 0);
    FlexTensor::new(Bytes::from_elems(block), layout, DType::F32)
}
