//! `tpo_core::ops::linear` and `conv_patch_embed` against double precision.

mod ops_common;

use burn::tensor::{Device, FloatDType, Tensor, module, ops::ConvOptions};
use ops_common::{assert_close, noise, random, rel_l2, tensor, values};
use tpo_core::ops::{conv_patch_embed, linear};

/// `x [rows, d_in] · w [d_out, d_in]ᵀ + b`.
fn reference(x: &[f64], w: &[f64], b: Option<&[f64]>, [rows, d_in, d_out]: [usize; 3]) -> Vec<f64> {
    let mut out = Vec::with_capacity(rows * d_out);
    for row in 0..rows {
        for o in 0..d_out {
            let dot: f64 = (0..d_in).map(|i| x[row * d_in + i] * w[o * d_in + i]).sum();
            out.push(dot + b.map_or(0.0, |b| b[o]));
        }
    }
    out
}

const SIZES: [[usize; 2]; 6] = [[1, 1], [5, 3], [64, 48], [130, 77], [257, 205], [2050, 13]];
/// Both sides of the limits between the kernels.
const ROWS: [usize; 9] = [1, 2, 3, 5, 8, 9, 33, 129, 1030];

#[test]
fn every_dtype_order_and_row_count() {
    let device = Device::flex();
    for [d_in, d_out] in SIZES {
        for rows in ROWS {
            for (dtype, limit) in [
                (FloatDType::F32, 2e-6),
                (FloatDType::F16, 2e-3),
                (FloatDType::BF16, 6e-3),
            ] {
                let x = random::<2>(1, [rows, d_in], &device).cast(dtype);
                let by_output = random::<2>(2, [d_out, d_in], &device).cast(dtype);
                let by_input = random::<2>(2, [d_out, d_in], &device)
                    .cast(dtype)
                    .transpose()
                    .into_data();
                let by_input = Tensor::<2>::from_data(by_input, (&device, by_output.dtype()));
                let b = random::<1>(3, [d_out], &device).cast(dtype);
                let (xv, wv, bv) = (values(&x), values(&by_output), values(&b));
                let size = [rows, d_in, d_out];
                for (weight, bias) in [
                    (by_output.clone().transpose(), None),
                    (by_output.clone().transpose(), Some(b.clone())),
                    (by_input.clone(), Some(b.clone())),
                ] {
                    let expected = reference(&xv, &wv, bias.is_some().then_some(&bv), size);
                    let out = linear(x.clone(), weight, bias);
                    assert_eq!(out.dtype(), x.dtype());
                    assert_eq!(out.dims(), [rows, d_out]);
                    assert_close(&values(&out), &expected, limit);
                }
            }
        }
    }
}

#[test]
fn half_weights_with_f32_activations() {
    let device = Device::flex();
    for [d_in, d_out] in SIZES {
        for rows in ROWS {
            for dtype in [FloatDType::F16, FloatDType::BF16] {
                let x = random::<2>(1, [rows, d_in], &device);
                let w = random::<2>(2, [d_out, d_in], &device).cast(dtype);
                let b = random::<1>(3, [d_out], &device);
                let size = [rows, d_in, d_out];
                let expected = reference(&values(&x), &values(&w), Some(&values(&b)), size);
                let out = linear(x.clone(), w.transpose(), Some(b));
                assert_eq!(out.dtype(), x.dtype());
                // The weight is exact in f32, so is the result but for the order of sums.
                assert_close(&values(&out), &expected, 2e-6);
            }
        }
    }
}

