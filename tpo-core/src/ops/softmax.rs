//! Soft-max over the last axis.

use burn::tensor::{DType, FloatDType, Tensor, activation};
use pulp::Simd;

use super::flex::{Operands, operands, wrap, wrap_autodiff};
use super::rows::{RowMap, map_rows};
use super::simd::exp;

/// Soft-max over the last axis, computed in `f32` and returned in the input's dtype. A row that is
/// `−inf` throughout gives NaN, as in PyTorch.
///
/// # Shapes
/// - input and output `[.., classes]`
pub fn softmax_last<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match operands([x.into_dispatch()]) {
        Ok(Operands::Plain([x])) => wrap(map_rows(x, SoftmaxRow)),
        Ok(Operands::Autodiff([x], context)) => composed(wrap_autodiff(x, context)),
        Err([x]) => composed(Tensor::from_dispatch(x)),
    }
}

fn composed<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    match dtype {
        DType::F16 | DType::BF16 => activation::softmax(x.cast(FloatDType::F32), D - 1).cast(dtype),
        _ => activation::softmax(x, D - 1),
    }
}

#[derive(Clone, Copy)]
struct SoftmaxRow;

impl RowMap for SoftmaxRow {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, row: &mut [f32]) {
        let (body, tail) = S::as_mut_simd_f32s(row);
        let mut top = s.splat_f32s(f32::NEG_INFINITY);
        for &x in body.iter() {
            top = s.max_f32s(top, x);
        }
        let max = tail
            .iter()
            .fold(s.reduce_max_f32s(top), |max, &x| max.max(x));
        let shift = s.splat_f32s(max);
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
