//! `tpo_core::ops::attention` against double precision, on every kernel and option.

mod ops_common;

use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData};
use ops_common::{assert_close, noise, random, tensor, values};
use tpo_core::ops::{AttentionOptions, attention};

/// Sizes and options of one call, with plain data.
#[derive(Clone, Default)]
struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    q_len: usize,
    k_len: usize,
    dim: usize,
    v_dim: usize,
    scale: Option<f64>,
    causal: bool,
    window: Option<usize>,
    offset: Option<usize>,
    padding: Option<Vec<bool>>,
    bias: Option<([usize; 4], Vec<f32>)>,
}

impl Case {
    fn new([batch, heads, kv_heads]: [usize; 3], [q_len, k_len]: [usize; 2], dim: usize) -> Self {
        Case {
            batch,
            heads,
            kv_heads,
            q_len,
            k_len,
            dim,
            v_dim: dim,
            ..Case::default()
        }
    }

    fn q_dims(&self) -> [usize; 4] {
        [self.batch, self.heads, self.q_len, self.dim]
    }
    fn k_dims(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.k_len, self.dim]
    }
    fn v_dims(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.k_len, self.v_dim]
    }
    fn out_dims(&self) -> [usize; 4] {
        [self.batch, self.heads, self.q_len, self.v_dim]
    }

    fn options(&self, device: &Device) -> AttentionOptions {
        AttentionOptions {
            scale: self.scale,
            causal: self.causal,
            sliding_window: self.window,
            key_padding: self.padding.clone().map(|hidden| {
                let data = TensorData::new(hidden, [self.batch, self.k_len]);
                Tensor::<2, Bool>::from_data(data, device)
            }),
            bias: self
                .bias
                .as_ref()
                .map(|(dims, values)| tensor(values, *dims, device)),
            query_offset: self.offset,
        }
    }

    /// Whether query `i` may see key `j`, restated from the definition.
    fn sees(&self, batch: usize, i: usize, j: usize) -> bool {
        let p = match self.offset {
            Some(offset) => (i + offset) as i64,
            None => i as i64 + self.k_len as i64 - self.q_len as i64,
        };
        let j_ = j as i64;
        let window = self
            .window
            .map_or(i64::MAX, |w| i64::try_from(w).unwrap_or(i64::MAX));
        let near = if self.causal {
            p - j_ < window
        } else {
            (p - j_).abs() < window
        };
        let hidden = self
            .padding
            .as_ref()
            .is_some_and(|hidden| hidden[batch * self.k_len + j]);
        (!self.causal || j_ <= p) && near && !hidden
    }

    fn reference(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let scale = self.scale.unwrap_or(1.0 / (self.dim as f64).sqrt());
        let group = self.heads / self.kv_heads;
        let mut out = Vec::new();
        for b in 0..self.batch {
            for h in 0..self.heads {
                let kv = b * self.kv_heads + h / group;
                for i in 0..self.q_len {
                    let q = &q[((b * self.heads + h) * self.q_len + i) * self.dim..][..self.dim];
                    let score = |j: usize| -> Option<f64> {
                        if !self.sees(b, i, j) {
                            return None;
                        }
                        let k = &k[(kv * self.k_len + j) * self.dim..][..self.dim];
                        let dot: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                        let bias = self.bias.as_ref().map_or(0.0, |(dims, values)| {
                            let at = [b, h, i, j]
                                .iter()
                                .zip(dims)
                                .fold(0, |at, (&x, &d)| at * d + if d == 1 { 0 } else { x });
                            f64::from(values[at])
                        });
                        Some(dot * scale + bias)
                    };
                    let scores: Vec<Option<f64>> = (0..self.k_len).map(score).collect();
                    let max = scores.iter().flatten().copied().fold(f64::MIN, f64::max);
                    let mut sum = 0.0;
                    let mut acc = vec![0.0; self.v_dim];
                    for (j, score) in scores.iter().enumerate() {
                        let Some(score) = score else { continue };
                        let w = (score - max).exp();
                        sum += w;
                        let v = &v[(kv * self.k_len + j) * self.v_dim..][..self.v_dim];
                        acc.iter_mut().zip(v).for_each(|(a, v)| *a += w * v);
                    }
                    out.extend(acc.iter().map(|a| if sum > 0.0 { a / sum } else { 0.0 }));
                }
            }
        }
        out
    }

    /// Checks values on a plain and on an autodiff device.
    #[track_caller]
    fn check(&self) {
        let device = Device::flex();
        let q = random(1, self.q_dims(), &device);
        let k = random(2, self.k_dims(), &device);
        let v = random(3, self.v_dims(), &device);
        let expected = self.reference(&values(&q), &values(&k), &values(&v));
        let out = attention(q.clone(), k.clone(), v.clone(), self.options(&device));
        assert_eq!(out.dims(), self.out_dims());
        assert_close(&values(&out), &expected, 2e-6);

        let ad = device.clone().autodiff();
        let [q, k, v] = [q, k, v].map(Tensor::from_inner);
        let out = attention(q, k, v, self.options(&ad));
        assert_close(&values(&out), &expected, 1e-5);
    }
}

