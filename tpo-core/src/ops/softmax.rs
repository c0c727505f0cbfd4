//! Soft-max over the last axis.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{Saved, differentiable, floats, from_floats};
use super::host::to_f32;
use super::rows::{CHUNK, RowMap, largest, map_rows};
use super::simd::exp;

/// Soft-max over the last axis, computed in `f32` and returned in the input's dtype. A row that is
/// `−inf` throughout gives NaN, as in PyTorch.
///
/// # Shapes
/// - input and output `[.., classes]`
pub fn softmax_last<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let run = |[x]: [FlexTensor; 1], tracked: bool| {
        let out = map_rows(x, SoftmaxRow);
        (out.clone(), tracked.then_some(Weights(out)))
    };
    differentiable([x.into_dispatch()], run).unwrap_or_else(|[x]| {
        let x = Tensor::<D>::from_dispatch(x);
        let dtype = x.dtype();
        activation::softmax(to_f32(x), D - 1).cast(dtype)
    })
}

#[derive(Clone, Copy)]
struct SoftmaxRow;

impl RowMap for SoftmaxRow {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, row: &mut [f32]) {
        let shift = s.splat_f32s(largest(s, row));
        let (body, tail) = S::as_mut_simd_f32s(row);
        let mut total = s.splat_f32s(0.0);
        for x in body.iter_mut() {
            *x = exp(s, s.sub_f32s(*x, shift));
            total = s.add_f32s(total, *x);
        }
        let mut sum = s.reduce_sum_f32s(total);
        if !tail.is_empty() {
            let y = exp(s, s.sub_f32s(s.partial_load_f32s(tail), shift));
            s.partial_store_f32s(tail, y);
            sum += tail.iter().sum::<f32>();
        }
        let inverse = 1.0 / sum;
        let factor = s.splat_f32s(inverse);
        for x in body.iter_mut() {
            *x = s.mul_f32s(*x, factor);
        }
        tail.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// The result, which is all the backward pass needs.
#[derive(Clone, Debug)]
struct Weights(FlexTensor);

impl Saved<1> for Weights {
    fn gradients(self, grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(backward(&self.0, &grad))]
    }
}

/// `y · (grad − Σ grad · y)` per row.
fn backward(y: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let shape = y.layout().shape().clone();
    let width = shape.last().copied().unwrap_or(1).max(1);
    let (values, grad) = (floats(y), floats(grad));
    let mut out = vec![0.0f32; values.len()];
    let arch = Arch::new();
    let chunk = (CHUNK / width).max(1) * width;
    out.par_chunks_mut(chunk)
        .zip(values.par_chunks(chunk).zip(grad.par_chunks(chunk)))
        .for_each(|(out, (y, grad))| {
            arch.dispatch(BackwardRows {
                y,
                grad,
                out,
                width,
            });
        });
    from_floats(out, shape, y.dtype())
}

struct BackwardRows<'a> {
    y: &'a [f32],
    grad: &'a [f32],
    out: &'a mut [f32],
    width: usize,
}

impl WithSimd for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let rows = self
            .y
            .chunks_exact(self.width)
            .zip(self.grad.chunks_exact(self.width));
        for ((y, grad), out) in rows.zip(self.out.chunks_exact_mut(self.width)) {
            let (y, y_tail) = S::as_simd_f32s(y);
            let (grad, grad_tail) = S::as_simd_f32s(grad);
            let (out, out_tail) = S::as_mut_simd_f32s(out);
            let mut dot = s.splat_f32s(0.0);
            for (&y, &grad) in y.iter().zip(grad) {
                dot = s.mul_add_e_f32s(y, grad, dot);
            }
            let tail: f32 = y_tail.iter().zip(grad_tail).map(|(y, g)| y * g).sum();
            let dot = s.reduce_sum_f32s(dot) + tail;
            let dot_v = s.splat_f32s(dot);
            for ((&y, &grad), out) in y.iter().zip(grad).zip(out) {
                *out = s.mul_f32s(y, s.sub_f32s(grad, dot_v));
            }
            for ((y, grad), out) in y_tail.iter().zip(grad_tail).zip(out_tail) {
                *out = y * (grad - dot);
            }
        }
    }
}
