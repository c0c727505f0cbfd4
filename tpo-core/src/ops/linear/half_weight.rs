//! Many rows with a half-precision weight: blocks of outputs are widened and multiplied in `f32`.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use super::Weight;
use crate::ops::half::HalfFloat;

/// Elements of one widened block: 4 MiB, which stays in the last-level cache.
const BLOCK: usize = 1 << 20;

/// `[rows, d_out]` products.
pub(super) fn apply<H: HalfFloat>(
    x: &[f32],
    rows: usize,
    weight: &Weight<H>,
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
        let product = Flex::float_matmul(x.clone(), widen(weight, first, n));
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

/// Outputs `first..first + n` as an `f32` matrix `[d_in, n]`, in the storage order of the weight.
fn widen<H: HalfFloat>(weight: &Weight<H>, first: usize, n: usize) -> FlexTensor {
    let d_in = weight.d_in;
    let mut block = vec![0.0f32; d_in * n];
    if weight.by_output {
        block
            .par_chunks_mut(d_in)
            .enumerate()
            .for_each(|(at, line)| H::widen_slice(weight.line(first + at, 0..d_in), line));
    } else {
        block
            .par_chunks_mut(n)
            .enumerate()
            .for_each(|(at, line)| H::widen_slice(weight.line(at, first..first + n), line));
    }
    let layout = if weight.by_output {
        Layout::contiguous(Shape::new([n, d_in])).transpose(0, 1)
    } else {
        Layout::contiguous(Shape::new([d_in, n]))
    };
    FlexTensor::new(Bytes::from_elems(block), layout, DType::F32)
}
