//! Layer and root-mean-square normalisation with gradients on the CPU. The statistics of a row are taken again in the
//! backward pass: that costs less than reading them from memory would save.

use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{Saved, floats, from_floats};
use super::rows::{CHUNK, sum};

/// The inputs of a normalisation.
#[derive(Clone, Debug)]
pub(super) struct NormInputs {
    pub(super) x: FlexTensor,
    pub(super) gamma: FlexTensor,
    pub(super) beta_dtype: DType,
    pub(super) eps: f64,
    /// Whether the mean is taken off: layer norm, not RMS norm.
    pub(super) centred: bool,
}

/// Of layer norm: x, gamma and beta.
impl Saved<3> for NormInputs {
    fn gradients(self, grad: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        backward(&self, &grad).map(Some)
    }
}

/// Of RMS norm: x and the weight.
impl Saved<2> for NormInputs {
    fn gradients(self, grad: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let [x, weight, _] = backward(&self, &grad);
        [Some(x), Some(weight)]
    }
}

fn backward(saved: &NormInputs, grad: &FlexTensor) -> [FlexTensor; 3] {
    let shape = saved.x.layout().shape().clone();
    let gamma_shape = saved.gamma.layout().shape().clone();
    let width = gamma_shape.num_elements();
    let (x, grad_in, gamma) = (floats(&saved.x), floats(grad), floats(&saved.gamma));
    let arch = Arch::new();
    let mut d_x = vec![0.0f32; x.len()];
    let mut d_affine = vec![0.0f32; 2 * width];
    if let Some(rows) = CHUNK.checked_div(width) {
        let chunk = rows.max(1) * width;
        let parts: Vec<Vec<f32>> = d_x
            .par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk).zip(grad_in.par_chunks(chunk)))
            .map(|(d_x, (x, grad))| {
                let mut d_affine = vec![0.0f32; 2 * width];
                let (d_gamma, d_beta) = d_affine.split_at_mut(width);
                arch.dispatch(Rows {
                    x,
                    grad,
                    gamma: &gamma,
                    eps: saved.eps,
                    centred: saved.centred,
                    d_x,
                    d_gamma,
                    d_beta,
                });
                d_affine
            })
            .collect();
        for part in parts {
            d_affine.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
    }
    let d_beta = d_affine.split_off(width);
    [
        from_floats(d_x, shape, saved.x.dtype()),
        from_floats(d_affine, gamma_shape.clone(), saved.gamma.dtype()),
        from_floats(d_beta, gamma_shape, saved.beta_dtype),
    ]
}

struct Rows<'a> {
    x: &'a [f32],
    grad: &'a [f32],
    gamma: &'a [f32],
    eps: f64,
    centred: bool,
    d_x: &'a mut [f32],
    d_gamma: &'a mut [f32],
    d_beta: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let width = self.gamma.len();
        let inverse = 1.0 / width as f32;
        let (gamma, gamma_tail) = S::as_simd_f32s(self.gamma);
        let (d_gamma, d_gamma_tail) = S::as_mut_simd_f32s(self.d_gamma);
        let (d_beta, d_beta_tail) = S::as_mut_simd_f32s(self.d_beta);
        let rows = self
            .x
            .chunks_exact(width)
            .zip(self.grad.chunks_exact(width));
        for ((x, grad), d_x) in rows.zip(self.d_x.chunks_exact_mut(width)) {
            let mean = if self.centred {
                sum(s, x, 0.0, false) * inverse
            } else {
                0.0
            };
            let var = sum(s, x, -mean, true) * inverse;
            let scale = (1.0 / (f64::from(var) + self.eps).sqrt()) as f32;

            // Normalised input and `grad · gamma`, and their sums.
            let (mean_v, scale_v) = (s.splat_f32s(mean), s.splat_f32s(scale));
            let (x, x_tail) = S::as_simd_f32s(x);
            let (grad, grad_tail) = S::as_simd_f32s(grad);
            let (mut first, mut second) = ([s.splat_f32s(0.0); 2], [s.splat_f32s(0.0); 2]);
            for i in 0..x.len() {
                let normed = s.mul_f32s(s.sub_f32s(x[i], mean_v), scale_v);
                let scaled = s.mul_f32s(grad[i], gamma[i]);
                first[i % 2] = s.add_f32s(first[i % 2], scaled);
                second[i % 2] = s.mul_add_e_f32s(scaled, normed, second[i % 2]);
                d_gamma[i] = s.mul_add_e_f32s(grad[i], normed, d_gamma[i]);
                d_beta[i] = s.add_f32s(d_beta[i], grad[i]);
            }
            let mut a = s.reduce_sum_f32s(s.add_f32s(first[0], first[1]));
            let mut b = s.reduce_sum_f32s(s.add_f32s(second[0], second[1]));
            for i in 0..x_tail.len() {
                let normed = (x_tail[i] - mean) * scale;
                let scaled = grad_tail[i] * gamma_tail[i];
                a += scaled;
                b += scaled * normed;
                d_gamma_tail[i] += grad_tail[i] * normed;
                d_beta_tail[i] += grad_tail[i];
            }
            let a = if self.centred { a * inverse } else { 0.0 };
            let b = b * inverse;

            let (a_v, b_v) = (s.splat_f32s(a), s.splat_f32s(b));
            let (d_x, d_x_tail) = S::as_mut_simd_f32s(d_x);
            for i in 0..x.len() {
                let normed = s.mul_f32s(s.sub_f32s(x[i], mean_v), scale_v);
                let scaled = s.mul_f32s(grad[i], gamma[i]);
                let rest = s.sub_f32s(s.sub_f32s(scaled, a_v), s.mul_f32s(normed, b_v));
                d_x[i] = s.mul_f32s(rest, scale_v);
            }
            for i in 0..x_tail.len() {
                let normed = (x_tail[i] - mean) * scale;
                d_x_tail[i] = (grad_tail[i] * gamma_tail[i] - a - normed * b) * scale;
            }
        }
    }
}