#[test]
fn head_widths_and_odd_lengths() {
    for dim in [1, 4, 8, 17, 64, 80, 88, 128] {
        for lens in [[1, 1], [1, 300], [7, 5], [37, 101], [131, 519]] {
            Case::new([2, 3, 3], lens, dim).check();
        }
    }
    let case = Case::new([1, 2, 1], [50, 70], 24);
    Case {
        v_dim: 40,
        ..case.clone()
    }
    .check();
    Case { v_dim: 5, ..case }.check();
}

#[test]
fn grouped_heads() {
    for (heads, kv_heads) in [(4, 1), (6, 2), (8, 8), (14, 2)] {
        for lens in [[1, 77], [2, 1030], [29, 29], [100, 333]] {
            let case = Case::new([2, heads, kv_heads], lens, 16);
            case.check();
            Case {
                causal: true,
                ..case
            }
            .check();
        }
    }
}

#[test]
fn causal_with_cache_and_offset() {
    for lens in [
        [1, 1],
        [1, 600],
        [5, 40],
        [64, 64],
        [70, 300],
        [300, 300],
        [9, 4],
    ] {
        let case = Case {
            causal: true,
            ..Case::new([1, 2, 2], lens, 32)
        };
        case.check();
        for offset in [0, 3, 1000] {
            Case {
                offset: Some(offset),
                ..case.clone()
            }
            .check();
        }
    }
}

#[test]
fn sliding_windows() {
    for lens in [[1, 50], [1, 1500], [40, 40], [33, 700], [600, 600]] {
        for window in [1, 2, 17, 64, 10_000, usize::MAX] {
            let case = Case {
                window: Some(window),
                ..Case::new([1, 2, 1], lens, 8)
            };
            case.check();
            Case {
                causal: true,
                ..case
            }
            .check();
        }
    }
    // No window at all: every row is hidden.
    let case = Case {
        window: Some(0),
        ..Case::new([1, 1, 1], [20, 20], 8)
    };
    case.check();
}

#[test]
fn padding_and_fully_masked_rows() {
    for lens in [[1, 30], [3, 900], [45, 45], [130, 300]] {
        let mut case = Case::new([3, 4, 2], lens, 20);
        let k_len = case.k_len;
        // Item 0 right-padded, item 1 left-padded, item 2 hidden throughout.
        let hidden = |item: usize, key: usize| match item {
            0 => key >= k_len - k_len / 3,
            1 => key < k_len / 2,
            _ => true,
        };
        case.padding = Some(
            (0..3 * k_len)
                .map(|i| hidden(i / k_len, i % k_len))
                .collect(),
        );
        case.check();
        // Causal and left-padded: the first queries of item 1 see nothing either.
        case.causal = true;
        case.check();

        let device = Device::flex();
        let out = attention(
            random(1, case.q_dims(), &device),
            random(2, case.k_dims(), &device),
            random(3, case.v_dims(), &device),
            case.options(&device),
        );
        let last = values(&out.narrow(0, 2, 1));
        assert!(last.iter().all(|&x| x == 0.0), "hidden rows must be zero");
    }
}

#[test]
fn bias_broadcasts_and_scale() {
    for lens in [[1, 33], [50, 280]] {
        let [q, k] = lens;
        for dims in [
            [2, 4, q, k],
            [1, 4, q, k],
            [2, 1, 1, k],
            [1, 1, q, 1],
            [1, 4, 1, k],
        ] {
            let case = Case {
                bias: Some((dims, noise(9, dims.iter().product()))),
                scale: Some(0.37),
                ..Case::new([2, 4, 2], lens, 12)
            };
            case.check();
            Case {
                causal: true,
                ..case
            }
            .check();
        }
    }
}

