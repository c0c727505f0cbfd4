//! Products with a weight whose lines are outputs: every product is a dot product of a row and a
//! line. Some lines at a time stay in the cache while all rows pass; few rows stream the weight
//! from memory once.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::Weight;
use super::decode::{Decode, F32, arrange};
use super::outer::Element;
use super::tile::{self, Aligned, Arrange, Ends, Tiles};
use crate::ops::simd::Cpu;

/// A weight `[d_out, d_in]` that register tiles can read.
pub(super) trait Source<const U: usize>: Arrange {
    type Decode: Decode<U>;
    /// Rows per register tile: fewer where decoding takes registers.
    const ROWS: usize;
    /// Floats of the panel for each element: one, or none.
    const COPIES: usize;
    /// `(d_in, d_out)`.
    fn sizes(&self) -> (usize, usize);
    /// Writes elements `range` of line `line` to a line of the panel where there is one.
    fn fill<S: Simd>(&self, s: S, line: usize, range: Range<usize>, panel: &mut [f32]);
    /// Elements `range` of line `line`, which the panel line has been filled with.
    fn line<'a>(&'a self, line: usize, range: Range<usize>, panel: &'a [f32]) -> &'a [u32];
}

/// Units decoded in registers wherever they are used.
pub(super) struct Direct<'a, D, const U: usize> {
    weight: &'a Weight<'a, u32>,
    decode: PhantomData<D>,
}

impl<'a, D, const U: usize> Direct<'a, D, U> {
    /// The weight's sizes count elements; its data are units of `2 / U` elements.
    pub(super) fn new(weight: &'a Weight<'a, u32>) -> Self {
        Self {
            weight,
            decode: PhantomData,
        }
    }
}

impl<D: Decode<U>, const U: usize> Arrange for Direct<'_, D, U> {
    #[inline(always)]
    fn arrange<S: Simd>(&self, s: S, row: &[f32], dst: &mut [f32]) {
        arrange::<S, U>(s, row, dst);
    }
}

impl<D: Decode<U>, const U: usize> Source<U> for Direct<'_, D, U> {
    type Decode = D;
    const ROWS: usize = if U == 1 { 4 } else { tile::ROWS };
    const COPIES: usize = 0;

    fn sizes(&self) -> (usize, usize) {
        (self.weight.d_in, self.weight.d_out)
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, _: S, _: usize, _: Range<usize>, _: &mut [f32]) {}

    #[inline(always)]
    fn line<'a>(&'a self, line: usize, range: Range<usize>, _: &'a [f32]) -> &'a [u32] {
        self.weight
            .line(line, range.start * U / 2..range.end * U / 2)
    }
}

/// A weight `[d_out, d_in]` whose lines can be widened to `f32`.
pub(super) trait Lines: Arrange {
    /// `(d_in, d_out)`.
    fn sizes(&self) -> (usize, usize);
    /// Writes elements `range` of line `line` in the order of [`Arrange`]: whole blocks of two vectors but at the
    /// end of the line. What `dst` has past them is zero and stays so.
    fn widen<S: Simd>(&self, s: S, line: usize, range: Range<usize>, dst: &mut [f32]);
}

/// For weights whose lines are no whole units.
impl<T: Element> Arrange for Weight<'_, T> {
    #[inline(always)]
    fn arrange<S: Simd>(&self, _: S, row: &[f32], dst: &mut [f32]) {
        dst[..row.len()].copy_from_slice(row);
    }
}

impl<T: Element> Lines for Weight<'_, T> {
    fn sizes(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, _: S, line: usize, range: Range<usize>, dst: &mut [f32]) {
        let line = self.line(line, range);
        T::widen(line, &mut dst[..line.len()]);
    }
}

impl<D: Decode<U>, const U: usize> Lines for Direct<'_, D, U> {
    fn sizes(&self) -> (usize, usize) {
        Source::sizes(self)
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, s: S, line: usize, range: Range<usize>, dst: &mut [f32]) {
        tile::decode::<S, D, U>(s, self.line(line, range, &[]), dst);
    }
}

/// Lines widened once for all rows.
pub(super) struct Widened<'a, W>(pub(super) &'a W);

impl<W: Lines> Arrange for Widened<'_, W> {
    #[inline(always)]
    fn arrange<S: Simd>(&self, s: S, row: &[f32], dst: &mut [f32]) {
        self.0.arrange(s, row, dst);
    }
}

