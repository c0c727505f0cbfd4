//! Products of rows with a packed weight: lines are streamed from memory once for all rows of a call,
//! and multiplied in integers.

use std::marker::PhantomData;

use half::slice::HalfBitsSliceExt;
use pulp::{Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::super::dots::each_task;
use super::super::quant_format::{GROUP, QuantFormat};
use super::super::tile::Aligned;
use super::Quantized;
use super::integers::{Integers, LANES, Q4, Q8, round};
use super::unpack::{prefetch, widen_scales};
use crate::ops::simd::Cpu;

/// Rows per register tile at most.
const ROWS: usize = 4;
/// Blocks whose scales are multiplied at a time.
const STRETCH: usize = 16;
/// Elements of the weight per task at most.
const TASK: usize = 1 << 20;
/// Multiplications for which a task of its own pays.
const SMALL: usize = 1 << 16;
/// Elements of the input above which rows are rounded on all threads.
const PARALLEL: usize = 1 << 15;

/// Writes `x` `[rows, d_in]` times the weight plus `bias` to `out` `[rows, d_out]`.
///
/// A product is summed lane by lane, block after block, and across lanes at the end, whatever rows and lines share
/// a tile: the result of a row does not depend on the rows beside it.
pub(super) fn apply(
    x: &[f32],
    weight: &Quantized,
    bias: Option<&[f32]>,
    out: &mut [f32],
    cpu: impl Cpu,
) {
    match weight.format {
        QuantFormat::Q8_0 => products::<Q8, 2>(x, weight, bias, out, cpu),
        QuantFormat::Q4_0 => products::<Q4, 4>(x, weight, bias, out, cpu),
    }
}

fn products<F: Integers<X>, const X: usize>(
    x: &[f32],
    weight: &Quantized,
    bias: Option<&[f32]>,
    out: &mut [f32],
    cpu: impl Cpu,
) {
    let (d_in, d_out) = (weight.d_in, weight.d_out);
    let x = Rounded::<X>::new::<F>(x, d_in, cpu);
    // As many tasks for each thread.
    let tasks = match x.rows * d_in * d_out {
        ..SMALL => 1,
        _ => (d_in * d_out)
            .div_ceil(TASK)
            .next_multiple_of(rayon::current_num_threads()),
    };
    let width = d_out.div_ceil(tasks).next_multiple_of(4);
    each_task(out, d_out, width, |first, out| {
        cpu.run(Task {
            x: &x,
            weight,
            first,
            bias: bias.map(|bias| &bias[first..]),
            out,
            integers: PhantomData::<F>,
        });
    });
}

/// What a step of a line is multiplied with.
type Step<const X: usize> = [[u32; LANES]; X];

/// Of some blocks their scales, and with these the sums of their integers times what the integers of the
/// weight lack.
type Scales = [[f32; STRETCH]; 2];

/// Rows in integers.
struct Rounded<const X: usize> {
    rows: usize,
    /// `[rows][steps]`.
    data: Aligned,
    /// `[rows][stretches]`.
    scales: Vec<Scales>,
}

impl<const X: usize> Rounded<X> {
    fn new<F: Integers<X>>(x: &[f32], d_in: usize, cpu: impl Cpu) -> Self {
        let (rows, blocks) = (x.len() / d_in, d_in / GROUP);
        let (steps, stretches) = (blocks.div_ceil(F::BLOCKS), blocks.div_ceil(STRETCH));
        let mut data = Aligned::zeros(rows * steps * X * LANES);
        let mut scales = vec![[[0.0; STRETCH]; 2]; rows * stretches];
        let words = bytemuck::cast_slice_mut::<f32, u32>(data.get_mut());
        let all = words.as_chunks_mut().0.as_chunks_mut().0;
        let round = |((steps, scales), x)| {
            cpu.run(Round {
                x,
                steps,
                scales,
                integers: PhantomData::<F>,
            });
        };
        if x.len() < PARALLEL {
            let rows = all.chunks_mut(steps).zip(scales.chunks_mut(stretches));
            rows.zip(x.chunks(d_in)).for_each(round);
        } else {
            let scales = scales.par_chunks_mut(stretches);
            let rows = all.par_chunks_mut(steps).zip(scales);
            rows.zip(x.par_chunks(d_in)).for_each(round);
        }
        Self { rows, data, scales }
    }

    fn steps(&self) -> &[Step<X>] {
        let words = bytemuck::cast_slice::<f32, u32>(self.data.get());
        words.as_chunks().0.as_chunks().0
    }
}

/// Rounds a row.
struct Round<'a, F, const X: usize> {
    x: &'a [f32],
    steps: &'a mut [Step<X>],
    scales: &'a mut [Scales],
    integers: PhantomData<F>,
}

