//! Normalisation of the last axis.

use burn::tensor::{DType, FloatDType, Tensor};

/// Layer normalisation over the last axis: `(x − mean) / sqrt(var + eps) · gamma + beta`, with the
/// biased variance. Statistics and the affine step are in `f32`; the result has the input's dtype.
///
/// # Shapes
/// - `x` and output `[.., d]`, `gamma` and `beta` `[d]`
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let centred = x.clone() - x.mean_dim(D - 1);
    let var = centred.clone().square().mean_dim(D - 1);
    let normed = centred / (var + eps).sqrt();
    (normed * to_f32(gamma).unsqueeze() + to_f32(beta).unsqueeze()).cast(dtype)
}

/// Root-mean-square normalisation over the last axis: `weight · x / sqrt(mean(x²) + eps)`.
/// The normalised value is rounded to the input's dtype before it is multiplied by the weight, as
/// the Llama reference implementation does.
///
/// # Shapes
/// - `x` and output `[.., d]`, `weight` `[d]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let mean_square = x.clone().square().mean_dim(D - 1);
    let normed = (x / (mean_square + eps).sqrt()).cast(dtype);
    normed * weight.cast(dtype).unsqueeze()
}

/// Widens half precision to `f32`; `f32` and `f64` stay.
fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}
