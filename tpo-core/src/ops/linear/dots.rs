//! Products with a weight whose lines are outputs: every product is a dot product of a row and a
//! line. Some lines at a time stay in the cache while all rows pass; few rows stream the weight
//! from memory once.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::Weight;
use super::decode::{Decode, F32, arrange};
use super::outer::Element;
use super::tile::{self, Aligned, Arrange, Tiles};
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
    /// Writes line `line` to a line of the panel where there is one.
    fn fill<S: Simd>(&self, s: S, line: usize, panel: &mut [f32]);
    /// Line `line`, which the panel line has been filled with.
    fn line<'a>(&'a self, line: usize, panel: &'a [f32]) -> &'a [u32];
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
    fn fill<S: Simd>(&self, _: S, _: usize, _: &mut [f32]) {}

    #[inline(always)]
    fn line<'a>(&'a self, line: usize, _: &'a [f32]) -> &'a [u32] {
        self.weight.line(line, 0..self.weight.d_in * U / 2)
    }
}

/// A weight `[d_out, d_in]` whose lines can be widened to `f32`.
pub(super) trait Lines: Arrange {
    /// `(d_in, d_out)`.
    fn sizes(&self) -> (usize, usize);
    /// Writes line `line` in the order of [`Arrange`]. `dst` has whole blocks of two vectors; what
    /// is past the line is zero and stays so.
    fn widen<S: Simd>(&self, s: S, line: usize, dst: &mut [f32]);
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
    fn widen<S: Simd>(&self, _: S, line: usize, dst: &mut [f32]) {
        T::widen(self.line(line, 0..self.d_in), &mut dst[..self.d_in]);
    }
}

impl<D: Decode<U>, const U: usize> Lines for Direct<'_, D, U> {
    fn sizes(&self) -> (usize, usize) {
        Source::sizes(self)
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, s: S, line: usize, dst: &mut [f32]) {
        tile::decode::<S, D, U>(s, self.line(line, &[]), dst);
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
    fn fill<S: Simd>(&self, s: S, line: usize, panel: &mut [f32]) {
        self.0.widen(s, line, panel);
    }

    #[inline(always)]
    fn line<'a>(&'a self, _: usize, panel: &'a [f32]) -> &'a [u32] {
        bytemuck::cast_slice(panel)
    }
}

/// Lines of a panel at most.
const LINES: usize = 32;
/// Bytes of a panel: some of the second-level cache, beside which the rows pass.
const PANEL: usize = 1 << 18;
/// Inputs from which one or two rows take eight lines at once: shorter lines end before eight
/// streams from memory have gathered speed.
const LONG: usize = 1024;
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

/// Slices of the result by task: `[tasks][rows]`.
pub(super) fn columns(out: &mut [f32], d_out: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
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
    let tiles = Tiles::new(x, rows, W::ROWS, weight, cpu);
    let width = task_width(rows, d_in, d_out);
    let mut out = vec![0.0f32; rows * d_out];
    let tasks = columns(&mut out, d_out, width);
    let run = |(task, out)| {
        let first = task * width;
        cpu.run(Task {
            tiles: &tiles,
            weight,
            first,
            bias: bias.map(|bias| &bias[first..]),
            out,
        });
    };
    if tasks.len() == 1 {
        tasks.into_iter().enumerate().for_each(run);
    } else {
        tasks.into_par_iter().enumerate().for_each(run);
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

impl<W: Source<U>, const U: usize> WithSimd for Task<'_, W, U> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match S::REGISTER_COUNT {
            ..32 => self.run::<S, 2>(s),
            _ if self.out.len() <= 2 && self.weight.sizes().0 >= LONG => self.run::<S, 8>(s),
            _ => self.run::<S, 4>(s),
        }
    }
}

