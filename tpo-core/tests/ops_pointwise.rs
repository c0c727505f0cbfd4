//! `tpo_core::ops`: activations, normalisations, soft-max against double precision.

mod ops_common;

use burn::tensor::{Device, FloatDType, Tensor};
use ops_common::{assert_close, erf, noise, random, rel_l2, tensor, values};
use tpo_core::ops;

type Map = fn(Tensor<2>) -> Tensor<2>;

fn gelu64(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

fn gelu_tanh64(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + u.tanh())
}

fn silu64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

type Reference = fn(f64) -> f64;

const ACTIVATIONS: [(&str, Map, Reference); 3] = [
    ("gelu", ops::gelu, gelu64),
    ("gelu_tanh", ops::gelu_tanh, gelu_tanh64),
    ("silu", ops::silu, silu64),
];

#[test]
fn erf_reference_is_right() {
    // Abramowitz and Stegun, table 7.1.
    for (x, y) in [
        (0.5, 0.520_499_877_8),
        (1.0, 0.842_700_792_9),
        (2.0, 0.995_322_265_0),
        (3.0, 0.999_977_909_5),
    ] {
        assert!((erf(x) - y).abs() < 1e-9 && (erf(-x) + y).abs() < 1e-9);
    }
}

#[test]
fn activations_match_double_precision() {
    let device = Device::flex();
    for (name, map, reference) in ACTIVATIONS {
        for dims in [[1, 1], [3, 7], [67, 1031], [5, 16]] {
            let input: Vec<f32> = noise(1, dims[0] * dims[1])
                .iter()
                .map(|x| 3.0 * x)
                .collect();
            let expected: Vec<f64> = input.iter().map(|&x| reference(x.into())).collect();
            let x = tensor(&input, dims, &device);
            let shared = map(x.clone());
            assert_close(&values(&shared), &expected, 2e-7);
            // Uniquely owned storage is overwritten; the shared one above was not.
            assert_eq!(values(&x), values(&tensor(&input, dims, &device)), "{name}");
            let owned = map(x);
            assert_eq!(values(&owned), values(&shared), "{name}");
        }
    }
}

#[test]
fn activations_over_the_whole_range() {
    let device = Device::flex();
    for (name, map, reference) in ACTIVATIONS {
        let input: Vec<f32> = (-2400..=2400).map(|i| i as f32 / 50.0).collect();
        let out = values(&map(tensor(&input, [1, input.len()], &device)));
        for (&x, y) in input.iter().zip(out) {
            let expected = reference(x.into());
            let error = (y - expected).abs();
            assert!(
                error <= 4e-7 * (1.0 + expected.abs()),
                "{name}({x}): {y} vs {expected}"
            );
        }
        let extreme = values(&map(tensor(
            &[f32::MAX, -1e30, 0.0, f32::NAN],
            [1, 4],
            &device,
        )));
        assert_eq!(extreme[0], f64::from(f32::MAX), "{name}");
        assert!(
            extreme[1].abs() < 1e-3 && extreme[2] == 0.0,
            "{name}: {extreme:?}"
        );
        assert!(extreme[3].is_nan(), "{name}");
    }
}

#[test]
fn activations_take_strided_and_half_inputs() {
    let device = Device::flex();
    let x = random(2, [37, 53], &device);
    for (name, map, _) in ACTIVATIONS {
        let strided = map(x.clone().transpose());
        assert_eq!(
            values(&strided.transpose()),
            values(&map(x.clone())),
            "{name}"
        );
        let narrowed = map(x.clone().narrow(0, 3, 20));
        assert_eq!(
            values(&narrowed),
            values(&map(x.clone()).narrow(0, 3, 20)),
            "{name}"
        );
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            let half = x.clone().cast(dtype);
            let out = map(half.clone());
            assert_eq!(out.dtype(), half.dtype());
            // The same as computing in f32 and rounding once.
            let expected = map(half.cast(FloatDType::F32)).cast(dtype);
            assert_eq!(values(&out), values(&expected), "{name} {dtype:?}");
        }
    }
}

