//! Shared by the tests of `tpo_core::ops`: reproducible inputs and distances.
#![allow(dead_code)] // each test binary uses its part

use burn::tensor::{Device, Tensor, TensorData};

/// Reproducible, roughly normal numbers (sum of uniforms, from a 64-bit linear congruence).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len)
        .map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.7)
        .collect()
}

pub fn tensor<const D: usize>(values: &[f32], dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

pub fn random<const D: usize>(seed: u64, dims: [usize; D], device: &Device) -> Tensor<D> {
    tensor(&noise(seed, dims.iter().product()), dims, device)
}

/// Elements in order, whatever the dtype and strides.
pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().into_data().iter::<f64>().collect()
}

/// `‖a − b‖ / ‖b‖`.
pub fn rel_l2(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    (diff / norm.max(1e-300)).sqrt()
}

/// Fails unless every element is finite and `rel_l2 <= limit`.
#[track_caller]
pub fn assert_close(a: &[f64], b: &[f64], limit: f64) {
    assert!(a.iter().all(|x| x.is_finite()), "non-finite result");
    let distance = rel_l2(a, b);
    assert!(distance <= limit, "rel-L2 {distance:e} > {limit:e}");
}

/// Error function in double precision: series near zero, continued fraction beyond.
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut fraction = z;
        for k in (1..=60).rev() {
            fraction = z + f64::from(k) / 2.0 / fraction;
        }
        1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    value.copysign(x)
}