impl<W: Source<U>, const U: usize> Task<'_, W, U> {
    /// With `L` lines per register tile.
    #[inline(always)]
    fn run<S: Simd, const L: usize>(mut self, s: S) {
        let (d_in, _) = self.weight.sizes();
        let count = self.out[0].len();
        let lines = PANEL / (2 * U * d_in) / L * L;
        let lines = lines.clamp(L, LINES).min(count.next_multiple_of(L));
        let width = d_in.next_multiple_of(2 * S::F32_LANES);
        let stride = (width + SLACK) * W::COPIES;
        let mut panel = Aligned::zeros(lines * stride);
        let mut products = [[0.0f32; tile::ROWS]; L];
        let products = products.as_flattened_mut();
        for begin in (0..count).step_by(lines) {
            let n = lines.min(count - begin);
            for at in 0..n {
                let line = self.first + begin + at;
                self.weight.fill(
                    s,
                    line,
                    &mut panel.get_mut()[at * stride..][..width * W::COPIES],
                );
            }
            for tile in 0..self.tiles.count() {
                let x = self.tiles.get(tile);
                let rows = self.tiles.rows(tile);
                for group in (0..n).step_by(L) {
                    // A short last group repeats its last line.
                    let lines: [&[u32]; L] = std::array::from_fn(|i| {
                        let at = (group + i).min(n - 1);
                        let panel = &panel.get()[at * stride..][..width * W::COPIES];
                        self.weight.line(self.first + begin + at, panel)
                    });
                    tile::products::<S, W::Decode, U, L>(s, x, rows.len(), lines, products);
                    let from = begin + group;
                    let products = products.chunks_exact(rows.len()).take(L.min(n - group));
                    for (i, products) in products.enumerate() {
                        let bias = self.bias.map_or(0.0, |bias| bias[from + i]);
                        for (row, y) in self.out[rows.clone()].iter_mut().zip(products) {
                            row[from + i] = y + bias;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::{Bf16, F16};
    use super::*;
    use burn::tensor::{bf16, f16};
    use pulp::Arch;

    use crate::ops::simd::Fixed;

    fn weight<T>(data: &[T], d_in: usize, d_out: usize, per_unit: usize) -> Weight<'_, T> {
        Weight {
            data,
            d_in,
            d_out,
            stride: d_in / per_unit,
            by_output: true,
        }
    }

    /// One to many rows, whole and broken blocks, tiles and panels; with a bias.
    fn check(cpu: impl Cpu) {
        for (d_in, d_out, rows) in [
            (70, 46, 1),
            (64, 64, 3),
            (1030, 13, 2),
            (130, 1026, 7),
            (66, 70, 29),
        ] {
            let number = |i: usize| ((i * 7919) % 257) as f32 / 64.0 - 2.0;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let bias: Vec<f32> = (0..d_out).map(|o| number(o + 5)).collect();
            // These numbers are exact in every dtype.
            let narrow: Vec<bf16> = (0..d_in * d_out)
                .map(|i| bf16::from_f32(number(i + 13)))
                .collect();
            let half: Vec<f16> = narrow.iter().map(|w| f16::from_f32(w.to_f32())).collect();
            let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let f32s = weight(bytemuck::cast_slice(&wide), d_in, d_out, 1);
            let bf16s = weight(bytemuck::cast_slice(&narrow), d_in, d_out, 2);
            let f16s = weight(bytemuck::cast_slice(&half), d_in, d_out, 2);
            let (f32s, bf16s) = (Direct::<F32, 2>::new(&f32s), Direct::<Bf16, 1>::new(&bf16s));
            let f16s = Direct::<F16, 1>::new(&f16s);
            let natural = weight(&narrow, d_in, d_out, 1);
            let b = Some(&bias[..]);
            let results = [
                apply(&x, rows, &f32s, b, cpu),
                apply(&x, rows, &Widened(&f32s), b, cpu),
                apply(&x, rows, &Widened(&natural), b, cpu),
                apply(&x, rows, &bf16s, b, cpu),
                apply(&x, rows, &Widened(&bf16s), b, cpu),
                apply(&x, rows, &f16s, b, cpu),
                apply(&x, rows, &Widened(&f16s), b, cpu),
            ];
            for (n, y) in results[0].iter().enumerate() {
                let (row, o) = (n / d_out, n % d_out);
                let terms =
                    (0..d_in).map(|i| f64::from(x[row * d_in + i]) * f64::from(wide[o * d_in + i]));
                let sum = terms.sum::<f64>() + f64::from(bias[o]);
                assert!((f64::from(*y) - sum).abs() < 2e-3, "{y} vs {sum}");
            }
            // Elements in order, and in that of units.
            assert!(results[1] == results[0] && results[2] == results[0]);
            assert!(results[4..].iter().all(|result| *result == results[3]));
            for (a, b) in results[0].iter().zip(&results[3]) {
                assert!((a - b).abs() < 2e-3, "{a} vs {b}");
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

    #[test]
    fn tasks_are_even() {
        let tasks = |threads, rows, d_in, d_out: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let width = pool
                .build()
                .unwrap()
                .install(|| task_width(rows, d_in, d_out));
            let all: Vec<usize> = (0..d_out)
                .step_by(width)
                .map(|first| width.min(d_out - first))
                .collect();
            all
        };
        assert_eq!(tasks(2, 1, 576, 576), [144; 4]);
        assert_eq!(tasks(2, 1, 576, 1536), [384; 4]);
        assert_eq!(tasks(1, 1, 576, 576), [288; 2]);
        assert_eq!(tasks(2, 1, 64, 64), [64]);
        // Large weights go in pieces of a million elements.
        assert_eq!(tasks(2, 1, 4096, 4096), [256; 16]);
        for (threads, d_out) in [(2, 49_152), (3, 49_152), (5, 1000), (7, 32_000)] {
            let all = tasks(threads, 4, 576, d_out);
            let short = all[0] - all[all.len() - 1];
            assert!(short <= 4 * all.len(), "{threads} threads: {all:?}");
        }
    }
}
