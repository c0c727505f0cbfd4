//! Attention for few query rows (decoding with a cache): keys and values are read once, in place,
//! and the keys are split over the threads.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::problem::{Attended, Problem, Run};
use crate::ops::rows::largest;
use crate::ops::simd::{Cpu, exp2};

/// Rows up to which this kernel beats packing the keys.
pub(super) const MAX_ROWS: usize = 8;
/// Keys per part; small enough that the parts of a few heads keep several threads busy.
const CHUNK: usize = 128;
/// Keys that are widened at a time; with their values they fit the first-level cache.
const BLOCK: usize = 32;
/// Keys per register tile.
const KEYS: usize = 4;
/// Multiply-adds per task: fewer are done sooner than another thread wakes.
const TASK: usize = 1 << 17;

/// Attention for up to [`MAX_ROWS`] stacked rows per key-value head.
pub(super) fn attention(p: &Problem, cpu: impl Cpu) -> Attended {
    let (rows, dim, v_dim) = (p.rows(), p.k.width, p.v.width);
    let heads = p.batch * p.kv_heads;
    let chunks = p.k_len.div_ceil(CHUNK);
    let mut queries = vec![0.0f32; heads * rows * dim];
    let mut scratch = Vec::new();
    for (at, dst) in queries.chunks_exact_mut(dim).enumerate() {
        let (head, row) = (at / rows, at % rows);
        let (head_q, query) = p.head_and_query(head % p.kv_heads, row);
        let run =
            p.q.run((head / p.kv_heads, head_q), query..query + 1, &mut scratch);
        for (y, x) in dst.iter_mut().zip(run.row(0)) {
            *y = x * p.scale;
        }
    }

    let size = rows * (v_dim + 2);
    let mut parts = vec![0.0f32; heads * chunks * size];
    let work = rows * CHUNK.min(p.k_len) * (dim + v_dim);
    parts
        .par_chunks_exact_mut(size)
        .enumerate()
        .with_min_len((TASK / work).max(1))
        .for_each_init(Scratch::default, |scratch, (at, part)| {
            let (head, first) = (at / chunks, at % chunks * CHUNK);
            cpu.run(Task {
                p,
                head,
                first,
                len: CHUNK.min(p.k_len - first),
                queries: &queries[head * rows * dim..][..rows * dim],
                scratch,
                part: Part::new(part, rows),
            });
        });

    let mut out = vec![0.0f32; p.lines() * p.heads * v_dim];
    let mut log_sum = vec![f32::NEG_INFINITY; heads * rows];
    for (head, parts) in parts.chunks_exact_mut(chunks * size).enumerate() {
        let parts: Vec<Part> = parts
            .chunks_exact_mut(size)
            .map(|part| Part::new(part, rows))
            .collect();
        let (batch, kv_head) = (head / p.kv_heads, head % p.kv_heads);
        for row in 0..rows {
            let max = parts
                .iter()
                .fold(f32::NEG_INFINITY, |max, part| max.max(part.maxima[row]));
            let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
            let factor = |part: &Part| (part.maxima[row] - shift).exp2();
            let sum: f32 = parts.iter().map(|part| factor(part) * part.sums[row]).sum();
            let inverse = if sum > 0.0 { 1.0 / sum } else { sum };
            let (head_q, query) = p.head_and_query(kv_head, row);
            log_sum[head * rows + row] = max + sum.log2();
            let Some(line) = p.line(batch, query) else {
                continue;
            };
            let dst = &mut out[(line * p.heads + head_q) * v_dim..][..v_dim];
            for part in &parts {
                let factor = factor(part) * inverse;
                for (y, x) in dst.iter_mut().zip(&part.values[row * v_dim..][..v_dim]) {
                    *y += factor * x;
                }
            }
        }
    }
    Attended { out, log_sum }
}

/// Result over one chunk of keys: running maximum and sum per row, unnormalised values.
struct Part<'a> {
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    values: &'a mut [f32],
}

