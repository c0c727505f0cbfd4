//! Dot products in register tiles: some rows of the input times some lines of a weight.
//!
//! A product is summed lane by lane along the inputs and across the lanes at the end, whatever the
//! tile and however inputs are cut into stretches: the result of a row does not depend on the rows
//! beside it.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::decode::Decode;
use crate::ops::simd::{Cpu, sums_across};

/// Rows of the largest register tile: with four lines 24 of 32 vector registers hold sums.
pub(super) const ROWS: usize = 6;
/// Lines of a register tile of one or two rows, for which inputs are not cut into stretches.
pub(super) const WHOLE: usize = 8;
/// Sums across lanes taken at a time; a tile has at most twice as many.
const SUMS: usize = 16;
/// Units of the largest block (two vectors of 16 lanes).
const MAX_BLOCK: usize = 32;
/// Floats above which the rows are arranged on all threads.
const PARALLEL: usize = 1 << 15;

/// Zeros that begin on a cache line: vectors across two lines cost two loads.
pub(super) struct Aligned {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        let data = vec![0.0f32; len + 15];
        // Without an answer (never on a CPU) nothing but speed is lost.
        let start = data.as_ptr().align_offset(64).min(15);
        Self { data, start, len }
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.len]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..][..self.len]
    }
}

/// Rows of the input, cut into tiles; in a tile the blocks of its rows take turns.
pub(super) struct Tiles {
    data: Aligned,
    rows: usize,
    count: usize,
    /// Floats of a row: whole blocks, padded with zeros.
    width: usize,
}

impl Tiles {
    /// Tiles of at most `most` rows.
    pub(super) fn new(
        x: &[f32],
        rows: usize,
        most: usize,
        arrange: &impl Arrange,
        cpu: impl Cpu,
    ) -> Self {
        let d_in = x.len() / rows;
        let (lanes, _) = cpu.vector_shape();
        let width = d_in.next_multiple_of(2 * lanes);
        let mut tiles = Self {
            data: Aligned::zeros(rows * width),
            rows,
            count: rows.div_ceil(most),
            width,
        };
        let all: Vec<_> = (0..tiles.count).map(|tile| tiles.rows(tile)).collect();
        let mut rest = tiles.data.get_mut();
        let mut parts = Vec::with_capacity(all.len());
        for rows in all {
            let (part, after) = rest.split_at_mut(rows.len() * width);
            parts.push((&x[rows.start * d_in..rows.end * d_in], part));
            rest = after;
        }
        let pack = |(x, part)| {
            cpu.run(Pack {
                x,
                d_in,
                part,
                arrange,
            });
        };
        if rows * width < PARALLEL {
            parts.into_iter().for_each(pack);
        } else {
            parts.into_par_iter().for_each(pack);
        }
        tiles
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Rows of a tile: tiles differ by one row at most.
    pub(super) fn rows(&self, tile: usize) -> Range<usize> {
        self.rows * tile / self.count..self.rows * (tile + 1) / self.count
    }

    #[inline(always)]
    pub(super) fn get(&self, tile: usize) -> &[f32] {
        let rows = self.rows(tile);
        &self.data.get()[rows.start * self.width..rows.end * self.width]
    }
}

/// The order in which a weight gives its elements.
pub(super) trait Arrange: Sync {
    /// Copies a row to `dst` in that order; what is past the row stays as it is.
    fn arrange<S: Simd>(&self, s: S, row: &[f32], dst: &mut [f32]);
}

struct Pack<'a, A> {
    x: &'a [f32],
    d_in: usize,
    part: &'a mut [f32],
    arrange: &'a A,
}

impl<A: Arrange> WithSimd for Pack<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let block = 2 * S::F32_LANES;
        let rows = self.x.len() / self.d_in;
        if rows == 1 {
            return self.arrange.arrange(s, self.x, self.part);
        }
        let mut line = vec![0.0f32; self.part.len() / rows];
        for (row, x) in self.x.chunks_exact(self.d_in).enumerate() {
            self.arrange.arrange(s, x, &mut line);
            let blocks = self.part.chunks_exact_mut(block).skip(row).step_by(rows);
            for (dst, src) in blocks.zip(line.chunks_exact(block)) {
                dst.copy_from_slice(src);
            }
        }
    }
}

/// Where a stretch of the inputs lies among them.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// It is the first: sums begin with zero.
    pub(super) first: bool,
    /// It is the last: sums become products.
    pub(super) last: bool,
}

/// Continues the products of the `rows` rows of a tile with `L` lines over a stretch of the inputs. In `sums`
/// each has a vector between stretches; the last one writes `[rows][L]` to `out`.
#[inline(always)]
pub(super) fn products<S: Simd, D: Decode<U>, const U: usize, const L: usize>(
    s: S,
    x: &[f32],
    rows: usize,
    lines: [&[u32]; L],
    ends: Ends,
    sums: &mut [f32],
    out: &mut [[f32; L]; ROWS],
) {
    match rows {
        1 => products_of::<S, D, U, L, 1>(s, x, lines, ends, sums, out),
        2 => products_of::<S, D, U, L, 2>(s, x, lines, ends, sums, out),
        3 => products_of::<S, D, U, L, 3>(s, x, lines, ends, sums, out),
        4 => products_of::<S, D, U, L, 4>(s, x, lines, ends, sums, out),
        5 => products_of::<S, D, U, L, 5>(s, x, lines, ends, sums, out),
        _ => products_of::<S, D, U, L, ROWS>(s, x, lines, ends, sums, out),
    }
}

