//! Operations on channels-last maps: the CPU kernels against the differentiable compositions and
//! against numbers worked by hand.

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use tpo_core::ops::{self, ConvShape, WindowAttention};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Largest difference; the shapes must be the same.
fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    a.iter().zip(&b).fold(0.0, |d, (a, b)| d.max((a - b).abs()))
}

/// On an autodiff device the composition runs.
fn differentiable<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(x.to_data(), &Device::flex().autodiff()).require_grad()
}

#[test]
fn windows_read_in_place_equal_windows_cut_out() {
    // (height, width, window, pool): exact tiling, padding on either or both sides, windows larger
    // than the image, pooling over whole and over mixed cells, few and many rows.
    for (height, width, window, pool) in [
        (8, 8, Some(4), false),
        (6, 10, Some(4), false),
        (5, 7, Some(4), true),
        (6, 10, Some(4), true),
        (3, 2, Some(14), false),
        (16, 16, Some(14), true),
        (16, 12, Some(2), true),
        (9, 9, None, false),
        (9, 6, None, true),
        (8, 12, None, true),
    ] {
        let options = WindowAttention {
            heads: 2,
            window,
            pool,
        };
        let qkv = random([2, height, width, 3 * 24]);
        let padding = random([3 * 24]);
        let fast = ops::window_attention(qkv.clone(), padding.clone(), options);
        let (a, p) = (differentiable(&qkv), differentiable(&padding));
        let composed = ops::window_attention(a.clone(), p.clone(), options);
        let error = distance(fast.clone(), composed.clone().inner());
        assert!(error < 1e-5, "{options:?} {height}x{width}: {error}");
        let sides = if pool {
            (height / 2, width / 2)
        } else {
            (height, width)
        };
        assert_eq!(fast.dims(), [2, sides.0, sides.1, 24]);

        // One image alone gives what it gives in the batch.
        let alone = ops::window_attention(qkv.narrow(0, 1, 1), padding, options);
        assert!(distance(alone, fast.narrow(0, 1, 1)) < 1e-6);

        // Padding takes part exactly where windows reach beyond the edge.
        let grads = composed.powi_scalar(2).sum().backward();
        assert!(a.grad(&grads).is_some());
        let padded = window.is_some_and(|w| height % w != 0 || width % w != 0);
        let moved = p
            .grad(&grads)
            .map_or(0.0, |g| values(g).iter().map(|x| x.abs()).sum::<f32>());
        assert_eq!(moved > 0.0, padded, "{options:?} {height}x{width}");
    }
}

#[test]
fn half_precision_windows() {
    let options = WindowAttention {
        heads: 2,
        window: Some(4),
        pool: true,
    };
    let (qkv, padding) = (random([1, 6, 10, 96]), random([96]));
    let full = ops::window_attention(qkv.clone(), padding.clone(), options);
    let dtype = burn::tensor::FloatDType::F16;
    let half = ops::window_attention(qkv.cast(dtype), padding.cast(dtype), options);
    assert!(distance(full, half.cast(burn::tensor::FloatDType::F32)) < 2e-2);
}

#[test]
fn a_window_of_one_pixel_returns_its_value() {
    let qkv = random([1, 3, 2, 12]);
    let options = WindowAttention {
        heads: 1,
        window: Some(1),
        pool: false,
    };
    let out = ops::window_attention(qkv.clone(), random([12]), options);
    assert!(distance(out, qkv.narrow(3, 8, 4)) < 1e-6);
}

#[test]
fn convolutions_equal_their_composition() {
    // (side, kernel, stride, padding, groups, channels in and out)
    for (side, kernel, stride, padding, groups, from, to) in [
        (16, 7, 4, 3, 1, 3, 8),
        (9, 3, 2, 1, 1, 4, 16),
        (8, 2, 2, 0, 1, 1, 4),
        (8, 4, 4, 0, 1, 1, 1),
        (5, 1, 1, 0, 1, 6, 3),
        (9, 7, 1, 3, 20, 20, 20),
        (3, 7, 1, 3, 5, 5, 5),
        (6, 3, 2, 1, 4, 4, 4),
        (6, 3, 1, 1, 2, 4, 6),
    ] {
        let shape = ConvShape {
            stride,
            padding,
            groups,
        };
        let x = random([2, side, side + 1, from]);
        let weight = random([to, from / groups, kernel, kernel]);
        let bias = random([to]);
        let fast = ops::conv2d(x.clone(), weight.clone(), bias.clone(), shape);
        let composed = ops::conv2d(
            differentiable(&x),
            differentiable(&weight),
            differentiable(&bias),
            shape,
        );
        let error = distance(fast, composed.inner());
        assert!(error < 2e-4, "{shape:?} kernel {kernel}: {error}");
    }
}