impl<'a> Part<'a> {
    fn new(part: &'a mut [f32], rows: usize) -> Self {
        let (maxima, rest) = part.split_at_mut(rows);
        let (sums, values) = rest.split_at_mut(rows);
        Part {
            maxima,
            sums,
            values,
        }
    }
}

/// What a thread uses again for every part.
#[derive(Default)]
struct Scratch {
    /// `[rows, keys]`.
    scores: Vec<f32>,
    /// Widened keys or values of a block.
    widened: Vec<f32>,
}

struct Task<'a> {
    p: &'a Problem<'a>,
    /// Key-value head, counted over the batch.
    head: usize,
    first: usize,
    len: usize,
    /// Scaled, `[rows, dim]`.
    queries: &'a [f32],
    scratch: &'a mut Scratch,
    /// Zeros.
    part: Part<'a>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Task {
            p,
            head,
            first,
            len,
            queries,
            scratch: Scratch { scores, widened },
            part,
        } = self;
        let (rows, dim, v_dim) = (p.rows(), p.k.width, p.v.width);
        let (batch, kv_head) = (head / p.kv_heads, head % p.kv_heads);
        part.maxima.fill(f32::NEG_INFINITY);
        let seen = (0..rows).any(|row| {
            let (lo, hi) = p.visibility.keys(p.head_and_query(kv_head, row).1);
            lo < (first + len).min(hi) && hi > first
        });
        if !seen {
            return;
        }

        // Rows per register tile.
        let most = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        scores.resize(rows * len, 0.0);
        for block in (0..len).step_by(BLOCK) {
            let count = BLOCK.min(len - block);
            let from = first + block;
            let run = p.k.run((batch, kv_head), from..from + count, widened);
            for row in (0..rows).step_by(most) {
                let queries = &queries[row * dim..];
                let out = &mut scores[row * len + block..];
                match most.min(rows - row) {
                    1 => scores_of::<S, 1>(s, queries, &run, out, len),
                    2 => scores_of::<S, 2>(s, queries, &run, out, len),
                    3 => scores_of::<S, 3>(s, queries, &run, out, len),
                    _ => scores_of::<S, 4>(s, queries, &run, out, len),
                }
            }
        }

        for (row, line) in scores.chunks_exact_mut(len).enumerate() {
            p.mask_row(batch, kv_head, row, first, line);
            let max = largest(s, line);
            let (body, tail) = S::as_mut_simd_f32s(line);
            let shift = s.splat_f32s(if max == f32::NEG_INFINITY { 0.0 } else { max });
            let mut total = s.splat_f32s(0.0);
            for x in body.iter_mut() {
                *x = exp2(s, s.sub_f32s(*x, shift));
                total = s.add_f32s(total, *x);
            }
            let mut sum = s.reduce_sum_f32s(total);
            if !tail.is_empty() {
                let x = exp2(s, s.sub_f32s(s.partial_load_f32s(tail), shift));
                s.partial_store_f32s(tail, x);
                sum += tail.iter().sum::<f32>();
            }
            part.maxima[row] = max;
            part.sums[row] = sum;
        }

        for block in (0..len).step_by(BLOCK) {
            let count = BLOCK.min(len - block);
            let from = first + block;
            let run = p.v.run((batch, kv_head), from..from + count, widened);
            for row in (0..rows).step_by(most) {
                let weights = &scores[row * len + block..];
                let sums = &mut part.values[row * v_dim..];
                match most.min(rows - row) {
                    1 => add_values::<S, 1>(s, weights, len, &run, sums),
                    2 => add_values::<S, 2>(s, weights, len, &run, sums),
                    3 => add_values::<S, 3>(s, weights, len, &run, sums),
                    _ => add_values::<S, 4>(s, weights, len, &run, sums),
                }
            }
        }
    }
}

// No closures around vector code below: they would not inherit the CPU features.

