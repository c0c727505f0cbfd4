//! Hand-written backward steps against Burn's own operations.

use burn::tensor::{Device, Distribution, Tensor, activation};
use tpo_core::ops;

fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().iter::<f32>().collect()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let (mut diff, mut norm) = (0f64, 1e-12f64);
    for (g, e) in got.iter().zip(expected) {
        diff += f64::from(g - e).powi(2);
        norm += f64::from(*e).powi(2);
    }
    let error = (diff / norm).sqrt();
    assert!(error < tolerance, "relative error {error}");
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// The same leaf twice, so that two graphs do not mix.
fn twins<const D: usize>(t: &Tensor<D>) -> [Tensor<D>; 2] {
    [t, t].map(|t| t.clone().detach().require_grad())
}

#[test]
fn layer_norm() {
    let device = Device::flex().autodiff();
    device.seed(1);
    // Widths around the vector width, and more rows than one task takes.
    for (rows, width) in [(1, 1), (3, 7), (5, 64), (400, 300), (2, 770)] {
        let x = random([rows, width], &device) * 3.0 + 1.0;
        let (g, b) = (random([width], &device), random([width], &device));
        let up = random([rows, width], &device);
        let ([x1, x2], [g1, g2], [b1, b2]) = (twins(&x), twins(&g), twins(&b));
        let ours = ops::layer_norm(x1.clone(), g1.clone(), b1.clone(), 1e-5);
        let mean = x2.clone().mean_dim(1);
        let centred = x2.clone() - mean;
        let var = centred.clone().square().mean_dim(1);
        let theirs = centred / (var + 1e-5).sqrt() * g2.clone().reshape([1, width])
            + b2.clone().reshape([1, width]);
        assert_close(&values(ours.clone()), &values(theirs.clone()), 1e-5);
        let a = (ours * up.clone()).sum().backward();
        let b = (theirs * up).sum().backward();
        let pair = |l: Option<Tensor<1>>, r: Option<Tensor<1>>| {
            assert_close(&values(l.unwrap()), &values(r.unwrap()), 1e-4);
        };
        pair(g1.grad(&a), g2.grad(&b));
        pair(b1.grad(&a), b2.grad(&b));
        if width > 1 {
            let (l, r) = (x1.grad(&a).unwrap(), x2.grad(&b).unwrap());
            assert_close(&values(l), &values(r), 1e-4);
        }
    }
}

#[test]
fn layer_norm_of_a_frozen_input_or_frozen_weights() {
    let device = Device::flex().autodiff();
    let x = random([4, 9], &device);
    let g = random([9], &device).require_grad();
    let b = random([9], &device);
    let grads = ops::layer_norm(x.clone(), g.clone(), b.clone(), 1e-5)
        .sum()
        .backward();
    assert!(g.grad(&grads).is_some());
    assert!(x.grad(&grads).is_none() && b.grad(&grads).is_none());
    let x = x.require_grad();
    let grads = ops::layer_norm(x.clone(), b.clone(), b, 1e-5)
        .sum()
        .backward();
    assert!(x.grad(&grads).is_some());
}

#[test]
fn softmax() {
    let device = Device::flex().autodiff();
    device.seed(2);
    for (rows, width) in [(2, 1), (3, 5), (7, 33), (500, 200)] {
        let x = random([rows, width], &device) * 4.0;
        let up = random([rows, width], &device);
        let [x1, x2] = twins(&x);
        let ours = (ops::softmax_last(x1.clone()) * up.clone())
            .sum()
            .backward();
        let theirs = (activation::softmax(x2.clone(), 1) * up).sum().backward();
        let (l, r) = (x1.grad(&ours).unwrap(), x2.grad(&theirs).unwrap());
        if width > 1 {
            assert_close(&values(l), &values(r), 1e-4);
        } else {
            assert!(values(l).iter().all(|v| v.abs() < 1e-6));
        }
    }
}

#[test]
fn prelu_by_hand() {
    let device = Device::flex().autodiff();
    let x = Tensor::<1>::from_data([-2.0f32, 0.0, 3.0], &device).require_grad();
    let w = Tensor::<1>::from_data([0.25f32], &device).require_grad();
    let out = ops::prelu(x.clone(), w.clone());
    assert_eq!(values(out.clone()), [-0.5, 0.0, 3.0]);
    let up = Tensor::<1>::from_data([1.0f32, 1.0, 10.0], &device);
    let grads = (out * up).sum().backward();
    let d_x = values(x.grad(&grads).unwrap());
    assert_eq!((d_x[0], d_x[2]), (0.25, 10.0));
    assert_eq!(values(w.grad(&grads).unwrap()), [-2.0]);
}

#[test]
fn prelu_of_many() {
    let device = Device::flex().autodiff();
    device.seed(3);
    let x = random([301, 257], &device);
    let up = random([301, 257], &device);
    let [x1, x2] = twins(&x);
    let [w1, w2] = twins(&Tensor::<1>::from_data([-0.3f32], &device));
    let ours = (ops::prelu(x1.clone(), w1.clone()) * up.clone())
        .sum()
        .backward();
    let theirs = (activation::prelu(x2.clone(), w2.clone()) * up)
        .sum()
        .backward();
    let close = |l: Vec<f32>, r: Vec<f32>| assert_close(&l, &r, 1e-4);
    close(
        values(x1.grad(&ours).unwrap()),
        values(x2.grad(&theirs).unwrap()),
    );
    close(
        values(w1.grad(&ours).unwrap()),
        values(w2.grad(&theirs).unwrap()),
    );
}