#[test]
fn transposed_convolution_by_hand() {
    let device = Device::flex();
    // One pixel per image column, two channels in, one out.
    let x = Tensor::<4>::from_data([[[[1.0, 2.0], [3.0, 4.0]]]], &device);
    let weight = Tensor::<4>::from_data(
        [[[[1.0, 2.0], [3.0, 4.0]]], [[[10.0, 20.0], [30.0, 40.0]]]],
        &device,
    );
    let bias = Tensor::<1>::from_data([0.5], &device);
    let y = ops::up_conv_2x2(x, weight, bias);
    assert_eq!(y.dims(), [1, 2, 4, 1]);
    // Pixel (1, 2): the kernel times 1 + 2·10; pixel (3, 4): times 3 + 4·10.
    let expected = [21.5, 42.5, 43.5, 86.5, 63.5, 84.5, 129.5, 172.5];
    assert_eq!(values(y), expected);
}

#[test]
fn pooling_takes_the_largest_and_drops_the_odd() {
    let x = random([2, 5, 6, 3]);
    let fast = ops::max_pool_2x2(x.clone());
    assert_eq!(fast.dims(), [2, 2, 3, 3]);
    let composed = ops::max_pool_2x2(differentiable(&x)).inner();
    assert_eq!(distance(fast.clone(), composed), 0.0);
    let x = values(x);
    let at = |y: usize, x_: usize, c: usize| x[(y * 6 + x_) * 3 + c];
    let expected = at(2, 4, 1)
        .max(at(2, 5, 1))
        .max(at(3, 4, 1))
        .max(at(3, 5, 1));
    assert_eq!(values(fast)[(3 + 2) * 3 + 1], expected);
}

#[test]
fn rotations_equal_their_composition() {
    let angles = random([6, 4]);
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    for (tokens, rotated) in [(6, 6), (12, 12), (15, 12), (5, 5), (4, 0)] {
        let x = random([2, tokens, 3, 8]);
        let fast = ops::rotate_pairs(x.clone(), cos.clone(), sin.clone(), rotated);
        let slow = ops::rotate_pairs(differentiable(&x), cos.clone(), sin.clone(), rotated);
        assert!(distance(fast.clone(), slow.inner()) < 1e-6);
        // A rotation keeps lengths, and tokens without a position stay as they are.
        assert!(
            distance(
                fast.clone().powi_scalar(2).sum_dim(3),
                x.clone().powi_scalar(2).sum_dim(3)
            ) < 1e-4
        );
        let rest = tokens - rotated;
        if rest > 0 {
            assert_eq!(
                distance(fast.narrow(1, rotated, rest), x.narrow(1, rotated, rest)),
                0.0
            );
        }
    }
}

#[test]
fn half_rotations_equal_their_composition() {
    for (batch, rows, heads, tokens, width) in [(1, 1, 3, 1, 64), (2, 1, 2, 7, 6), (3, 3, 1, 5, 8)]
    {
        let angles = random([rows, tokens, width / 2]);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        // As a projection gives them.
        let x = random([batch, tokens, heads, width]);
        let view = |x: Tensor<4>| x.swap_dims(1, 2);
        let composed = |x: Tensor<4>, device: &Device| {
            let whole = |table: &Tensor<3>| {
                let table = Tensor::cat(vec![table.clone(), table.clone()], 2);
                Tensor::<4>::from_data(table.unsqueeze_dim::<4>(1).into_data(), device)
            };
            let half = width / 2;
            let (a, b) = (
                x.clone().narrow(3, 0, half),
                x.clone().narrow(3, half, half),
            );
            x * whole(&cos) + Tensor::cat(vec![b.neg(), a], 3) * whole(&sin)
        };
        let fast = ops::rotate_halves(view(x.clone()), cos.clone(), sin.clone());
        let slow = composed(view(x.clone()), &Device::flex());
        assert_eq!(distance(fast.clone(), slow), 0.0);
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            let x = x.clone().cast(dtype);
            let half = ops::rotate_halves(view(x.clone()), cos.clone(), sin.clone());
            let wide = ops::rotate_halves(view(x.cast(FloatDType::F32)), cos.clone(), sin.clone());
            assert_eq!(distance(half, wide.cast(dtype)), 0.0);
        }

        let upstream = Tensor::from_data(random([batch, heads, tokens, width]).into_data(), &{
            Device::flex().autodiff()
        });
        let gradient = |turn: &dyn Fn(Tensor<4>) -> Tensor<4>| {
            let x = differentiable(&x);
            let grads = (turn(view(x.clone())) * upstream.clone()).sum().backward();
            x.grad(&grads).unwrap()
        };
        let fast = gradient(&|x| ops::rotate_halves(x, cos.clone(), sin.clone()));
        let slow = gradient(&|x| composed(x, &Device::flex().autodiff()));
        assert_eq!(distance(fast, slow), 0.0);
    }
}
