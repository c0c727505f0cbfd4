use super::*;
use burn::tensor::quantization::ScaleDtype;
use burn::tensor::{Device, TensorData, Tolerance};

use super::super::composed;
use crate::ops::simd::Cpu;

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (((i + seed) * 7919) % 1021) as f32 / 256.0 - 2.0)
        .collect()
}

fn weight(format: QuantFormat, d_out: usize, d_in: usize, device: &Device) -> Tensor<2, Int> {
    let packed = format.quantize(&numbers(d_out * d_in, 5), d_in).unwrap();
    let words = format.words(d_in).unwrap();
    Tensor::from_data(
        TensorData::new(packed, [d_out, words]),
        (device, DType::U32),
    )
}

fn wide(packed: &Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Vec<f32> {
    let wide = dequantize(packed.clone(), format, d_in);
    wide.into_data().try_to_vec().unwrap()
}

#[test]
fn elements_stay_within_half_a_step() {
    let device = Device::default();
    for format in FORMATS {
        let values = numbers(64 * 96, 5);
        let back = wide(&weight(format, 64, 96, &device), format, 96);
        for (block, back) in values.chunks(GROUP).zip(back.chunks(GROUP)) {
            let peak = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            // Half a step, and the rounding of the scale. The side of the peak has one step
            // more than the other in Q4_0: its far end is a whole step away.
            let limit = match format {
                QuantFormat::Q8_0 => peak / 254.0 + peak * 5e-4,
                QuantFormat::Q4_0 => peak / 8.0 + peak * 5e-4,
            };
            for (v, b) in block.iter().zip(back) {
                assert!((v - b).abs() <= limit, "{format:?}: {v} became {b}");
            }
        }
    }
}

/// Unpacked elements are those of Burn's quantised tensors, to the bit.
fn unpacks(cpu: impl Cpu) {
    let device = Device::default();
    for format in FORMATS {
        // Less than 16 blocks, and more but no multiple of 16.
        for d_in in [96, 576] {
            let packed = weight(format, 3, d_in, &device);
            let wide = wide(&packed, format, d_in);
            let weight = Quantized::new(&packed, format, d_in).unwrap();
            for inputs in [0..d_in, 32..96] {
                let mut unpacked = vec![0.0; 2 * inputs.len()];
                cpu.run(UnpackLines {
                    weight: &weight,
                    lines: 1,
                    inputs: inputs.clone(),
                    block: &mut unpacked,
                });
                for (at, line) in unpacked.chunks_exact(inputs.len()).enumerate() {
                    let mut elements = vec![0.0; inputs.len()];
                    weight.restore(line, &mut elements);
                    assert_eq!(elements, &wide[(1 + at) * d_in..][inputs.clone()]);
                }
            }
        }
    }
}

fn products(x: &[f32], weight: &Quantized, bias: Option<&[f32]>, cpu: impl Cpu) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / weight.d_in * weight.d_out];
    products::apply(x, weight, bias, &mut out, cpu);
    out
}

/// Rows whose elements have more bits than they are rounded to, in blocks of very different size.
fn rows(count: usize) -> Vec<f32> {
    let x = numbers(count, 77).into_iter().enumerate();
    x.map(|(i, x)| match i / GROUP % 5 {
        0 => 0.0,
        1 => x * 1.234_567e30,
        2 => x * 1.234_567e-30,
        _ => x * 1.234_567,
    })
    .collect()
}

fn peak(block: &[f32]) -> f64 {
    f64::from(block.iter().fold(0.0f32, |peak, x| peak.max(x.abs())))
}