impl<F: Integers<X>, const X: usize> WithSimd for Round<'_, F, X> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (blocks, _) = self.x.as_chunks::<GROUP>();
        let mut rounded = [[0; GROUP]; STRETCH];
        let steps = self.steps.chunks_mut(STRETCH / F::BLOCKS);
        let stretches = blocks.chunks(STRETCH).zip(steps);
        for ((blocks, steps), [scales, offsets]) in stretches.zip(self.scales) {
            for (i, (block, rounded)) in blocks.iter().zip(&mut rounded).enumerate() {
                scales[i] = round(s, block, rounded);
                let sum: i32 = rounded.iter().map(|x| i32::from(*x)).sum();
                offsets[i] = F::OFFSET * scales[i] * sum as f32;
            }
            let rounded = rounded[..blocks.len()].chunks(F::BLOCKS);
            for (rounded, step) in rounded.zip(steps) {
                F::arrange(rounded.as_flattened(), step);
            }
        }
    }
}

/// Some outputs of all rows.
struct Task<'a, F, const X: usize> {
    x: &'a Rounded<X>,
    weight: &'a Quantized,
    first: usize,
    bias: Option<&'a [f32]>,
    /// One slice for each row.
    out: Vec<&'a mut [f32]>,
    integers: PhantomData<F>,
}

impl<F: Integers<X>, const X: usize> WithSimd for Task<'_, F, X> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match S::REGISTER_COUNT {
            ..32 => self.run::<S, 2, 2>(s),
            // Of four bits the integers of a line take more registers, and there are less bytes to wait for.
            _ if X > 2 => match self.out.len() {
                1 => self.run::<S, 8, 1>(s),
                2 => self.run::<S, 4, 2>(s),
                _ => self.run::<S, 2, ROWS>(s),
            },
            _ if self.out.len() <= 2 => self.run::<S, 4, 2>(s),
            _ => self.run::<S, 4, ROWS>(s),
        }
    }
}

impl<F: Integers<X>, const X: usize> Task<'_, F, X> {
    /// With `L` lines and at most `R` rows per register tile.
    #[inline(always)]
    fn run<S: Simd, const L: usize, const R: usize>(mut self, s: S) {
        let (rows, all) = (self.x.rows, self.x.steps());
        let (steps, stretches) = (all.len() / rows, self.x.scales.len() / rows);
        let count = self.out[0].len();
        let (packed, words) = self.weight.lines();
        let packed = &packed[self.first * words..][..count * words];
        let units = self.weight.d_in / self.weight.format.per_unit();
        let blocks = self.weight.d_in / GROUP;
        // Each line of a tile is the next of a stream of its own, which never jumps.
        let stream = count.div_ceil(L);
        let mut w_scales = vec![[0.0; STRETCH]; L * stretches];
        for at in 0..stream {
            let mut places = [0; L];
            let mut lines: [&[u32]; L] = [&[]; L];
            for i in 0..L {
                // Past the end the last line is repeated.
                places[i] = (at + i * stream).min(count - 1);
                let (line, scales) = packed[places[i] * words..][..words].split_at(units);
                lines[i] = line;
                scales.chunks(LANES).for_each(|words| prefetch(s, words));
                let scales: &[u16] = bytemuck::cast_slice(scales);
                let to = w_scales[i * stretches..][..stretches].as_flattened_mut();
                widen_scales(s, scales[..blocks].reinterpret_cast(), &mut to[..blocks]);
            }
            for first in (0..rows).step_by(R) {
                let n = R.min(rows - first);
                let tile = Tile {
                    x: &all[first * steps..][..n * steps],
                    x_scales: &self.x.scales[first * stretches..][..n * stretches],
                    lines,
                    w_scales: &w_scales,
                };
                let mut sums = [[0.0; ROWS]; L];
                match n {
                    1 => tile.products::<S, F, 1>(s, &mut sums),
                    2 => tile.products::<S, F, 2>(s, &mut sums),
                    3 => tile.products::<S, F, 3>(s, &mut sums),
                    _ => tile.products::<S, F, ROWS>(s, &mut sums),
                }
                for (place, sums) in places.into_iter().zip(sums) {
                    let bias = self.bias.map_or(0.0, |bias| bias[place]);
                    for (out, sum) in self.out[first..first + n].iter_mut().zip(sums) {
                        out[place] = sum + bias;
                    }
                }
            }
        }
    }
}

