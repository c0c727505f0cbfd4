//! Few rows (decoding): the weight is streamed from memory once, in its own dtype and order, and
//! widened in registers.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Weight;
use super::decode::{Decode, arrange, place};
use crate::ops::simd::Cpu;

/// Lines of the weight per register tile.
const LINES: usize = 4;
/// Rows per register tile.
const ROWS: usize = 4;
/// Weight units per task.
const TASK: usize = 1 << 18;
/// Units of the largest block (two vectors of 16 lanes).
const MAX_BLOCK: usize = 32;

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
    let paired = U == 1;
    let (d_in, d_out) = (weight.d_in, weight.d_out);
    // Outputs per task: by output whole lines, by input a stretch of every line.
    let width = if weight.by_output {
        (TASK / d_in).next_multiple_of(LINES).max(LINES)
    } else {
        d_out
            .div_ceil(4 * rayon::current_num_threads())
            .next_multiple_of(64)
            .max(1024)
    };
    let tasks = d_out.div_ceil(width);
    let arranged: Vec<Vec<f32>> = if weight.by_output {
        let arranged = |row: &[f32]| arrange(row, lanes, paired);
        x.chunks_exact(d_in).map(arranged).collect()
    } else {
        Vec::new()
    };
    let parts: Vec<Vec<f32>> = (0..tasks)
        .into_par_iter()
        .map(|task| {
            let first = task * width;
            let count = width.min(d_out - first);
            if weight.by_output {
                cpu.run(ByOutput::<D, U> {
                    x: &arranged,
                    weight,
                    first,
                    count,
                    decode: std::marker::PhantomData,
                })
            } else {
                cpu.run(ByInput::<D, U> {
                    x,
                    rows,
                    weight,
                    first,
                    count,
                    decode: std::marker::PhantomData,
                })
            }
        })
        .collect();

    let mut result = vec![0.0f32; rows * d_out];
    for (row, line) in result.chunks_exact_mut(d_out).enumerate() {
        for (line, part) in line.chunks_mut(width).zip(&parts) {
            if weight.by_output {
                for (y, values) in line.iter_mut().zip(part.chunks_exact(rows)) {
                    *y = values[row];
                }
            } else {
                let values = &part[row * part.len() / rows..];
                for (at, y) in line.iter_mut().enumerate() {
                    *y = values[place(at, lanes, paired)];
                }
            }
        }
        if let Some(bias) = bias {
            line.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    result
}

/// Dot products: lines of the weight are outputs.
struct ByOutput<'a, D, const U: usize> {
    /// Rows in block order.
    x: &'a [Vec<f32>],
    weight: &'a Weight<'a, u32>,
    first: usize,
    count: usize,
    decode: std::marker::PhantomData<D>,
}

impl<D: Decode<U>, const U: usize> WithSimd for ByOutput<'_, D, U> {
    /// `[outputs][rows]`.
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Vec<f32> {
        let rows = self.x.len();
        let mut result = vec![0.0; self.count * rows];
        let units = self.weight.d_in * U / 2;
        for (at, out) in result.chunks_mut(LINES * rows).enumerate() {
            let first = self.first + at * LINES;
            let count = out.len() / rows;
            // A short last tile repeats its last line.
            let lines: [&[u32]; LINES] =
                std::array::from_fn(|i| self.weight.line(first + i.min(count - 1), 0..units));
            let mut row = 0;
            while row < rows {
                let n = ROWS.min(rows - row);
                let x = &self.x[row..];
                match n {
                    1 => dots::<S, D, U, 1>(s, x, lines, row, rows, out),
                    2 => dots::<S, D, U, 2>(s, x, lines, row, rows, out),
                    3 => dots::<S, D, U, 3>(s, x, lines, row, rows, out),
                    _ => dots::<S, D, U, 4>(s, x, lines, row, rows, out),
                }
                row += n;
            }
        }
        result
    }
}