/// Every product against the sum with the dequantised weight, within what rounding to 16 bits and
/// sums in `f32` can change.
fn check(cpu: impl Cpu) {
    let device = Device::default();
    for format in FORMATS {
        for (d_in, d_out, count) in [(32, 3, 1), (96, 46, 2), (576, 70, 7), (4096, 9, 3)] {
            let packed = weight(format, d_out, d_in, &device);
            let wide = wide(&packed, format, d_in);
            let weight = Quantized::new(&packed, format, d_in).unwrap();
            let bias = numbers(d_out, 9);
            for x in [rows(count * d_in), numbers(count * d_in, 77)] {
                let result = products(&x, &weight, Some(&bias), cpu);
                let alone = x.chunks_exact(d_in);
                let alone = alone.flat_map(|row| products(row, &weight, Some(&bias), cpu));
                assert!(
                    result.iter().copied().eq(alone),
                    "rows depend on each other"
                );
                for (n, y) in result.iter().enumerate() {
                    let (x, w) = (&x[n / d_out * d_in..], &wide[n % d_out * d_in..]);
                    let blocks = x[..d_in].chunks(GROUP).zip(w[..d_in].chunks(GROUP));
                    let mut sum = f64::from(bias[n % d_out]);
                    let mut bound = 4e-6 * sum.abs();
                    for (x, w) in blocks {
                        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        sum += terms.sum::<f64>();
                        let weights: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                        // A scalar machine has one sum.
                        let inputs: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
                        bound += peak(x) * weights / 32768.0 + 4e-6 * inputs * peak(w);
                    }
                    let error = (f64::from(*y) - sum).abs();
                    assert!(error <= bound, "{format:?}: {y} vs {sum}, {bound}");
                }
            }
        }
    }
}

/// What is not finite reaches every output of its row, and no other row; zeros give the bias.
fn not_finite(cpu: impl Cpu) {
    let device = Device::default();
    let (d_in, d_out) = (96, 7);
    for format in FORMATS {
        let packed = weight(format, d_out, d_in, &device);
        let weight = Quantized::new(&packed, format, d_in).unwrap();
        let bias = numbers(d_out, 9);
        let mut x = numbers(4 * d_in, 3);
        let third = products(&x[2 * d_in..3 * d_in], &weight, Some(&bias), cpu);
        x[5] = f32::NAN;
        x[d_in + 40] = f32::NEG_INFINITY;
        x[3 * d_in..].fill(-0.0);
        let y = products(&x, &weight, Some(&bias), cpu);
        assert!(
            y[..2 * d_out].iter().all(|y| !y.is_finite()),
            "{format:?}: {y:?}"
        );
        assert_eq!(y[2 * d_out..3 * d_out], third);
        assert_eq!(y[3 * d_out..], bias);
    }
}

/// A block is its integers times a power of two.
struct RoundBlock([f32; GROUP]);

impl WithSimd for RoundBlock {
    type Output = ([f32; GROUP], f32);

    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let mut rounded = [0; GROUP];
        let scale = integers::round(s, &self.0, &mut rounded);
        (rounded.map(|x| f32::from(x) * scale), scale)
    }
}

fn rounds(cpu: impl Cpu) {
    let block = |size: f32| {
        let x: Vec<f32> = numbers(GROUP, 3).into_iter().map(|x| x * size).collect();
        <[f32; GROUP]>::try_from(x).unwrap()
    };
    // Few bits are kept: with a power of two, and where the largest magnitude just fits.
    for size in [1.0, 2f32.powi(125), 2f32.powi(-111)] {
        assert_eq!(cpu.run(RoundBlock(block(size))).0, block(size));
    }
    let mut largest = [1.0; GROUP];
    (largest[3], largest[4]) = (1.999_99, -1.999_99);
    for x in [largest, block(1.234_567), block(1.3e38), block(1.3e-33)] {
        let (y, scale) = cpu.run(RoundBlock(x));
        assert_eq!(scale.to_bits() << 9, 0, "{scale} is no power of two");
        for (x_, y) in x.iter().zip(y) {
            let error = (f64::from(*x_) - f64::from(y)).abs();
            assert!(error <= peak(&x) / 32768.0, "{x_} became {y}");
        }
    }
    // Smaller ones lose less than the smallest normal number.
    for (x, y) in block(1e-40).iter().zip(cpu.run(RoundBlock(block(1e-40))).0) {
        assert!((x - y).abs() < f32::MIN_POSITIVE, "{x:e} became {y:e}");
    }
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = block(1.0);
        x[GROUP - 1] = odd;
        assert!(cpu.run(RoundBlock(x)).1.is_nan(), "{odd}");
    }
}

#[test]
fn every_instruction_set() {
    fn all(cpu: impl Cpu) {
        unpacks(cpu);
        rounds(cpu);
        check(cpu);
        not_finite(cpu);
    }
    crate::ops::simd::every_instruction_set!(all);
}

