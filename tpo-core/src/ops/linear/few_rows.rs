//! Few rows and a weight whose lines are inputs: the weight is streamed from memory once, in its own
//! dtype and order, and widened in registers.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Weight;
use super::decode::{Decode, place};
use super::tile::{pad_units, split_lines};
use crate::ops::simd::Cpu;

/// Lines of the weight taken at once.
const LINES: usize = 4;

/// `[rows, d_out]` products of `x` `[rows, d_in]`. The weight's sizes along its lines and `stride`
/// count elements; its data are units of `2 / U` elements.
pub(super) fn apply<D: Decode<U>, const U: usize>(
    x: &[f32],
    rows: usize,
    weight: &Weight<u32>,
    bias: Option<&[f32]>,
    cpu: impl Cpu,
) -> Vec<f32> {
    let (lanes, _) = cpu.vector_shape();
    let d_out = weight.d_out;
    // A stretch of every line.
    let width = d_out
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(64)
        .max(1024);
    let parts: Vec<Vec<f32>> = (0..d_out.div_ceil(width))
        .into_par_iter()
        .map(|task| {
            let first = task * width;
            cpu.run(ByInput::<D, U> {
                x,
                rows,
                weight,
                first,
                count: width.min(d_out - first),
                decode: std::marker::PhantomData,
            })
        })
        .collect();

    let mut result = vec![0.0f32; rows * d_out];
    for (row, line) in result.chunks_exact_mut(d_out).enumerate() {
        for (line, part) in line.chunks_mut(width).zip(&parts) {
            let values = &part[row * part.len() / rows..];
            for (at, y) in line.iter_mut().enumerate() {
                *y = values[place(at, lanes, U == 1)];
            }
        }
        if let Some(bias) = bias {
            line.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    result
}

/// Scaled sums: lines of the weight are inputs.
struct ByInput<'a, D, const U: usize> {
    x: &'a [f32],
    rows: usize,
    weight: &'a Weight<'a, u32>,
    first: usize,
    count: usize,
    decode: std::marker::PhantomData<D>,
}

impl<D: Decode<U>, const U: usize> WithSimd for ByInput<'_, D, U> {
    /// `[rows][outputs]`, outputs in block order and padded to whole blocks.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Vec<f32> {
        let d_in = self.weight.d_in;
        let padded = self.count.next_multiple_of(2 * S::F32_LANES);
        let mut result = vec![0.0; self.rows * padded];
        let units = self.first * U / 2..(self.first + self.count) * U / 2;
        for input in (0..d_in).step_by(LINES) {
            let count = LINES.min(d_in - input);
            let lines: [&[u32]; LINES] =
                std::array::from_fn(|i| self.weight.line(input + i.min(count - 1), units.clone()));
            for (row, out) in result.chunks_exact_mut(padded).enumerate() {
                let mut factors = [0.0; LINES];
                factors[..count].copy_from_slice(&self.x[row * d_in + input..][..count]);
                scaled_sum::<S, D, U>(s, factors, lines, out);
            }
        }
        result
    }
}

/// `acc += Σ factors[i] · lines[i]`.
#[inline(always)]
fn scaled_sum<S: Simd, D: Decode<U>, const U: usize>(
    s: S,
    factors: [f32; LINES],
    lines: [&[u32]; LINES],
    acc: &mut [f32],
) {
    let mut scale = [s.splat_f32s(0.0); LINES];
    for (scale, factor) in scale.iter_mut().zip(factors) {
        *scale = s.splat_f32s(factor);
    }
    let (body, tail) = split_lines::<S, U, LINES>(lines);
    let (acc, _) = S::as_mut_simd_f32s(acc).0.as_chunks_mut::<2>();
    let (acc, rest) = acc.split_at_mut(body[0].len());
    for (at, acc) in acc.iter_mut().enumerate() {
        let [mut a0, mut a1] = *acc;
        for i in 0..LINES {
            let [w0, w1] = D::block(s, body[i][at]);
            a0 = s.mul_add_e_f32s(scale[i], w0, a0);
            a1 = s.mul_add_e_f32s(scale[i], w1, a1);
        }
        *acc = [a0, a1];
    }
    if let Some([a0, a1]) = rest.first_mut() {
        for i in 0..LINES {
            let [w0, w1] = D::block(s, pad_units::<S, U>(tail[i]));
            *a0 = s.mul_add_e_f32s(scale[i], w0, *a0);
            *a1 = s.mul_add_e_f32s(scale[i], w1, *a1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Bf16, F16, F32};
    use super::*;
    use burn::tensor::{bf16, f16};
    use pulp::bytemuck;

    fn check(cpu: impl Cpu) {
        for (d_in, d_out, rows) in [(70, 46, 1), (64, 64, 3), (130, 1026, 7)] {
            let number = |i: usize| ((i * 7919) % 257) as f32 / 64.0 - 2.0;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let wide: Vec<f32> = (0..d_in * d_out).map(|i| number(i + 13)).collect();
            // These numbers are exact in every dtype.
            let narrow: Vec<bf16> = wide.iter().map(|&w| bf16::from_f32(w)).collect();
            let half: Vec<f16> = narrow.iter().map(|w| f16::from_f32(w.to_f32())).collect();
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let weight = |data, per_unit| Weight {
                data,
                d_in,
                d_out,
                stride: d_out / per_unit,
                by_output: false,
            };
            let results = [
                apply::<F32, 2>(&x, rows, &weight(bytemuck::cast_slice(&wide), 1), None, cpu),
                apply::<Bf16, 1>(
                    &x,
                    rows,
                    &weight(bytemuck::cast_slice(&narrow), 2),
                    None,
                    cpu,
                ),
                apply::<F16, 1>(&x, rows, &weight(bytemuck::cast_slice(&half), 2), None, cpu),
            ];
            for result in results {
                for (n, y) in result.iter().enumerate() {
                    let (row, o) = (n / d_out, n % d_out);
                    let dot: f64 = (0..d_in)
                        .map(|i| f64::from(x[row * d_in + i]) * f64::from(wide[i * d_out + o]))
                        .sum();
                    assert!((f64::from(*y) - dot).abs() < 1e-3, "{y} vs {dot}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set() {
        crate::ops::simd::every_instruction_set!(check);
    }
}