impl<W: Lines> Source<2> for Widened<'_, W> {
    type Decode = F32;
    const ROWS: usize = tile::ROWS;
    const COPIES: usize = 1;

    fn sizes(&self) -> (usize, usize) {
        self.0.sizes()
    }

    #[inline(always)]
    fn fill<S: Simd>(&self, s: S, line: usize, range: Range<usize>, panel: &mut [f32]) {
        self.0.widen(s, line, range, panel);
    }

    #[inline(always)]
    fn line<'a>(&'a self, _: usize, _: Range<usize>, panel: &'a [f32]) -> &'a [u32] {
        bytemuck::cast_slice(panel)
    }
}

/// Lines of a panel at most.
const LINES: usize = 120;
/// Bytes of a panel: half of a second-level cache, beside which the rows pass.
const PANEL: usize = 1 << 19;
/// Elements of a line and of the input up to which lines are taken as a whole, and of a stretch where both have more:
/// the rows of a tile stay in the cache while all lines of a panel pass.
const LONG: usize = 4096;
const INPUT: usize = 1 << 21;
const STRETCH: usize = 1024;
/// Rows arranged at a time, whole tiles: for more, such as the pixels of an image, the weight passes again.
const MOST_ROWS: usize = 340 * 24;
/// Tiles at a time where lines come in stretches: their sums stay in the cache.
const TILES: usize = 48;
/// Tiles up to which the weight's way from memory counts.
const STREAMED: usize = 4;
/// Elements of the weight per task at most.
const TASK: usize = 1 << 20;
/// Multiplications for which a task of its own pays.
const SMALL: usize = 1 << 16;
/// Lines at a power-of-two distance would fall on the same few places of the cache.
const SLACK: usize = 16;

/// Outputs per task: even tasks, two or more a thread. A result does not depend on it.
fn task_width(rows: usize, d_in: usize, d_out: usize) -> usize {
    let threads = rayon::current_num_threads();
    let work = rows * d_in * d_out;
    let tasks = (work / SMALL).min(2 * threads).max(d_in * d_out / TASK);
    let tasks = if tasks < 2 {
        1
    } else {
        tasks.next_multiple_of(threads)
    };
    d_out.div_ceil(tasks).next_multiple_of(4)
}

/// Calls `run` for every task of `width` outputs of `out` `[rows, d_out]`: with its first output and its slices of the
/// rows. On all threads, where there is more than one task.
pub(super) fn each_task<'a>(
    out: &'a mut [f32],
    d_out: usize,
    width: usize,
    run: impl Fn(usize, Vec<&'a mut [f32]>) + Sync,
) {
    let tasks = columns(out, d_out, width);
    let run = |(task, out)| run(task * width, out);
    if tasks.len() == 1 {
        tasks.into_iter().enumerate().for_each(run);
    } else {
        tasks.into_par_iter().enumerate().for_each(run);
    }
}

/// Slices of the result by task: `[tasks][rows]`.
fn columns(out: &mut [f32], d_out: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = out.len() / d_out;
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(d_out.div_ceil(width), || Vec::with_capacity(rows));
    for line in out.chunks_exact_mut(d_out) {
        for (task, part) in tasks.iter_mut().zip(line.chunks_mut(width)) {
            task.push(part);
        }
    }
    tasks
}

/// `[rows, d_out]` products of `x` `[rows, d_in]`.
pub(super) fn apply<W: Source<U>, const U: usize>(
    x: &[f32],
    rows: usize,
    weight: &W,
    bias: Option<&[f32]>,
    cpu: impl Cpu,
) -> Vec<f32> {
    let (d_in, d_out) = weight.sizes();
    let mut out = vec![0.0f32; rows * d_out];
    let parts = x.chunks(MOST_ROWS * d_in.max(1));
    for (x, out) in parts.zip(out.chunks_mut(MOST_ROWS * d_out)) {
        let rows = out.len() / d_out;
        let tiles = Tiles::new(x, rows, W::ROWS, weight, cpu);
        let width = task_width(rows, d_in, d_out);
        each_task(out, d_out, width, |first, out| {
            cpu.run(Task {
                tiles: &tiles,
                weight,
                first,
                bias: bias.map(|bias| &bias[first..]),
                out,
            });
        });
    }
    out
}

/// Some outputs of all rows.
struct Task<'a, W, const U: usize> {
    tiles: &'a Tiles,
    weight: &'a W,
    first: usize,
    bias: Option<&'a [f32]>,
    /// One slice for each row.
    out: Vec<&'a mut [f32]>,
}

/// Rows, outputs and inputs whose products are taken at a time.
struct Part<'a> {
    tiles: Range<usize>,
    outputs: Range<usize>,
    inputs: Range<usize>,
    /// Lines at a distance of `stride`.
    panel: &'a [f32],
    stride: usize,
}

impl<W: Source<U>, const U: usize> WithSimd for Task<'_, W, U> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match S::REGISTER_COUNT {
            ..32 => self.run::<S, 2>(s),
            _ if self.out.len() <= 2 => self.run::<S, { tile::WHOLE }>(s),
            _ => self.run::<S, 4>(s),
        }
    }
}