#[test]
fn activation_gradients_match_finite_differences() {
    let device = Device::flex().autodiff();
    let input: Vec<f32> = (-60..=60).map(|i| i as f32 / 10.0 + 0.013).collect();
    let upstream = noise(3, input.len());
    let dims = [1, input.len()];
    for (_, map, reference) in ACTIVATIONS {
        let x = tensor(&input, dims, &device).require_grad();
        let loss = (map(x.clone()) * tensor(&upstream, dims, &device)).sum();
        let grad = x.grad(&loss.backward()).unwrap();
        let expected: Vec<f64> = input
            .iter()
            .zip(&upstream)
            .map(|(&x, &g)| {
                let (x, h) = (f64::from(x), 1e-5);
                f64::from(g) * (reference(x + h) - reference(x - h)) / (2.0 * h)
            })
            .collect();
        assert_close(&values(&grad), &expected, 1e-6);
    }
}

#[test]
fn swiglu_value_and_gradients() {
    let device = Device::flex().autodiff();
    let dims = [13, 77];
    let (a, b, g) = (noise(4, 1001), noise(5, 1001), noise(6, 1001));
    let f = |i: usize| -> (f64, f64, f64) { (a[i].into(), b[i].into(), g[i].into()) };
    let gate = tensor(&a, dims, &device).require_grad();
    let up = tensor(&b, dims, &device).require_grad();
    let out = ops::swiglu(gate.clone(), up.clone());
    let expected: Vec<f64> = (0..1001).map(|i| silu64(f(i).0) * f(i).1).collect();
    assert_close(&values(&out), &expected, 2e-7);
    let plain = ops::swiglu(gate.clone().inner(), up.clone().inner());
    assert_eq!(values(&plain), values(&out));

    let grads = (out * tensor(&g, dims, &device)).sum().backward();
    let slope = |x: f64| (silu64(x + 1e-5) - silu64(x - 1e-5)) / 2e-5;
    let d_gate: Vec<f64> = (0..1001).map(|i| f(i).2 * f(i).1 * slope(f(i).0)).collect();
    let d_up: Vec<f64> = (0..1001).map(|i| f(i).2 * silu64(f(i).0)).collect();
    assert_close(&values(&gate.grad(&grads).unwrap()), &d_gate, 1e-6);
    assert_close(&values(&up.grad(&grads).unwrap()), &d_up, 1e-6);

    // Only one side wants a gradient; the other is a constant from a plain device.
    let up_plain = tensor(&b, dims, &Device::flex());
    let out = ops::swiglu(gate.clone(), up_plain);
    let grads = (out * tensor(&g, dims, &device)).sum().backward();
    assert_close(&values(&gate.grad(&grads).unwrap()), &d_gate, 1e-6);
}