#[inline(always)]
fn products_of<S: Simd, D: Decode<U>, const U: usize, const L: usize, const R: usize>(
    s: S,
    x: &[f32],
    lines: [&[u32]; L],
    ends: Ends,
    sums: &mut [f32],
    out: &mut [[f32; L]; ROWS],
) {
    let (x, _) = S::as_simd_f32s(x).0.as_chunks::<2>().0.as_chunks::<R>();
    let (sums, _) = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<R>();
    let (body, tail) = split_lines::<S, U, L>(lines);
    let mut acc = [[s.splat_f32s(0.0); R]; L];
    // Loops over indices: whole copies would keep the sums in memory.
    if L != WHOLE && !ends.first {
        for i in 0..L {
            for r in 0..R {
                acc[i][r] = sums[i][r];
            }
        }
    }
    for (at, x) in x[..body[0].len()].iter().enumerate() {
        let mut w = [[s.splat_f32s(0.0); 2]; L];
        for i in 0..L {
            w[i] = D::block(s, body[i][at]);
        }
        multiply::<S, L, R>(s, x, &w, &mut acc);
    }
    if !tail[0].is_empty() {
        let mut w = [[s.splat_f32s(0.0); 2]; L];
        for i in 0..L {
            w[i] = D::block(s, pad_units::<S, U>(tail[i]));
        }
        multiply::<S, L, R>(s, &x[body[0].len()], &w, &mut acc);
    }
    if L != WHOLE && !ends.last {
        for i in 0..L {
            for r in 0..R {
                sums[i][r] = acc[i][r];
            }
        }
        return;
    }
    // Beside decoding there are too few registers for many at a time.
    if U == 1 && R > 1 {
        for (i, acc) in acc.into_iter().enumerate() {
            for (r, acc) in acc.into_iter().enumerate() {
                out[r][i] = s.reduce_sum_f32s(acc);
            }
        }
        return;
    }
    let mut parts = [[s.splat_f32s(0.0); SUMS]; 2];
    #[allow(clippy::needless_range_loop)] // an iterator would keep the sums in memory
    for i in 0..L {
        for r in 0..R {
            let n = r * L + i;
            parts[n / SUMS][n % SUMS] = acc[i][r];
        }
    }
    let [first, second] = parts;
    let out = &mut out.as_flattened_mut()[..R * L];
    let (low, high) = out.split_at_mut(SUMS.min(R * L));
    low.copy_from_slice(&sums_across(s, first)[..low.len()]);
    if R * L > SUMS {
        high.copy_from_slice(&sums_across(s, second)[..high.len()]);
    }
}

#[inline(always)]
fn multiply<S: Simd, const L: usize, const R: usize>(
    s: S,
    x: &[[S::f32s; 2]; R],
    w: &[[S::f32s; 2]; L],
    acc: &mut [[S::f32s; R]; L],
) {
    for half in 0..2 {
        for r in 0..R {
            for i in 0..L {
                acc[i][r] = s.mul_add_e_f32s(w[i][half], x[r][half], acc[i][r]);
            }
        }
    }
}

type Blocks<'a, S, const U: usize> = &'a [[<S as Simd>::u32s; U]];

/// Whole blocks of lines of equal length, and the units left over.
#[inline(always)]
pub(super) fn split_lines<S: Simd, const U: usize, const L: usize>(
    lines: [&[u32]; L],
) -> ([Blocks<'_, S, U>; L], [&[u32]; L]) {
    let blocks = lines[0].len() / (U * S::U32_LANES);
    let split = lines.map(|line| line.split_at(blocks * U * S::U32_LANES));
    let body = split.map(|(body, _)| &S::as_simd_u32s(body).0.as_chunks::<U>().0[..blocks]);
    (body, split.map(|(_, tail)| tail))
}

/// A block from fewer units, padded with zeros.
#[inline(always)]
pub(super) fn pad_units<S: Simd, const U: usize>(units: &[u32]) -> [S::u32s; U] {
    let mut padded = [0u32; MAX_BLOCK];
    padded[..units.len()].copy_from_slice(units);
    let (vectors, _) = S::as_simd_u32s(&padded);
    std::array::from_fn(|i| vectors[i])
}

/// Writes the elements of a line in block order; what is past them stays as it is.
#[inline(always)]
pub(super) fn decode<S: Simd, D: Decode<U>, const U: usize>(s: S, line: &[u32], dst: &mut [f32]) {
    let ([body], [tail]) = split_lines::<S, U, 1>([line]);
    let (dst, _) = S::as_mut_simd_f32s(dst).0.as_chunks_mut::<2>();
    for (dst, units) in dst.iter_mut().zip(body) {
        *dst = D::block(s, *units);
    }
    if !tail.is_empty() {
        dst[body.len()] = D::block(s, pad_units::<S, U>(tail));
    }
}