impl<W: Source<U>, const U: usize> Task<'_, W, U> {
    /// With `L` lines per register tile.
    #[inline(always)]
    fn run<S: Simd, const L: usize>(mut self, s: S) {
        let (d_in, _) = self.weight.sizes();
        let (count, tiles) = (self.out[0].len(), self.tiles.count());
        let block = 2 * S::F32_LANES;
        let cut = tiles > 1 && d_in > LONG && self.out.len() * d_in > INPUT;
        let (stretch, tiles) = if cut {
            (STRETCH, TILES.min(tiles))
        } else {
            (d_in.next_multiple_of(block), tiles)
        };
        let lines = PANEL / (2 * U * stretch) / L * L;
        let lines = lines.clamp(L, LINES).min(count.next_multiple_of(L));
        let stride = (stretch + SLACK) * W::COPIES;
        let mut panel = Aligned::zeros(lines * stride);
        let sums = if cut { tiles * lines * tile::ROWS } else { 0 };
        let mut sums = Aligned::zeros(sums * S::F32_LANES);
        for first in (0..count).step_by(lines) {
            let outputs = first..(first + lines).min(count);
            for first in (0..self.tiles.count()).step_by(tiles) {
                let tiles = first..(first + tiles).min(self.tiles.count());
                for first in (0..d_in).step_by(stretch) {
                    let inputs = first..(first + stretch).min(d_in);
                    if W::COPIES > 0 {
                        let width = inputs.len().next_multiple_of(block);
                        let panel = panel.get_mut().chunks_exact_mut(stride);
                        for (line, panel) in outputs.clone().zip(panel) {
                            panel[inputs.len() / block * block..width].fill(0.0);
                            let line = self.first + line;
                            self.weight
                                .fill(s, line, inputs.clone(), &mut panel[..width]);
                        }
                    }
                    let part = Part {
                        tiles: tiles.clone(),
                        outputs: outputs.clone(),
                        inputs,
                        panel: panel.get(),
                        stride,
                    };
                    self.multiply::<S, L>(s, part, sums.get_mut());
                }
            }
        }
    }

    /// Continues the sums of some rows and outputs over a stretch of inputs.
    #[inline(always)]
    fn multiply<S: Simd, const L: usize>(&mut self, s: S, part: Part, sums: &mut [f32]) {
        let Part {
            tiles,
            outputs,
            inputs,
            panel,
            stride,
        } = part;
        let (d_in, _) = self.weight.sizes();
        let width = inputs.len().next_multiple_of(2 * S::F32_LANES);
        let ends = Ends {
            first: inputs.start == 0,
            last: inputs.end == d_in,
        };
        let groups = outputs.len().div_ceil(L);
        let (next, spacing) = match self.tiles.count() {
            // The weight comes from memory, which serves lines at large distances, each followed by the next one, up
            // to twice as fast as short lines side by side.
            ..=STREAMED => (1, groups),
            _ => (L, 1),
        };
        let mut sums = sums.chunks_exact_mut(L * tile::ROWS * S::F32_LANES);
        for tile in tiles {
            let rows = self.tiles.rows(tile);
            let x = &self.tiles.get(tile)[inputs.start * rows.len()..][..width * rows.len()];
            for group in 0..groups {
                let first = outputs.start + group * next;
                let mut lines: [&[u32]; L] = [&[]; L];
                for (i, line) in lines.iter_mut().enumerate() {
                    // Where there are no more lines the last one again.
                    let at = (first + i * spacing).min(outputs.end - 1);
                    let panel = match W::COPIES {
                        0 => &[],
                        _ => &panel[(at - outputs.start) * stride..][..width],
                    };
                    *line = self.weight.line(self.first + at, inputs.clone(), panel);
                }
                let sums = sums.next().unwrap_or_default();
                let mut y = [[0.0f32; L]; tile::ROWS];
                let count = rows.len();
                tile::products::<S, W::Decode, U, L>(s, x, count, lines, ends, sums, &mut y);
                if ends.last {
                    for (out, y) in self.out[rows.clone()].iter_mut().zip(&y) {
                        if spacing == 1 && first + L <= outputs.end {
                            out[first..first + L].copy_from_slice(y);
                            continue;
                        }
                        let out = out[first..outputs.end].iter_mut().step_by(spacing);
                        out.zip(y).for_each(|(out, y)| *out = *y);
                    }
                }
            }
            if ends.last
                && let Some(bias) = self.bias
            {
                for out in &mut self.out[rows] {
                    let out = out[outputs.clone()].iter_mut();
                    out.zip(&bias[outputs.clone()]).for_each(|(y, b)| *y += b);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