/// A row's result depends neither on the rows beside it nor on the number of threads, as long as no row goes to
/// Burn's product: more than 128 of `f32` may.
#[test]
fn a_row_alone_and_among_others() {
    let device = Device::flex();
    let x = random::<2>(1, [128, 2050], &device);
    let equal = |weight: Tensor<2>| {
        let [d_in, d_out] = weight.dims();
        let b = random::<1>(3, [d_out], &device);
        let run = |threads: usize, rows: std::ops::Range<usize>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let x = x.clone().slice([rows, 0..d_in]);
            let (w, b) = (weight.clone(), Some(b.clone()));
            let run = || values(&linear(x, w, b));
            pool.build().unwrap().install(run)
        };
        let all = run(3, 0..128);
        for rows in [0..1, 7..9, 20..25, 11..44, 50..111, 0..128] {
            let expected = &all[rows.start * d_out..rows.end * d_out];
            assert!(run(1, rows.clone()) == expected, "{d_in}: {rows:?}");
        }
    };
    // Whole and broken blocks, one and several panels and tasks, lines that are no whole units.
    for [d_in, d_out] in [[576, 192], [2050, 70], [257, 41]] {
        let w = random::<2>(2, [d_out, d_in], &device);
        equal(w.clone().transpose());
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            let w = w.clone().cast(dtype);
            equal(w.clone().transpose());
            // The other order, as in the gradient of the input.
            let data = w.clone().transpose().into_data();
            equal(Tensor::from_data(data, (&device, w.dtype())));
        }
    }
}

#[test]
fn f16_edge_values_survive() {
    let device = Device::flex();
    // Subnormals, the smallest normal, the largest value, negative zero, infinity.
    let bits = [
        0x0001u16, 0x83ff, 0x0400, 0x7bff, 0x8000, 0xfc00, 0x3c01, 0xbbff,
    ];
    let weight: Vec<half::f16> = bits.map(half::f16::from_bits).to_vec();
    let data = burn::tensor::TensorData::new(weight.clone(), [8, 1]);
    let w = Tensor::<2>::from_data(data, (&device, burn::tensor::DType::F16));
    // [in = 8, out = 1]: a one in place i selects weight i; two outputs make whole units.
    let w = Tensor::cat(vec![w.clone(), w], 1);
    for (i, expected) in weight.iter().enumerate() {
        if expected.is_infinite() {
            continue;
        }
        let mut x = [0.0f32; 8];
        x[i] = 1.0;
        // Without the infinity: 0 · inf is NaN, rightly.
        let x = tensor(&[&x[..5], &x[6..]].concat(), [1, 7], &device);
        let w = Tensor::cat(
            vec![w.clone().narrow(0, 0, 5), w.clone().narrow(0, 6, 2)],
            0,
        );
        assert_eq!(values(&linear(x, w, None)), [expected.to_f64(); 2]);
    }
    let infinite = linear(tensor(&[1.0], [1, 1], &device), w.narrow(0, 5, 1), None);
    assert_eq!(values(&infinite), [f64::NEG_INFINITY; 2]);
}

#[test]
fn leading_axes_and_views() {
    let device = Device::flex();
    let w = random::<2>(2, [24, 40], &device);
    let b = random::<1>(3, [24], &device);
    let x = random::<4>(1, [2, 3, 5, 40], &device);
    let size = [30, 40, 24];
    let expected = reference(&values(&x), &values(&w), Some(&values(&b)), size);
    let out = linear(x.clone(), w.clone().transpose(), Some(b.clone()));
    assert_eq!(out.dims(), [2, 3, 5, 24]);
    assert_close(&values(&out), &expected, 2e-6);

    // A strided input, few rows and many.
    for rows in [2, 50, 200] {
        let x = random::<2>(4, [40, rows], &device).transpose();
        let expected = reference(&values(&x), &values(&w), None, [rows, 40, 24]);
        let out = linear(x, w.clone().transpose(), None);
        assert_close(&values(&out), &expected, 2e-6);
    }

    // A weight that is a window of a larger one, in both orders.
    let big = random::<2>(5, [100, 90], &device);
    let x = random::<2>(6, [3, 31], &device);
    let window = big.clone().narrow(0, 7, 31).narrow(1, 11, 45);
    let expected = {
        let w = values(&window.clone().transpose());
        reference(&values(&x), &w, None, [3, 31, 45])
    };
    assert_close(
        &values(&linear(x.clone(), window.clone(), None)),
        &expected,
        2e-6,
    );
    let turned = big
        .transpose()
        .narrow(1, 7, 31)
        .narrow(0, 11, 45)
        .transpose();
    assert_close(&values(&linear(x, turned, None)), &expected, 2e-6);

    let out = linear(random::<1>(7, [40], &device), w.transpose(), Some(b));
    assert_eq!(out.dims(), [24]);
}

