//! Many rows and a half-precision weight whose lines are inputs: stretches of some lines are widened
//! to `f32` in the cache, and vectors of outputs take up line after line for all rows. Sums are in
//! the order of `few_rows`.

use burn::tensor::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Weight;
use super::dots::each_task;
use super::tile::{Aligned, ROWS};
use crate::ops::half::HalfFloat;
use crate::ops::simd::Cpu;

/// Element of a weight.
pub(super) trait Element: Copy + Send + Sync {
    /// Copies `src` to `dst` as `f32`.
    fn widen(src: &[Self], dst: &mut [f32]);
}

impl Element for f32 {
    #[inline(always)]
    fn widen(src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }
}

impl Element for f16 {
    fn widen(src: &[f16], dst: &mut [f32]) {
        f16::widen_slice(src, dst);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(src: &[bf16], dst: &mut [f32]) {
        // Too short for a dispatch on the instruction set.
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
        }
    }
}

/// Lines of a panel.
const LINES: usize = 256;
/// Outputs of a panel: with the lines 512 KiB, half of a second-level cache.
const OUTPUTS: usize = 512;
/// Outputs of the widest register tile: four vectors of 16 lanes.
const GROUP: usize = 64;

/// `[rows, d_out]` products of `x` `[rows, d_in]`.
pub(super) fn apply<T: Element>(
    x: &[f32],
    rows: usize,
    weight: &Weight<T>,
    bias: Option<&[f32]>,
    cpu: impl Cpu,
) -> Vec<f32> {
    let (d_in, d_out) = (weight.d_in, weight.d_out);
    let count = rows.div_ceil(ROWS);
    let tiles: Vec<Vec<f32>> = (0..count)
        .into_par_iter()
        .map(|tile| {
            let rows = rows * tile / count..rows * (tile + 1) / count;
            let x = &x[rows.start * d_in..rows.end * d_in];
            let mut part = vec![0.0f32; x.len()];
            for (at, factors) in part.chunks_exact_mut(rows.len()).enumerate() {
                for (factor, row) in factors.iter_mut().zip(x.chunks_exact(d_in)) {
                    *factor = row[at];
                }
            }
            part
        })
        .collect();
    let width = d_out
        .div_ceil(2 * rayon::current_num_threads())
        .next_multiple_of(GROUP);
    let mut out = vec![0.0f32; rows * d_out];
    each_task(&mut out, d_out, width, |first, out| {
        cpu.run(Task {
            tiles: &tiles,
            weight,
            first,
            bias: bias.map(|bias| &bias[first..]),
            out,
        });
    });
    out
}

/// Some outputs of all rows.
struct Task<'a, T> {
    /// `[d_in][rows]` of some rows each.
    tiles: &'a [Vec<f32>],
    weight: &'a Weight<'a, T>,
    first: usize,
    bias: Option<&'a [f32]>,
    /// One slice for each row.
    out: Vec<&'a mut [f32]>,
}

impl<T: Element> WithSimd for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, 4>(s);
        } else {
            self.run::<S, 2>(s);
        }
    }
}

impl<T: Element> Task<'_, T> {
    /// With `L` vectors of outputs per register tile.
    #[inline(always)]
    fn run<S: Simd, const L: usize>(mut self, s: S) {
        let group = L * S::F32_LANES;
        let (d_in, count) = (self.weight.d_in, self.out[0].len());
        let outputs = OUTPUTS.min(count.next_multiple_of(group));
        // Group after group the lines of a panel.
        let mut panel = Aligned::zeros(LINES * outputs);
        for begin in (0..count).step_by(outputs) {
            let outputs = begin..(begin + outputs).min(count);
            for from in (0..d_in).step_by(LINES) {
                let lines = LINES.min(d_in - from);
                let panel = panel.get_mut();
                for at in 0..lines {
                    let outputs = self.first + outputs.start..self.first + outputs.end;
                    let line = self.weight.line(from + at, outputs);
                    for (src, dst) in line.chunks(group).zip(panel.chunks_mut(LINES * group)) {
                        T::widen(src, &mut dst[at * group..][..src.len()]);
                    }
                }
                let mut row = 0;
                for x in self.tiles {
                    let rows = x.len() / d_in;
                    let x = &x[from * rows..][..lines * rows];
                    let out = &mut self.out[row..row + rows];
                    let groups = outputs.clone().step_by(group);
                    for (first, w) in groups.zip(panel.chunks(LINES * group)) {
                        let w = &w[..lines * group];
                        match rows {
                            1 => add::<S, L, 1>(s, x, w, out, first),
                            2 => add::<S, L, 2>(s, x, w, out, first),
                            3 => add::<S, L, 3>(s, x, w, out, first),
                            4 => add::<S, L, 4>(s, x, w, out, first),
                            5 => add::<S, L, 5>(s, x, w, out, first),
                            _ => add::<S, L, ROWS>(s, x, w, out, first),
                        }
                    }
                    row += rows;
                }
            }
        }
        if let Some(bias) = self.bias {
            for out in &mut self.out {
                out.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Adds lines times factors to outputs `first..` of `R` rows.
#[inline(always)]
fn add<S: Simd, const L: usize, const R: usize>(
    s: S,
    x: &[f32],
    w: &[f32],
    out: &mut [&mut [f32]],
    first: usize,
) {
    let (x, _) = x.as_chunks::<R>();
    let (w, _) = S::as_simd_f32s(w).0.as_chunks::<L>();
    let count = (L * S::F32_LANES).min(out[0].len() - first);
    let mut sums = [[0.0f32; GROUP]; R];
    for (sums, out) in sums.iter_mut().zip(&*out) {
        sums[..count].copy_from_slice(&out[first..first + count]);
    }
    let mut acc = [[s.splat_f32s(0.0); L]; R];
    for (acc, sums) in acc.iter_mut().zip(&sums) {
        acc.copy_from_slice(&S::as_simd_f32s(sums).0[..L]);
    }
    for (w, x) in w.iter().zip(x) {
        for r in 0..R {
            let factor = s.splat_f32s(x[r]);
            for i in 0..L {
                acc[r][i] = s.mul_add_e_f32s(factor, w[i], acc[r][i]);
            }
        }
    }
    for (acc, sums) in acc.iter().zip(&mut sums) {
        S::as_mut_simd_f32s(sums).0[..L].copy_from_slice(acc);
    }
    for (out, sums) in out.iter_mut().zip(&sums) {
        out[first..first + count].copy_from_slice(&sums[..count]);
    }
}
