//! Shared by the integration tests.
#![allow(dead_code)]

pub mod fixture;
pub mod parity;

use std::path::Path;

use burn::tensor::{Device, Distribution, Tensor};

/// A fixture of this crate.
pub fn fixture(name: &str) -> fixture::Fixture {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixture::Fixture::read(&dir, name)
}

/// Fails with every comparison that is over its tolerance.
pub fn assert_within(comparisons: &[parity::Comparison]) {
    for c in comparisons {
        println!(
            "{:<70} {:.2e} (tolerance {:.0e})",
            c.name, c.rel_l2, c.tolerance
        );
    }
    let over: Vec<_> = comparisons
        .iter()
        .filter(|c| !c.is_within())
        .map(|c| format!("{}: {:.2e} > {:.0e}", c.name, c.rel_l2, c.tolerance))
        .collect();
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// Normal random tensor.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Largest absolute difference.
pub fn max_diff<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a.inner() - b.inner()).abs().max().into_scalar()
}