/// Scores of `R` queries `[R, dim]` with a run of keys, in lines with a stride of `line`.
#[inline(always)]
fn scores_of<S: Simd, const R: usize>(
    s: S,
    queries: &[f32],
    run: &Run,
    scores: &mut [f32],
    line: usize,
) {
    let dim = run.width;
    let vectors = dim / S::F32_LANES;
    let mut query = [S::as_simd_f32s(&queries[..dim]); R];
    for r in 0..R {
        let (body, tail) = S::as_simd_f32s(&queries[r * dim..][..dim]);
        query[r] = (&body[..vectors], tail);
    }
    for key in (0..run.rows).step_by(KEYS) {
        // A short last tile is filled up with its first key.
        let n = KEYS.min(run.rows - key);
        let mut keys = [S::as_simd_f32s(run.row(key)); KEYS];
        for (i, slot) in keys.iter_mut().enumerate().take(n) {
            let (body, tail) = S::as_simd_f32s(run.row(key + i));
            *slot = (&body[..vectors], tail);
        }
        let mut acc = [[s.splat_f32s(0.0); KEYS]; R];
        for v in 0..vectors {
            for r in 0..R {
                for i in 0..KEYS {
                    acc[r][i] = s.mul_add_e_f32s(query[r].0[v], keys[i].0[v], acc[r][i]);
                }
            }
        }
        if vectors * S::F32_LANES < dim {
            for r in 0..R {
                let q = s.partial_load_f32s(query[r].1);
                for i in 0..KEYS {
                    acc[r][i] = s.mul_add_e_f32s(q, s.partial_load_f32s(keys[i].1), acc[r][i]);
                }
            }
        }
        for r in 0..R {
            let out = &mut scores[r * line + key..][..n];
            for i in 0..n {
                out[i] = s.reduce_sum_f32s(acc[r][i]);
            }
        }
    }
}

/// Adds a run of values, weighted, to `R` sums `[R, v_dim]`. The weights are in lines that are `line`
/// apart.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the index is that of several slices
fn add_values<S: Simd, const R: usize>(
    s: S,
    weights: &[f32],
    line: usize,
    run: &Run,
    sums: &mut [f32],
) {
    let (lanes, width) = (S::F32_LANES, run.width);
    let mut of_row = [weights; R];
    for r in 0..R {
        of_row[r] = &weights[r * line..][..run.rows];
    }
    let mut column = 0;
    while column + 4 * lanes <= width {
        add_columns::<S, R, 4>(s, of_row, run, column, sums);
        column += 4 * lanes;
    }
    while column + lanes <= width {
        add_columns::<S, R, 1>(s, of_row, run, column, sums);
        column += lanes;
    }
    if column == width {
        return;
    }
    let mut acc = [s.splat_f32s(0.0); R];
    for r in 0..R {
        acc[r] = s.partial_load_f32s(&sums[r * width + column..][..width - column]);
    }
    for key in 0..run.rows {
        let value = s.partial_load_f32s(&run.row(key)[column..]);
        for r in 0..R {
            acc[r] = s.mul_add_e_f32s(s.splat_f32s(of_row[r][key]), value, acc[r]);
        }
    }
    for r in 0..R {
        s.partial_store_f32s(&mut sums[r * width + column..][..width - column], acc[r]);
    }
}

/// [`add_values`] for `C` whole vectors from `column` on.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the index is that of several slices
fn add_columns<S: Simd, const R: usize, const C: usize>(
    s: S,
    weights: [&[f32]; R],
    run: &Run,
    column: usize,
    sums: &mut [f32],
) {
    let (width, span) = (run.width, C * S::F32_LANES);
    let mut acc = [[s.splat_f32s(0.0); C]; R];
    for r in 0..R {
        let (line, _) = S::as_simd_f32s(&sums[r * width + column..][..span]);
        acc[r].copy_from_slice(line);
    }
    for key in 0..run.rows {
        let (value, _) = S::as_simd_f32s(&run.row(key)[column..column + span]);
        for r in 0..R {
            let weight = s.splat_f32s(weights[r][key]);
            for c in 0..C {
                acc[r][c] = s.mul_add_e_f32s(weight, value[c], acc[r][c]);
            }
        }
    }
    for r in 0..R {
        let (line, _) = S::as_mut_simd_f32s(&mut sums[r * width + column..][..span]);
        line.copy_from_slice(&acc[r]);
    }
}