/// Few rows, many rows and gradients equal the dequantised weight's.
#[test]
fn equals_the_dequantised_weight() {
    let device = Device::default().autodiff();
    for format in FORMATS {
        // The last is cut into two blocks of inputs for the gradient.
        for (rows, d_in, d_out) in [(1, 96, 70), (7, 96, 70), (150, 96, 70), (2, 96, 16_400)] {
            let packed = weight(format, d_out, d_in, &device);
            let x = TensorData::new(numbers(2 * rows * d_in, 3), [2, rows, d_in]);
            let bias = TensorData::new(numbers(d_out, 9), [d_out]);
            let run = |product: &dyn Fn(Tensor<3>, Option<Tensor<1>>) -> Tensor<3>| {
                let x = Tensor::<3>::from_data(x.clone(), &device).require_grad();
                let bias = Tensor::<1>::from_data(bias.clone(), &device).require_grad();
                let y = product(x.clone(), Some(bias.clone()));
                let grads = (y.clone() * y.clone()).mean().backward();
                let grad_x = x.grad(&grads).unwrap();
                let grad_bias = bias.grad(&grads).unwrap();
                [y.into_data(), grad_x.into_data(), grad_bias.into_data()]
            };
            let ours = run(&|x, bias| quantized_linear(x, packed.clone(), format, bias));
            let blocks = to_blocks(&packed, format, d_in);
            let of_blocks = run(&|x, bias| blocks_linear(x, &blocks, bias));
            let wide = dequantize(packed.clone(), format, d_in).transpose();
            let composed = run(&|x, bias| composed(x, wide.clone(), bias));
            for (result, composed) in ours.iter().chain(&of_blocks).zip(composed.iter().cycle()) {
                result.assert_approx_eq::<f32>(composed, Tolerance::rel_abs(1e-4, 1e-5));
            }
        }
    }
}

/// Whether they are few, or more than are multiplied at a time.
#[test]
fn rows_are_those_of_calls_of_their_own() {
    let device = Device::default();
    let (d_in, d_out) = (96, 5);
    for format in FORMATS {
        let packed = weight(format, d_out, d_in, &device);
        for rows in [2, 5, ROWS / d_in + 3] {
            let x = TensorData::new(numbers(rows * d_in, 3), [rows, d_in]);
            let x = Tensor::<2>::from_data(x, &device);
            let y = quantized_linear(x.clone(), packed.clone(), format, None);
            for row in [0, rows - 1] {
                let x = x.clone().slice_dim(0, row..row + 1);
                let alone = quantized_linear(x, packed.clone(), format, None);
                let beside = y.clone().slice_dim(0, row..row + 1);
                assert_eq!(alone.into_data(), beside.into_data(), "{format:?}, {rows}");
            }
        }
    }
}

/// Every element with scales of either sign, by the definition, and back to the words.
#[test]
fn burn_has_the_same_blocks() {
    // Odd numbers of blocks in a line and in all.
    let (d_in, d_out) = (96, 43);
    let scale = |block: usize| f16::from_f32((block as f32 - 60.0) / 64.0);
    for format in FORMATS {
        let (words, per_unit) = (format.words(d_in).unwrap(), format.per_unit());
        let bits = 32 / per_unit;
        let field = |i: usize| (i * 7) as u32 & ((1 << bits) - 1);
        let mut lines = vec![0u32; d_out * words];
        for (n, line) in lines.chunks_exact_mut(words).enumerate() {
            let (units, scales) = line.split_at_mut(d_in / per_unit);
            for i in 0..d_in {
                units[i / per_unit] |= field(n * d_in + i) << (i % per_unit * bits);
            }
            let scales: &mut [u16] = bytemuck::cast_slice_mut(scales);
            for (group, to) in scales[..d_in / GROUP].iter_mut().enumerate() {
                *to = scale(n * d_in / GROUP + group).to_bits();
            }
        }
        let expected = (0..d_out * d_in).map(|i| {
            let q = match format {
                QuantFormat::Q8_0 => f32::from(field(i) as u8 as i8),
                QuantFormat::Q4_0 => field(i) as f32 - 8.0,
            };
            scale(i / GROUP).to_f32() * q
        });
        let packed = TensorData::new(lines.clone(), [d_out, words]);
        let packed = Tensor::from_data(packed, (&Device::default(), DType::U32));
        assert!(wide(&packed, format, d_in).into_iter().eq(expected));
        for scale in [ScaleDtype::F16, ScaleDtype::F32] {
            let blocks = device::pack_blocks(&lines, words, format, d_in, scale);
            let back = device::unpack_blocks(&blocks, format, [d_out, d_in], scale);
            assert_eq!(back, lines, "{format:?} {scale:?}");
        }
    }
}