#[test]
fn gradients_flow_to_input_weight_and_bias() {
    let device = Device::flex().autodiff();
    let (rows, d_in, d_out) = (6, 5, 4);
    let (x, w, b) = (noise(1, 30), noise(2, 20), noise(3, 4));
    let up = noise(4, 24);
    let xt = tensor(&x, [2, 3, 5], &device).require_grad();
    let wt = tensor(&w, [4, 5], &device).require_grad();
    let bt = tensor(&b, [4], &device).require_grad();
    let out = linear(xt.clone(), wt.clone().transpose(), Some(bt.clone()));
    let grads = (out * tensor(&up, [2, 3, 4], &device)).sum().backward();
    let at = |v: &[f32], i: usize| f64::from(v[i]);
    let dx: Vec<f64> = (0..rows * d_in)
        .map(|n| {
            (0..d_out)
                .map(|o| at(&up, n / d_in * d_out + o) * at(&w, o * d_in + n % d_in))
                .sum()
        })
        .collect();
    let dw: Vec<f64> = (0..d_out * d_in)
        .map(|n| {
            (0..rows)
                .map(|r| at(&up, r * d_out + n / d_in) * at(&x, r * d_in + n % d_in))
                .sum()
        })
        .collect();
    let db: Vec<f64> = (0..d_out)
        .map(|o| (0..rows).map(|r| at(&up, r * d_out + o)).sum())
        .collect();
    assert_close(&values(&xt.grad(&grads).unwrap()), &dx, 1e-6);
    assert_close(&values(&wt.grad(&grads).unwrap()), &dw, 1e-6);
    assert_close(&values(&bt.grad(&grads).unwrap()), &db, 1e-6);

    // Frozen weight on a plain device, input on the autodiff device.
    let frozen = tensor(&w, [4, 5], &Device::flex()).transpose();
    let out = linear(xt.clone(), frozen, None);
    let grads = (out * tensor(&up, [2, 3, 4], &device)).sum().backward();
    assert_close(&values(&xt.grad(&grads).unwrap()), &dx, 1e-6);
}

#[test]
fn patch_embedding_is_the_strided_convolution() {
    let device = Device::flex();
    let x = random::<5>(1, [2, 3, 5, 9, 8], &device);
    let w = random::<5>(2, [7, 3, 2, 4, 2], &device);
    let b = random::<1>(3, [7], &device);
    let out = conv_patch_embed(x.clone(), w.clone(), Some(b.clone()));
    // Trailing frame and row are dropped: 2 · 2 · 4 tokens.
    assert_eq!(out.dims(), [2, 16, 7]);
    let conv = module::conv3d(
        x.clone(),
        w.clone(),
        Some(b),
        ConvOptions::new([2, 4, 2], [0, 0, 0], [1, 1, 1], 1),
    );
    let conv = conv.reshape([2, 7, 16]).swap_dims(1, 2);
    assert!(rel_l2(&values(&out), &values(&conv)) < 1e-6);

    let ad = device.autodiff();
    let w_ad = Tensor::<5>::from_inner(w).require_grad();
    let out = conv_patch_embed(Tensor::from_inner(x.clone()), w_ad.clone(), None);
    let up = random::<3>(4, [2, 16, 7], &ad);
    let grads = (out * up.clone()).sum().backward();
    let conv_ad = w_ad.clone().detach().require_grad();
    let conv = module::conv3d(
        Tensor::from_inner(x),
        conv_ad.clone(),
        None,
        ConvOptions::new([2, 4, 2], [0, 0, 0], [1, 1, 1], 1),
    );
    let conv = conv.reshape([2, 7, 16]).swap_dims(1, 2);
    let expected = (conv * up).sum().backward();
    let (a, b) = (w_ad.grad(&grads).unwrap(), conv_ad.grad(&expected).unwrap());
    assert_close(&values(&a), &values(&b), 1e-5);
}
