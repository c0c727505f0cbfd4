//! Muon: a matrix moves along its momentum made orthogonal.

use burn::tensor::{FloatDType, Tensor};
use tpo_core::ops::sum_of_squares;

/// Coefficients of the quintic iteration, chosen by Muon's author for their slope at zero: singular
/// values end between about 0.7 and 1.2.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// Size of an AdamW update that Muon's is matched to (arXiv 2502.16982, section 2.2).
const ADAMW_RMS: f64 = 0.2;
/// Guard of the division by the norm, as the author has it.
const EPSILON: f64 = 1e-7;

/// The numbers of one Muon update of one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct MuonUpdate {
    pub lr: f64,
    pub momentum: f64,
    pub iterations: usize,
    pub weight_decay: f64,
    /// Factor on the gradient, for clipping and averaging.
    pub grad_scale: f64,
}

/// One Muon update:
///
/// ```text
/// g = grad_scale · grad
/// m = momentum · m + g
/// o = orthogonal(momentum · m + g)
/// w = w · (1 − lr · weight_decay) − lr · 0.2 √max(rows, columns) · o
/// ```
///
/// # Shapes
/// - all `[rows · columns]`, `f32`; returns weight and momentum
pub(super) fn muon(
    weight: Tensor<1>,
    grad: Tensor<1>,
    momentum: Tensor<1>,
    shape: [usize; 2],
    update: &MuonUpdate,
) -> (Tensor<1>, Tensor<1>) {
    let n = shape[0] * shape[1];
    let grad = grad.cast(FloatDType::F32).mul_scalar(update.grad_scale);
    let momentum = momentum.mul_scalar(update.momentum) + grad.clone();
    let ahead = momentum.clone().mul_scalar(update.momentum) + grad;
    let direction = orthogonal(ahead.reshape(shape), update.iterations).reshape([n]);
    let longest = shape[0].max(shape[1]) as f64;
    let step = update.lr * ADAMW_RMS * longest.sqrt();
    let kept = weight.mul_scalar(1.0 - update.lr * update.weight_decay);
    (kept - direction.mul_scalar(step), momentum)
}

/// The matrix with its singular values brought near one, by Newton-Schulz iterations on the smaller
/// side. A matrix of zeros stays one.
fn orthogonal(matrix: Tensor<2>, iterations: usize) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let tall = rows > columns;
    let wide = if tall { matrix.swap_dims(0, 1) } else { matrix };
    let n = rows * columns;
    let norm = sum_of_squares([wide.clone().reshape([n])]).sqrt();
    let mut x = wide.div_scalar(norm + EPSILON);
    let [a, b, c] = QUINTIC;
    for _ in 0..iterations {
        let square = x.clone().matmul(x.clone().transpose());
        let fourth = square.clone().matmul(square.clone());
        let mix = square.mul_scalar(b) + fourth.mul_scalar(c);
        x = x.clone().mul_scalar(a) + mix.matmul(x);
    }
    if tall { x.swap_dims(0, 1) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn tensor(values: &[f32]) -> Tensor<1> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::from_data(data, &Device::flex())
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    /// On a diagonal matrix every iteration acts on each singular value alone.
    #[test]
    fn singular_values_by_hand() {
        let [a, b, c] = QUINTIC;
        let expected = |s: f64| (0..5).fold(s / 5.0, |s, _| a * s + b * s.powi(3) + c * s.powi(5));
        for shape in [[2, 2], [2, 3], [3, 2]] {
            let mut flat = vec![0.0; shape[0] * shape[1]];
            flat[0] = 3.0;
            flat[shape[1] + 1] = -4.0;
            let made = values(orthogonal(tensor(&flat).reshape(shape), 5));
            for (i, value) in made.iter().enumerate() {
                let wanted = match i {
                    0 => expected(3.0),
                    _ if i == shape[1] + 1 => -expected(4.0),
                    _ => 0.0,
                };
                assert!(
                    (f64::from(*value) - wanted).abs() < 1e-4,
                    "{shape:?} {made:?}"
                );
            }
        }
        assert_eq!(
            values(orthogonal(tensor(&[0.0; 6]).reshape([2, 3]), 5)),
            [0.0; 6]
        );
    }

    #[test]
    fn an_update_by_hand() {
        let update = MuonUpdate {
            lr: 0.1,
            momentum: 0.5,
            iterations: 1,
            weight_decay: 0.5,
            grad_scale: 2.0,
        };
        // One row: the iteration gives the unit vector times the sum of the coefficients.
        let shape = [1, 4];
        let weight = tensor(&[1.0, 2.0, 3.0, 4.0]);
        let momentum = tensor(&[2.0, 0.0, 0.0, 0.0]);
        let grad = tensor(&[0.5, 0.0, 2.0, 0.0]);
        let (weight, momentum) = muon(weight, grad, momentum, shape, &update);
        // g = [1, 0, 4, 0], m = [2, 0, 4, 0], ahead = [2, 0, 6, 0].
        assert_eq!(values(momentum), [2.0, 0.0, 4.0, 0.0]);
        let sum: f64 = QUINTIC.iter().sum();
        let step = 0.1 * 0.2 * 2.0 * sum / 40f64.sqrt();
        let expected = [0.95 - 2.0 * step, 1.9, 2.85 - 6.0 * step, 3.8];
        for (value, wanted) in values(weight).into_iter().zip(expected) {
            assert!((f64::from(value) - wanted).abs() < 1e-5, "{value} {wanted}");
        }
    }
}
