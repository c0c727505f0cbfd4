//! Few rows (decoding): the packed weight is streamed from memory once and unpacked in registers.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::quant_format::{GROUP, QuantFormat};
use super::Quantized;
use super::unpack::{Q4, Q8, Unpack, prefetch, widen_scales};
use crate::ops::simd::Cpu;

/// Lines of the weight per register tile.
const LINES: usize = 4;
/// Rows per register tile.
const ROWS: usize = 4;
/// Elements of the weight per task.
const TASK: usize = 1 << 18;

/// `[rows, d_out]` products of `x` `[rows, d_in]`.
///
/// A product is summed lane by lane in the order in which elements are unpacked and across lanes at
/// the end, whatever rows and lines share a tile.
pub(super) fn apply(x: &[f32], weight: &Quantized, cpu: impl Cpu) -> Vec<f32> {
    match weight.format {
        QuantFormat::Q8_0 => products::<Q8, 8>(x, weight, cpu),
        QuantFormat::Q4_0 => products::<Q4, 4>(x, weight, cpu),
    }
}

fn products<U: Unpack<W>, const W: usize>(
    x: &[f32],
    weight: &Quantized,
    cpu: impl Cpu,
) -> Vec<f32> {
    let (d_in, d_out) = (weight.d_in, weight.d_out);
    let rows = x.len() / d_in;
    let (blocks, _) = x.as_chunks::<GROUP>();
    let arranged: Vec<Arranged> = blocks.iter().map(|b| Arranged(U::arrange(b))).collect();
    // As many tasks for each thread.
    let tasks = (d_out * d_in)
        .div_ceil(TASK)
        .next_multiple_of(rayon::current_num_threads());
    let width = d_out.div_ceil(tasks).next_multiple_of(LINES);
    let mut columns = vec![0.0f32; d_out * rows];
    columns
        .par_chunks_mut(width * rows)
        .enumerate()
        .for_each(|(task, out)| {
            cpu.run(Dots::<U, W> {
                x: &arranged,
                rows,
                weight,
                first: task * width,
                out,
                unpack: PhantomData,
            });
        });
    if rows == 1 {
        return columns;
    }
    let mut out = vec![0.0f32; rows * d_out];
    for (output, values) in columns.chunks_exact(rows).enumerate() {
        for (row, &value) in values.iter().enumerate() {
            out[row * d_out + output] = value;
        }
    }
    out
}

/// A block in the order in which elements are unpacked. Vectors that cross from one cache line to
/// the next would be read twice.
#[repr(align(64))]
struct Arranged([f32; GROUP]);

/// Dot products of some lines with all rows.
struct Dots<'a, U, const W: usize> {
    /// The blocks of all rows.
    x: &'a [Arranged],
    rows: usize,
    weight: &'a Quantized,
    first: usize,
    /// `[lines][rows]`.
    out: &'a mut [f32],
    unpack: PhantomData<U>,
}

impl<U: Unpack<W>, const W: usize> WithSimd for Dots<'_, U, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let rows = self.rows;
        let groups = self.weight.d_in / GROUP;
        let count = self.out.len() / rows;
        // Each line of a tile is the next of a stream of its own, which never jumps.
        let step = count.div_ceil(LINES);
        let mut scales = vec![0.0f32; groups * LINES];
        for at in 0..step {
            let mut places = [0; LINES];
            let mut lines: [&[[u32; W]]; LINES] = [&[]; LINES];
            for i in 0..LINES {
                // Past the end the last line is repeated.
                places[i] = (at + i * step).min(count - 1);
                let (units, from) = self.weight.line(self.first + places[i]);
                lines[i] = units.as_chunks::<W>().0;
                widen_scales(s, from, &mut scales[i * groups..][..groups]);
            }
            let scales: [&[f32]; LINES] = std::array::from_fn(|i| &scales[i * groups..][..groups]);
            for row in (0..rows).step_by(ROWS) {
                let x = &self.x[row * groups..];
                let n = ROWS.min(rows - row);
                let sums = match n {
                    1 => dots::<S, U, W, 1>(s, x, lines, scales),
                    2 => dots::<S, U, W, 2>(s, x, lines, scales),
                    3 => dots::<S, U, W, 3>(s, x, lines, scales),
                    _ => dots::<S, U, W, ROWS>(s, x, lines, scales),
                };
                for (place, sums) in places.into_iter().zip(sums) {
                    let out = &mut self.out[place * rows + row..][..n];
                    out.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum);
                }
            }
        }
    }
}

/// Products of `R` rows with some lines, `[lines][rows]`.
#[inline(always)]
fn dots<S: Simd, U: Unpack<W>, const W: usize, const R: usize>(
    s: S,
    x: &[Arranged],
    lines: [&[[u32; W]]; LINES],
    scales: [&[f32]; LINES],
) -> [[f32; ROWS]; LINES] {
    let groups = scales[0].len();
    let x: [&[Arranged]; R] = std::array::from_fn(|r| &x[r * groups..][..groups]);
    let lines = lines.map(|line| &line[..groups]);
    let scales = scales.map(|scales| &scales[..groups]);
    let mut acc = [[s.splat_f32s(0.0); R]; LINES];
    for at in 0..groups {
        let x = x.map(|x| S::as_simd_f32s(&x[at].0).0);
        for i in 0..LINES {
            let words = &lines[i][at];
            prefetch(s, words);
            let scale = s.splat_f32s(scales[i][at]);
            for vector in 0..GROUP / S::F32_LANES {
                let w = U::vector(s, words, vector, scale);
                for (acc, x) in acc[i].iter_mut().zip(x) {
                    *acc = s.mul_add_e_f32s(w, x[vector], *acc);
                }
            }
        }
    }
    let mut sums = [[0.0; ROWS]; LINES];
    for i in 0..LINES {
        for r in 0..R {
            sums[i][r] = s.reduce_sum_f32s(acc[i][r]);
        }
    }
    sums
}
