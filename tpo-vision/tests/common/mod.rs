//! Shared by the integration tests.
#![allow(dead_code)]

pub mod params;

use burn::tensor::{Device, Distribution, Tensor};

/// Normal random tensor.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Largest absolute difference.
pub fn max_diff<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a.inner() - b.inner()).abs().max().into_scalar()
}
