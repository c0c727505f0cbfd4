//! Soft-max over the last axis.

use burn::tensor::{DType, FloatDType, Tensor, activation};

/// Soft-max over the last axis, computed in `f32` and returned in the input's dtype.
///
/// # Shapes
/// - input and output `[.., classes]`
pub fn softmax_last<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    if matches!(dtype, DType::F32 | DType::F64) {
        return activation::softmax(x, D - 1);
    }
    activation::softmax(x.cast(FloatDType::F32), D - 1).cast(dtype)
}