/// Some rows and `L` lines.
struct Tile<'a, const X: usize, const L: usize> {
    /// `[rows][steps]`.
    x: &'a [Step<X>],
    /// `[rows][stretches]`.
    x_scales: &'a [Scales],
    lines: [&'a [u32]; L],
    /// `[L][stretches]`.
    w_scales: &'a [[f32; STRETCH]],
}

/// Products of the scales of rows and lines. They begin on a cache line.
#[repr(align(64))]
struct Factors<const L: usize, const R: usize>([[[f32; STRETCH]; R]; L]);

impl<const X: usize, const L: usize> Tile<'_, X, L> {
    /// The products of all `R` rows. Loops over indices keep the sums in registers.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // the index is that of several slices
    fn products<S: Simd, F: Integers<X>, const R: usize>(self, s: S, out: &mut [[f32; ROWS]; L]) {
        let (steps, stretches) = (self.x.len() / R, self.x_scales.len() / R);
        let mut x: [&[Step<X>]; R] = [&[]; R];
        for r in 0..R {
            x[r] = &self.x[r * steps..][..steps];
        }
        // Whole steps of each line, and what is left over, padded with zeros as the rows are.
        let whole = self.lines[0].len() / LANES;
        let mut body: [&[[u32; LANES]]; L] = [&[]; L];
        let mut tail = [[0; LANES]; L];
        for i in 0..L {
            let (chunks, rest) = self.lines[i].as_chunks::<LANES>();
            body[i] = &chunks[..whole];
            let padded = tail[i].as_chunks_mut::<4>().0.iter_mut();
            for (padded, rest) in padded.zip(rest.as_chunks::<4>().0) {
                *padded = *rest;
            }
        }
        let mut acc = [[s.splat_f32s(0.0); R]; L];
        for stretch in 0..stretches {
            let mut factors = Factors([[[0.0; STRETCH]; R]; L]);
            for i in 0..L {
                let (w, _) = S::as_simd_f32s(&self.w_scales[i * stretches + stretch]);
                for r in 0..R {
                    let [x, offsets] = &self.x_scales[r * stretches + stretch];
                    let (x, offsets) = (S::as_simd_f32s(x).0, S::as_simd_f32s(offsets).0);
                    let (to, _) = S::as_mut_simd_f32s(&mut factors.0[i][r]);
                    for at in 0..STRETCH / S::F32_LANES {
                        to[at] = s.mul_f32s(w[at], x[at]);
                        if F::OFFSET != 0.0 {
                            acc[i][r] = s.mul_add_e_f32s(w[at], offsets[at], acc[i][r]);
                        }
                    }
                }
            }
            let first = stretch * (STRETCH / F::BLOCKS);
            let end = first + STRETCH / F::BLOCKS;
            for at in first..end.min(whole) {
                let mut words = [&body[0][at]; L];
                for i in 0..L {
                    words[i] = &body[i][at];
                    prefetch(s, words[i]);
                }
                step::<S, F, X, L, R>(s, words, x, at, &factors, at - first, &mut acc);
            }
            if (first..end).contains(&whole) && whole < steps {
                let mut words = [&tail[0]; L];
                for i in 0..L {
                    words[i] = &tail[i];
                }
                step::<S, F, X, L, R>(s, words, x, whole, &factors, whole - first, &mut acc);
            }
        }
        for i in 0..L {
            for r in 0..R {
                out[i][r] = s.reduce_sum_f32s(acc[i][r]);
            }
        }
    }
}

/// Adds the products of step `at` of the rows, which is step `of_stretch` of the factors.
#[inline(always)]
fn step<S: Simd, F: Integers<X>, const X: usize, const L: usize, const R: usize>(
    s: S,
    words: [&[u32; LANES]; L],
    x: [&[Step<X>]; R],
    at: usize,
    factors: &Factors<L, R>,
    of_stretch: usize,
    acc: &mut [[S::f32s; R]; L],
) {
    for vector in 0..F::SUMS / S::F32_LANES {
        let mut w = [F::weights(s, words[0], vector); L];
        for i in 1..L {
            w[i] = F::weights(s, words[i], vector);
        }
        for r in 0..R {
            for i in 0..L {
                let sums = F::sums(s, w[i], &x[r][at], vector);
                let factors = &factors.0[i][r][of_stretch * F::BLOCKS..][..F::BLOCKS];
                acc[i][r] = s.mul_add_e_f32s(sums, F::scales(s, factors, vector), acc[i][r]);
            }
        }
    }
}