#[test]
fn strided_views_and_large_scores() {
    let device = Device::flex();
    let case = Case::new([2, 3, 3], [45, 45], 20);
    // As a fused projection gives them: [batch, len, 3, heads, dim].
    let qkv = random(4, [2, 45, 3, 3 * 20], &device) * 8.0;
    let part = |i: usize| {
        qkv.clone()
            .narrow(2, i, 1)
            .reshape([2, 45, 3, 20])
            .swap_dims(1, 2)
    };
    let [q, k, v] = [0, 1, 2].map(part);
    let expected = case.reference(&values(&q), &values(&k), &values(&v));
    let out = attention(q.clone(), k.clone(), v.clone(), AttentionOptions::default());
    assert_close(&values(&out), &expected, 1e-5);
    // Merging the heads afterwards.
    let merged = out.swap_dims(1, 2).reshape([2, 45, 60]);
    let back = merged.reshape([2, 45, 3, 20]).swap_dims(1, 2);
    assert_close(&values(&back), &expected, 1e-5);
    // Keys stored transposed, values narrowed.
    let k_t = k.clone().swap_dims(2, 3).contiguous_copy().swap_dims(2, 3);
    let wide = Tensor::cat(vec![v.clone(), v.clone()], 3).narrow(3, 0, 20);
    let out = attention(q, k_t, wide, AttentionOptions::default());
    assert_close(&values(&out), &expected, 1e-5);
}

trait ContiguousCopy {
    fn contiguous_copy(self) -> Self;
}

impl ContiguousCopy for Tensor<4> {
    /// A new storage in this order.
    fn contiguous_copy(self) -> Self {
        let device = self.device();
        Tensor::from_data(self.into_data(), &device)
    }
}

#[test]
fn half_precision() {
    let device = Device::flex();
    for lens in [[1, 400], [90, 130]] {
        let case = Case {
            causal: true,
            ..Case::new([1, 4, 2], lens, 64)
        };
        for (dtype, limit) in [(FloatDType::F16, 6e-4), (FloatDType::BF16, 5e-3)] {
            let q = random::<4>(1, case.q_dims(), &device).cast(dtype);
            let k = random::<4>(2, case.k_dims(), &device).cast(dtype);
            let v = random::<4>(3, case.v_dims(), &device).cast(dtype);
            let expected = case.reference(&values(&q), &values(&k), &values(&v));
            let out = attention(q.clone(), k, v, case.options(&device));
            assert_eq!(out.dtype(), q.dtype());
            assert_close(&values(&out), &expected, limit);
        }
    }
}

/// Part of a larger cache, in half precision, gives to the bit what the same numbers in `f32` give.
#[test]
fn half_precision_keys_of_a_cache() {
    let device = Device::flex();
    for [q_len, k_len] in [[1, 31], [1, 400], [2, 131], [90, 130]] {
        let case = Case {
            causal: true,
            ..Case::new([2, 6, 2], [q_len, k_len], 24)
        };
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            let part = |seed| {
                let whole = random::<4>(seed, [2, 2, 500, 24], &device).cast(dtype);
                whole.narrow(2, 7, k_len)
            };
            let q = random::<4>(1, case.q_dims(), &device).cast(dtype);
            let (k, v) = (part(2), part(3));
            let half = attention(q.clone(), k.clone(), v.clone(), case.options(&device));
            let [q, k, v] = [q, k, v].map(|t| t.cast(FloatDType::F32));
            let wide = attention(q, k, v, case.options(&device)).cast(dtype);
            assert_eq!(values(&half), values(&wide));
        }
    }
}

#[test]
fn empty_lengths() {
    let device = Device::flex();
    let zeros = |dims: [usize; 4]| Tensor::<4>::zeros(dims, &device);
    let out = attention(
        zeros([1, 2, 3, 4]),
        zeros([1, 2, 0, 4]),
        zeros([1, 2, 0, 4]),
        AttentionOptions::default(),
    );
    assert_eq!(values(&out), vec![0.0; 24]);
}

