//! Many rows and a half-precision weight whose lines are inputs: blocks of the weight are widened to
//! `f32` and given to the general matrix product.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Shape, bf16, f16};
use rayon::prelude::*;

use super::Weight;
use crate::ops::half::HalfFloat;

/// Elements of one block: 4 MiB, which stays in the last-level cache.
pub(super) const BLOCK: usize = 1 << 20;
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
pub(super) fn apply<T: Element>(
    x: &[f32],
    rows: usize,
    weight: &Weight<T>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (d_in, d_out) = (weight.d_in, weight.d_out);
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
fn block<T: Element>(weight: &Weight<T>, first: usize, n: usize) -> FlexTensor {
    let stride = n + SLACK;
    let mut block = vec![0.0f32; weight.d_in * stride];
    block
        .par_chunks_mut(stride)
        .enumerate()
        .for_each(|(at, line)| T::widen(weight.line(at, first..first + n), &mut line[..n]));
    let layout = Layout::new(Shape::new([weight.d_in, n]), vec![stride as isize, 1], 0);
    FlexTensor::new(Bytes::from_elems(block), layout, DType::F32)
}
