//! Normalisation of the last axis.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor, bf16, f16, module};
use pulp::Simd;

use super::flex::{differentiable, floats};
use super::half::HalfFloat;
use super::host::to_f32;
use super::norm_backward::NormInputs;
use super::rows::{RowMap, map_rows, sum};

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
    let width = x.dims()[D - 1];
    assert!(
        gamma.dims() == [width] && beta.dims() == [width],
        "layer_norm: gamma {:?} and beta {:?} must have the input's last axis, {width}",
        gamma.dims(),
        beta.dims()
    );
    let run = |[x, gamma, beta]: [FlexTensor; 3], tracked: bool| {
        let inputs = tracked.then(|| NormInputs {
            x: x.clone(),
            gamma: gamma.clone(),
            beta_dtype: beta.dtype(),
            eps,
            centred: true,
        });
        let row = LayerNormRow {
            gamma: &floats(&gamma),
            beta: &floats(&beta),
            eps,
        };
        (map_rows(x, row), inputs)
    };
    let all = [
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
    ];
    differentiable(all, run).unwrap_or_else(|[x, gamma, beta]| {
        let x = Tensor::<D>::from_dispatch(x);
        let [gamma, beta] = [gamma, beta].map(|t| to_f32(Tensor::from_dispatch(t)));
        let dtype = x.dtype();
        module::layer_norm(to_f32(x), gamma, Some(beta), eps).cast(dtype)
    })
}

#[derive(Clone, Copy)]
struct LayerNormRow<'a> {
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f64,
}

impl RowMap for LayerNormRow<'_> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, row: &mut [f32]) {
        let inverse = 1.0 / row.len() as f32;
        let mean = sum(s, row, 0.0, false) * inverse;
        let var = sum(s, row, -mean, true) * inverse;
        let scale = 1.0 / (f64::from(var) + self.eps).sqrt();
        affine(s, row, -mean, scale as f32, self.gamma, Some(self.beta));
    }
}

/// Root-mean-square normalisation over the last axis: `weight · x / sqrt(mean(x²) + eps)`.
/// The normalised value is rounded to the input's dtype before it is multiplied by the weight, as
/// the Llama reference implementation does.
///
/// # Shapes
/// - `x` and output `[.., d]`, `weight` `[d]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert!(
        weight.dims() == [width],
        "rms_norm: weight {:?} must have the input's last axis, {width}",
        weight.dims()
    );
    let run = |[x, weight]: [FlexTensor; 2], tracked: bool| {
        let inputs = tracked.then(|| NormInputs {
            x: x.clone(),
            gamma: weight.clone(),
            beta_dtype: weight.dtype(),
            eps,
            centred: false,
        });
        let row = RmsNormRow {
            weight: &floats(&weight),
            eps,
            dtype: x.dtype(),
        };
        (map_rows(x, row), inputs)
    };
    differentiable([x.into_dispatch(), weight.into_dispatch()], run).unwrap_or_else(
        |[x, weight]| {
            let x = Tensor::<D>::from_dispatch(x);
            let dtype = x.dtype();
            let x = to_f32(x);
            let mean_square = x.clone().square().mean_dim(D - 1);
            let normed = (x / (mean_square + eps).sqrt()).cast(dtype);
            normed * Tensor::<1>::from_dispatch(weight).cast(dtype).unsqueeze()
        },
    )
}

#[derive(Clone, Copy)]
struct RmsNormRow<'a> {
    weight: &'a [f32],
    eps: f64,
    dtype: DType,
}

impl RowMap for RmsNormRow<'_> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, row: &mut [f32]) {
        let mean_square = sum(s, row, 0.0, true) / row.len() as f32;
        let scale = (1.0 / (f64::from(mean_square) + self.eps).sqrt()) as f32;
        match self.dtype {
            DType::F16 => scale_rounded::<f16>(row, scale, self.weight),
            DType::BF16 => scale_rounded::<bf16>(row, scale, self.weight),
            _ => affine(s, row, 0.0, scale, self.weight, None),
        }
    }
}

/// `row = row · scale`, rounded to `H`, `· weight`.
#[inline(always)]
fn scale_rounded<H: HalfFloat>(row: &mut [f32], scale: f32, weight: &[f32]) {
    const PIECE: usize = 256;
    let mut rounded = [H::ZERO; PIECE];
    for (row, weight) in row.chunks_mut(PIECE).zip(weight.chunks(PIECE)) {
        let rounded = &mut rounded[..row.len()];
        row.iter_mut().for_each(|x| *x *= scale);
        H::narrow_slice(row, rounded);
        H::widen_slice(rounded, row);
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= w);
    }
}

/// `row = (row + shift) · scale · gamma + beta`.
#[inline(always)]
fn affine<S: Simd>(
    s: S,
    row: &mut [f32],
    shift: f32,
    scale: f32,
    gamma: &[f32],
    beta: Option<&[f32]>,
) {
    let (shift_v, scale_v) = (s.splat_f32s(shift), s.splat_f32s(scale));
    let (body, tail) = S::as_mut_simd_f32s(row);
    let (gamma_body, gamma_tail) = S::as_simd_f32s(gamma);
    match beta {
        Some(beta) => {
            let (beta_body, beta_tail) = S::as_simd_f32s(beta);
            for ((x, &g), &b) in body.iter_mut().zip(gamma_body).zip(beta_body) {
                let normed = s.mul_f32s(s.add_f32s(*x, shift_v), scale_v);
                *x = s.mul_add_e_f32s(normed, g, b);
            }
            for ((x, g), b) in tail.iter_mut().zip(gamma_tail).zip(beta_tail) {
                *x = (*x + shift) * scale * g + b;
            }
        }
        None => {
            for (x, &g) in body.iter_mut().zip(gamma_body) {
                let normed = s.mul_f32s(s.add_f32s(*x, shift_v), scale_v);
                *x = s.mul_f32s(normed, g);
            }
            for (x, g) in tail.iter_mut().zip(gamma_tail) {
                *x = (*x + shift) * scale * g;
            }
        }
    }
}