/// Gradients of `Σ upstream · attention` with respect to q, k, v by central differences of the
/// double-precision reference.
fn check_gradients(case: &Case) {
    let device = Device::flex().autodiff();
    let inputs = [
        noise(1, case.q_dims().iter().product()),
        noise(2, case.k_dims().iter().product()),
        noise(3, case.v_dims().iter().product()),
    ];
    let upstream = noise(4, case.out_dims().iter().product());
    let q = tensor(&inputs[0], case.q_dims(), &device).require_grad();
    let k = tensor(&inputs[1], case.k_dims(), &device).require_grad();
    let v = tensor(&inputs[2], case.v_dims(), &device).require_grad();
    let out = attention(q.clone(), k.clone(), v.clone(), case.options(&device));
    let loss = (out * tensor(&upstream, case.out_dims(), &device)).sum();
    let grads = loss.backward();
    let actual = [&q, &k, &v].map(|t| values(&t.grad(&grads).unwrap()));

    let wide = inputs.map(|input| input.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let loss64 = |qkv: &[Vec<f64>; 3]| -> f64 {
        let out = case.reference(&qkv[0], &qkv[1], &qkv[2]);
        out.iter()
            .zip(&upstream)
            .map(|(y, &u)| y * f64::from(u))
            .sum()
    };
    for which in 0..3 {
        let expected: Vec<f64> = (0..wide[which].len())
            .map(|i| {
                let h = 1e-5;
                let (mut hi, mut lo) = (wide.clone(), wide.clone());
                hi[which][i] += h;
                lo[which][i] -= h;
                (loss64(&hi) - loss64(&lo)) / (2.0 * h)
            })
            .collect();
        assert_close(&actual[which], &expected, 1e-5);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let plain = Case::new([2, 4, 2], [5, 7], 6);
    check_gradients(&plain);
    check_gradients(&Case {
        v_dim: 3,
        scale: Some(0.8),
        ..plain.clone()
    });
    check_gradients(&Case {
        causal: true,
        ..plain.clone()
    });
    check_gradients(&Case {
        window: Some(3),
        ..plain.clone()
    });
    // Item 1 is hidden throughout: its gradients are zero, not NaN.
    let padding: Vec<bool> = (0..14).map(|i| i >= 7 || i == 2).collect();
    check_gradients(&Case {
        padding: Some(padding.clone()),
        ..plain.clone()
    });
    // A bias on the autodiff device takes the composed path.
    let bias = ([1, 4, 5, 7], noise(9, 140));
    let biased = Case {
        bias: Some(bias),
        ..plain
    };
    check_gradients(&biased);
    check_gradients(&Case {
        causal: true,
        window: Some(3),
        padding: Some(padding),
        ..biased.clone()
    });
    check_gradients(&Case {
        window: Some(2),
        ..biased
    });
}

#[test]
fn long_gradients_match_the_composed_operations() {
    let device = Device::flex().autodiff();
    // More rows than one block of the backward pass.
    let case = Case {
        causal: true,
        ..Case::new([1, 6, 2], [130, 150], 16)
    };
    let make = || {
        [
            random::<4>(1, case.q_dims(), &device).require_grad(),
            random::<4>(2, case.k_dims(), &device).require_grad(),
            random::<4>(3, case.v_dims(), &device).require_grad(),
        ]
    };
    let upstream = random::<4>(4, case.out_dims(), &device);
    let run = |options: AttentionOptions| {
        let qkv = make();
        let out = attention(qkv[0].clone(), qkv[1].clone(), qkv[2].clone(), options);
        let grads = (out * upstream.clone()).sum().backward();
        qkv.map(|t| values(&t.grad(&grads).unwrap()))
    };
    let ours = run(case.options(&device));
    // A zero bias on the autodiff device selects the composed path.
    let composed = run(AttentionOptions {
        bias: Some(Tensor::zeros([1, 1, 1, 1], &device)),
        ..case.options(&device)
    });
    for (ours, composed) in ours.iter().zip(&composed) {
        assert_close(ours, composed, 1e-5);
    }

    // Frozen keys and values: only the query gets a gradient.
    let [q, k, v] = make();
    let out = attention(
        q.clone(),
        k.clone().detach(),
        v.detach(),
        case.options(&device),
    );
    let grads = (out * upstream.clone()).sum().backward();
    assert_close(&values(&q.grad(&grads).unwrap()), &ours[0], 1e-6);
    assert!(k.grad(&grads).is_none());
}