/// Writes the products of `R` rows with [`LINES`] lines to `out` `[lines][rows]`.
#[inline(always)]
fn dots<S: Simd, D: Decode<U>, const U: usize, const R: usize>(
    s: S,
    x: &[Vec<f32>],
    lines: [&[u32]; LINES],
    row: usize,
    rows: usize,
    out: &mut [f32],
) {
    let split = lines.map(|line| split_line::<S, U>(line));
    let blocks = split[0].0.len();
    let body: [&[[S::u32s; U]]; LINES] = split.map(|(body, _)| &body[..blocks]);
    let x: [&[[S::f32s; 2]]; R] =
        std::array::from_fn(|r| S::as_simd_f32s(&x[r]).0.as_chunks::<2>().0);
    let x_body: [&[[S::f32s; 2]]; R] = x.map(|x| &x[..blocks]);
    let mut acc = [[s.splat_f32s(0.0); R]; LINES];
    for at in 0..blocks {
        for i in 0..LINES {
            let [w0, w1] = D::block(s, body[i][at]);
            for r in 0..R {
                let [x0, x1] = x_body[r][at];
                acc[i][r] = s.mul_add_e_f32s(w0, x0, acc[i][r]);
                acc[i][r] = s.mul_add_e_f32s(w1, x1, acc[i][r]);
            }
        }
    }
    if !split[0].1.is_empty() {
        for i in 0..LINES {
            let [w0, w1] = D::block(s, pad_units::<S, U>(split[i].1));
            for r in 0..R {
                let [x0, x1] = x[r][blocks];
                acc[i][r] = s.mul_add_e_f32s(w0, x0, acc[i][r]);
                acc[i][r] = s.mul_add_e_f32s(w1, x1, acc[i][r]);
            }
        }
    }
    for (out, acc) in out.chunks_exact_mut(rows).zip(acc) {
        for (y, acc) in out[row..].iter_mut().zip(acc) {
            *y = s.reduce_sum_f32s(acc);
        }
    }
}

/// Whole blocks of a line, and the units left over.
#[inline(always)]
fn split_line<S: Simd, const U: usize>(line: &[u32]) -> (&[[S::u32s; U]], &[u32]) {
    let whole = line.len() / (U * S::U32_LANES) * (U * S::U32_LANES);
    let (body, tail) = line.split_at(whole);
    (S::as_simd_u32s(body).0.as_chunks::<U>().0, tail)
}

/// A block from fewer units, padded with zeros.
#[inline(always)]
fn pad_units<S: Simd, const U: usize>(units: &[u32]) -> [S::u32s; U] {
    let mut padded = [0u32; MAX_BLOCK];
    padded[..units.len()].copy_from_slice(units);
    let (vectors, _) = S::as_simd_u32s(&padded);
    std::array::from_fn(|i| vectors[i])
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
    let factors = factors.map(|f| s.splat_f32s(f));
    let split = lines.map(|line| split_line::<S, U>(line));
    let blocks = split[0].0.len();
    let body: [&[[S::u32s; U]]; LINES] = split.map(|(body, _)| &body[..blocks]);
    let (acc, _) = S::as_mut_simd_f32s(acc);
    let (acc, _) = acc.as_chunks_mut::<2>();
    let (acc, rest) = acc.split_at_mut(blocks);
    for (at, acc) in acc.iter_mut().enumerate() {
        let [mut a0, mut a1] = *acc;
        for i in 0..LINES {
            let [w0, w1] = D::block(s, body[i][at]);
            a0 = s.mul_add_e_f32s(factors[i], w0, a0);
            a1 = s.mul_add_e_f32s(factors[i], w1, a1);
        }
        *acc = [a0, a1];
    }
    if let Some([a0, a1]) = rest.first_mut() {
        for i in 0..LINES {
            let [w0, w1] = D::block(s, pad_units::<S, U>(split[i].1));
            *a0 = s.mul_add_e_f32s(factors[i], w0, *a0);
            *a1 = s.mul_add_e_f32s(factors[i], w1, *a1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Bf16, F16, F32};
    use super::*;
    use burn::tensor::{bf16, f16};
    use pulp::{Arch, bytemuck};

    use crate::ops::simd::Fixed;

    fn check(cpu: impl Cpu) {
        for (d_in, d_out, rows) in [(70, 46, 1), (64, 64, 3), (130, 1026, 7)] {
            let number = |i: usize| ((i * 7919) % 257) as f32 / 64.0 - 2.0;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let wide: Vec<f32> = (0..d_in * d_out).map(|i| number(i + 13)).collect();
            // These numbers are exact in every dtype.
            let narrow: Vec<bf16> = wide.iter().map(|&w| bf16::from_f32(w)).collect();
            let half: Vec<f16> = narrow.iter().map(|w| f16::from_f32(w.to_f32())).collect();
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            for by_output in [true, false] {
                let stride = if by_output { d_in } else { d_out };
                let weight = |data, per_unit| Weight {
                    data,
                    d_in,
                    d_out,
                    stride: stride / per_unit,
                    by_output,
                };
                let at = |i: usize, o: usize| {
                    f64::from(
                        wide[if by_output {
                            o * d_in + i
                        } else {
                            i * d_out + o
                        }],
                    )
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
                            .map(|i| f64::from(x[row * d_in + i]) * at(i, o))
                            .sum();
                        assert!((f64::from(*y) - dot).abs() < 1e-3, "{y} vs {dot}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set() {
        check(Arch::new());
        check(Fixed(pulp::Scalar::new()));
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            check(Fixed(v3));
        }
    }
}