fn layer_norm64(x: &[f32], gamma: &[f32], beta: &[f32], eps: f64) -> Vec<f64> {
    let n = gamma.len();
    x.chunks(n)
        .flat_map(|row| {
            let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
            let mean = row.iter().sum::<f64>() / n as f64;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            row.into_iter()
                .zip(gamma.iter().zip(beta))
                .map(move |(x, (&g, &b))| {
                    (x - mean) / (var + eps).sqrt() * f64::from(g) + f64::from(b)
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn norms_match_double_precision() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (3, 5), (9, 88), (50, 1024), (7, 1411)] {
        // A mean far from zero is where a one-pass variance would fail.
        let x: Vec<f32> = noise(7, rows * width).iter().map(|x| x + 30.0).collect();
        let (gamma, beta) = (noise(8, width), noise(9, width));
        let [g, b] = [&gamma, &beta].map(|v| tensor(v, [width], &device));
        let t = tensor(&x, [1, rows, width], &device);
        let out = ops::layer_norm(t.clone(), g.clone(), b.clone(), 1e-5);
        if width > 1 {
            assert_close(&values(&out), &layer_norm64(&x, &gamma, &beta, 1e-5), 1e-5);
        } else {
            assert_eq!(values(&out), values(&b));
        }

        let rms: Vec<f64> = x
            .chunks(width)
            .flat_map(|row| {
                let mean: f64 =
                    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                row.iter()
                    .zip(&gamma)
                    .map(move |(&x, &g)| f64::from(x) / (mean + 1e-6).sqrt() * f64::from(g))
            })
            .collect();
        let out = ops::rms_norm(t.clone(), g.clone(), 1e-6);
        assert_close(&values(&out), &rms, 3e-7);

        // The differentiable path means the same.
        let ad = Device::flex().autodiff();
        let t = tensor(&x, [1, rows, width], &ad);
        let out = ops::rms_norm(t.clone(), tensor(&gamma, [width], &ad), 1e-6);
        assert_close(&values(&out), &rms, 1e-6);
        if width > 1 {
            let out = ops::layer_norm(
                t,
                tensor(&gamma, [width], &ad),
                tensor(&beta, [width], &ad),
                1e-5,
            );
            assert_close(&values(&out), &layer_norm64(&x, &gamma, &beta, 1e-5), 1e-5);
        }
    }
}

#[test]
fn norms_of_half_precision_use_f32_statistics() {
    let device = Device::flex();
    // 300² overflows f16; the sum of 2048 such squares far more so.
    let x: Vec<f32> = noise(10, 4 * 2048).iter().map(|x| 300.0 * x).collect();
    let x = tensor(&x, [4, 2048], &device);
    let w = random(11, [2048], &device);
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let (x, w) = (x.clone().cast(dtype), w.clone().cast(dtype));
        let out = ops::rms_norm(x.clone(), w.clone(), 1e-6);
        assert_eq!(out.dtype(), x.dtype());
        let f32 = FloatDType::F32;
        let expected = ops::rms_norm(x.clone().cast(f32), w.clone().cast(f32), 1e-6);
        assert_close(&values(&out), &values(&expected), 6e-3);
        let out = ops::layer_norm(x.clone(), w.clone(), w.clone(), 1e-5);
        let wide = w.cast(f32);
        let expected = ops::layer_norm(x.cast(f32), wide.clone(), wide, 1e-5);
        assert_close(&values(&out), &values(&expected), 6e-3);
    }
}

#[test]
fn norm_gradients_match_finite_differences() {
    let device = Device::flex().autodiff();
    let (rows, width) = (3, 11);
    let (x, g, b) = (noise(12, rows * width), noise(13, width), noise(14, width));
    let up = noise(15, rows * width);
    let loss64 = |x: &[f32]| -> f64 {
        let out = layer_norm64(x, &g, &b, 1e-5);
        out.iter().zip(&up).map(|(y, &u)| y * f64::from(u)).sum()
    };
    let t = tensor(&x, [rows, width], &device).require_grad();
    let [gt, bt] = [&g, &b].map(|v| tensor(v, [width], &device).require_grad());
    let out = ops::layer_norm(t.clone(), gt.clone(), bt.clone(), 1e-5);
    let grads = (out * tensor(&up, [rows, width], &device)).sum().backward();
    let expected: Vec<f64> = (0..x.len())
        .map(|i| {
            let h = 1.0 / 1024.0;
            let (mut hi, mut lo) = (x.clone(), x.clone());
            hi[i] += h;
            lo[i] -= h;
            (loss64(&hi) - loss64(&lo)) / f64::from(hi[i] - lo[i])
        })
        .collect();
    assert_close(&values(&t.grad(&grads).unwrap()), &expected, 1e-4);
    let d_beta: Vec<f64> = (0..width)
        .map(|c| (0..rows).map(|r| f64::from(up[r * width + c])).sum())
        .collect();
    assert_close(&values(&bt.grad(&grads).unwrap()), &d_beta, 1e-6);
    assert!(gt.grad(&grads).is_some());
}

#[test]
fn softmax_matches_double_precision() {
    let device = Device::flex();
    for width in [1, 3, 16, 33, 1031] {
        let x: Vec<f32> = noise(16, 5 * width).iter().map(|x| 20.0 * x).collect();
        let expected: Vec<f64> = x
            .chunks(width)
            .flat_map(|row| {
                let max = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
                row.iter().map(move |&x| (f64::from(x) - max).exp() / sum)
            })
            .collect();
        let out = ops::softmax_last(tensor(&x, [5, 1, width], &device));
        assert_close(&values(&out), &expected, 1e-6);
        let ad = Device::flex().autodiff();
        let composed = ops::softmax_last(tensor(&x, [5, 1, width], &ad));
        assert!(rel_l2(&values(&out), &values(&composed)) < 1e-5);
    }
    // Masked entries vanish exactly.
    let out = ops::softmax_last(tensor(&[0.0, f32::NEG_INFINITY, 0.0], [1, 3], &device));
    assert_eq!(values(&out), [0.5, 0.0, 0.5]);
}
