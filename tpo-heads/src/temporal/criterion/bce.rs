//! Binary cross entropy of probabilities as PyTorch defines it.

use burn::tensor::Tensor;

/// Per element `−(y·ln p + (1 − y)·ln(1 − p))`, logarithms not below −100, and PyTorch's gradient
/// `(p − y) / max(p·(1 − p), 1e-12)`, which stays finite where the probability has saturated.
///
/// All `[..]`; no gradient flows into `y`.
pub(super) fn bce<const D: usize>(p: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    let still = p.clone().detach();
    let y = y.detach();
    let other = still.clone().neg().add_scalar(1.0);
    let log = |x: Tensor<D>| x.log().clamp_min(-100.0);
    let value = (y.clone() * log(still.clone())
        + y.clone().neg().add_scalar(1.0) * log(other.clone()))
    .neg();
    let slope = (still.clone() - y) / (still.clone() * other).clamp_min(1e-12);
    value + slope * (p - still)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn value_and_gradient_also_at_the_ends() {
        let device = Device::flex().autodiff();
        let p = Tensor::<1>::from_data([0.25f32, 1.0, 0.0, 1.0], &device).require_grad();
        let y = Tensor::<1>::from_data([1.0f32, 0.0, 0.0, 1.0], &device);
        let loss = bce(p.clone(), y);
        let got: Vec<f32> = loss.clone().into_data().iter::<f32>().collect();
        for (g, e) in got.iter().zip([4.0f32.ln(), 100.0, 0.0, 0.0]) {
            assert!((g - e).abs() < 1e-5, "{got:?}");
        }
        let grads = loss.sum().backward();
        let got: Vec<f32> = p.grad(&grads).unwrap().into_data().iter::<f32>().collect();
        assert!((got[0] + 4.0).abs() < 1e-5, "{got:?}");
        assert_eq!(got[1], 1e12);
        assert_eq!(got[2..], [0.0, 0.0]);
    }
}
