//! Blockwise attention with an online soft-max (FlashAttention, arXiv 2205.14135, on CPU tiles).
//!
//! A task owns up to [`BLOCK_ROWS`] query rows of one key-value head and walks over the keys in
//! blocks of [`BLOCK_KEYS`]: scores of the block, running maximum and sum, weighted values. Only
//! one block of scores per task exists at a time.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::problem::{Attended, Problem};
use crate::ops::rows::largest;
use crate::ops::simd::{Cpu, exp2};

/// Query rows per task.
const BLOCK_ROWS: usize = 96;
/// Keys per block; a multiple of every panel width (at most 4 vectors of 16).
const BLOCK_KEYS: usize = 256;
/// Values that are widened at a time, small enough for the first-level cache.
const RUN: usize = 64;
/// Query rows per register tile.
const TILE: usize = 6;

/// Keys and values of all heads, rearranged so that the kernels read them in order.
struct Packed {
    /// Per (batch, head): panels of `key_panel` keys, each `[dim][key_panel]`.
    keys: Vec<f32>,
    /// Per (batch, head): `value_panels` panels `[k_pad][value_panel]`.
    values: Vec<f32>,
    key_panel: usize,
    value_panel: usize,
    value_panels: usize,
    /// Keys padded to whole panels.
    k_pad: usize,
}

impl Packed {
    fn new(p: &Problem, (lanes, registers): (usize, usize)) -> Self {
        let vectors = max_vectors(registers);
        let key_panel = vectors * lanes;
        let (dim, v_dim) = (p.k.width, p.v.width);
        let k_pad = p.k_len.next_multiple_of(key_panel);
        let value_vectors = v_dim.div_ceil(lanes);
        let value_panels = value_vectors.div_ceil(vectors);
        let value_panel = value_vectors.div_ceil(value_panels) * lanes;

        let heads = p.batch * p.kv_heads;
        let mut keys = vec![0.0; heads * k_pad * dim];
        let panels = k_pad / key_panel;
        keys.par_chunks_mut(key_panel * dim)
            .enumerate()
            .for_each_init(Vec::new, |scratch, (at, panel)| {
                let (head, first) = (at / panels, (at % panels) * key_panel);
                let count = key_panel.min(p.k_len - first);
                let head = (head / p.kv_heads, head % p.kv_heads);
                let run = p.k.run(head, first..first + count, scratch);
                for key in 0..count {
                    for (line, &x) in panel.chunks_exact_mut(key_panel).zip(run.row(key)) {
                        line[key] = x;
                    }
                }
            });
        let mut values = vec![0.0; heads * value_panels * k_pad * value_panel];
        values
            .par_chunks_mut(k_pad * value_panel)
            .enumerate()
            .for_each_init(Vec::new, |scratch, (at, panel)| {
                let (head, first) = (at / value_panels, (at % value_panels) * value_panel);
                let head = (head / p.kv_heads, head % p.kv_heads);
                let end = v_dim.min(first + value_panel);
                for (at, lines) in panel.chunks_mut(RUN * value_panel).enumerate() {
                    let keys = at * RUN..p.k_len.min((at + 1) * RUN);
                    if keys.is_empty() {
                        break;
                    }
                    let count = keys.len();
                    let run = p.v.run(head, keys, scratch);
                    for (key, line) in lines.chunks_exact_mut(value_panel).take(count).enumerate() {
                        line[..end - first].copy_from_slice(&run.row(key)[first..end]);
                    }
                }
            });
        Packed {
            keys,
            values,
            key_panel,
            value_panel,
            value_panels,
            k_pad,
        }
    }
}

/// Vectors per row of a register tile: with [`TILE`] rows the accumulators fill most registers.
const fn max_vectors(registers: usize) -> usize {
    if registers >= 32 { 4 } else { 2 }
}

/// Attention for any number of rows. `dim`, `v_dim` and `k_len` must not be zero.
pub(super) fn attention(p: &Problem, cpu: impl Cpu) -> Attended {
    let packed = Packed::new(p, cpu.vector_shape());
    let v_dim = p.v.width;
    let rows = p.rows();
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let done: Vec<(Vec<f32>, Vec<f32>)> = (0..p.batch * p.kv_heads * blocks)
        .into_par_iter()
        .map(|task| {
            let (head, block) = (task / blocks, task % blocks);
            let first = block * BLOCK_ROWS;
            cpu.run(Task {
                p,
                packed: &packed,
                batch: head / p.kv_heads,
                kv_head: head % p.kv_heads,
                first,
                rows: BLOCK_ROWS.min(rows - first),
            })
        })
        .collect();

    let mut out = vec![0.0; p.lines() * p.heads * v_dim];
    out.par_chunks_mut(p.heads * v_dim)
        .enumerate()
        .for_each(|(at, line)| {
            let (batch, query) = p.source(at);
            for (head, dst) in line.chunks_exact_mut(v_dim).enumerate() {
                let (kv_head, member) = (head / p.group(), head % p.group());
                let row = member * p.q_len + query;
                let task = (batch * p.kv_heads + kv_head) * blocks + row / BLOCK_ROWS;
                let from = (row % BLOCK_ROWS) * v_dim;
                dst.copy_from_slice(&done[task].0[from..from + v_dim]);
            }
        });
    let log_sum = done.into_iter().flat_map(|(_, log_sum)| log_sum).collect();
    Attended { out, log_sum }
}

/// One block of query rows of one key-value head.
struct Task<'a> {
    p: &'a Problem<'a>,
    packed: &'a Packed,
    batch: usize,
    kv_head: usize,
    first: usize,
    rows: usize,
}

impl WithSimd for Task<'_> {
    /// Output rows `[rows, v_dim]` and their log-sums.
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, 4>(s)
        } else {
            self.run::<S, 2>(s)
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, s: S) -> (Vec<f32>, Vec<f32>) {
        let Task {
            p,
            packed,
            batch,
            kv_head,
            first,
            rows,
        } = self;
        let (dim, v_dim) = (p.k.width, p.v.width);
        let head = batch * p.kv_heads + kv_head;
        let keys = &packed.keys[head * packed.k_pad * dim..][..packed.k_pad * dim];
        let value_size = packed.k_pad * packed.value_panel;
        let values = &packed.values[head * packed.value_panels * value_size..]
            [..packed.value_panels * value_size];
        let v_pad = packed.value_panels * packed.value_panel;
        let tiles = rows.div_ceil(TILE);

        // Queries, scaled, as [tile][dim][TILE].
        let mut queries = vec![0.0f32; tiles * TILE * dim];
        let (mut lo, mut hi) = (p.k_len, 0);
        let mut scratch = Vec::new();
        for row in 0..rows {
            let (head, query) = p.head_and_query(kv_head, first + row);
            let tile = &mut queries[row / TILE * TILE * dim..][..TILE * dim];
            let run = p.q.run((batch, head), query..query + 1, &mut scratch);
            for (line, &x) in tile.chunks_exact_mut(TILE).zip(run.row(0)) {
                line[row % TILE] = x * p.scale;
            }
            let visible = p.visibility.keys(query);
            if visible.0 < visible.1 {
                lo = lo.min(visible.0);
                hi = hi.max(visible.1);
            }
        }

        let mut scores = vec![0.0f32; tiles * TILE * BLOCK_KEYS];
        let mut acc = vec![0.0f32; tiles * TILE * v_pad];
        let mut alphas = vec![1.0f32; tiles * TILE];
        let mut maxima = vec![f32::NEG_INFINITY; rows];
        let mut sums = vec![0.0f32; rows];

        let mut start = lo / packed.key_panel * packed.key_panel;
        while start < hi {
            let width = BLOCK_KEYS.min(hi.next_multiple_of(packed.key_panel) - start);
            for (at, panel) in keys[start * dim..(start + width) * dim]
                .chunks_exact(packed.key_panel * dim)
                .enumerate()
            {
                let (panel, _) = S::as_simd_f32s(panel);
                for (tile, q) in queries.chunks_exact(TILE * dim).enumerate() {
                    let out = &mut scores[tile * TILE * BLOCK_KEYS..][..TILE * BLOCK_KEYS];
                    score_tile::<S, NV>(s, q, panel, out, at * packed.key_panel);
                }
            }

            for row in 0..rows {
                let line = &mut scores[row * BLOCK_KEYS..][..width];
                let (_, query) = p.head_and_query(kv_head, first + row);
                let visible = p.visibility.keys(query);
                let masked = visible.0 > start
                    || visible.1 < start + width
                    || p.padding.is_some()
                    || p.bias.is_some();
                if masked {
                    p.mask_row(batch, kv_head, first + row, start, line);
                }
                alphas[row] = online_softmax(s, line, &mut maxima[row], &mut sums[row]);
            }

            for at in 0..packed.value_panels {
                let panel = &values[at * value_size..][start * packed.value_panel..]
                    [..width * packed.value_panel];
                let (panel, _) = S::as_simd_f32s(panel);
                for tile in 0..tiles {
                    let weights = &scores[tile * TILE * BLOCK_KEYS..][..TILE * BLOCK_KEYS];
                    let alphas = &alphas[tile * TILE..][..TILE];
                    let acc = &mut acc[tile * TILE * v_pad..][..TILE * v_pad];
                    let column = at * packed.value_panel;
                    match packed.value_panel / S::F32_LANES {
                        1 => value_tile::<S, 1>(s, weights, width, panel, alphas, acc, column),
                        2 => value_tile::<S, 2>(s, weights, width, panel, alphas, acc, column),
                        3 => value_tile::<S, 3>(s, weights, width, panel, alphas, acc, column),
                        _ => value_tile::<S, 4>(s, weights, width, panel, alphas, acc, column),
                    }
                }
            }
            start += width;
        }

        let mut out = vec![0.0; rows * v_dim];
        for row in 0..rows {
            let inverse = if sums[row] > 0.0 {
                1.0 / sums[row]
            } else {
                sums[row]
            };
            let src = &acc[row * v_pad..][..v_dim];
            for (y, x) in out[row * v_dim..][..v_dim].iter_mut().zip(src) {
                *y = x * inverse;
            }
        }
        let log_sum = maxima
            .iter()
            .zip(&sums)
            .map(|(max, sum)| max + sum.log2())
            .collect();
        (out, log_sum)
    }
}

/// Scores of [`TILE`] queries (`[dim][TILE]`) with one panel of keys (`[dim][NV vectors]`), written
/// to columns `column..` of the `[TILE][BLOCK_KEYS]` scores.
#[inline(always)]
fn score_tile<S: Simd, const NV: usize>(
    s: S,
    queries: &[f32],
    panel: &[S::f32s],
    scores: &mut [f32],
    column: usize,
) {
    let mut acc = [[s.splat_f32s(0.0); NV]; TILE];
    let (queries, _) = queries.as_chunks::<TILE>();
    let (panel, _) = panel.as_chunks::<NV>();
    for (q, k) in queries.iter().zip(panel) {
        for row in 0..TILE {
            let q = s.splat_f32s(q[row]);
            for col in 0..NV {
                acc[row][col] = s.mul_add_e_f32s(q, k[col], acc[row][col]);
            }
        }
    }
    for (line, acc) in scores.chunks_exact_mut(BLOCK_KEYS).zip(&acc) {
        let line = &mut line[column..column + NV * S::F32_LANES];
        let (line, _) = S::as_mut_simd_f32s(line);
        line.copy_from_slice(acc);
    }
}

/// Turns a row of scores into weights relative to the new running maximum; returns the factor by
/// which earlier results of the row shrink.
#[inline(always)]
fn online_softmax<S: Simd>(s: S, scores: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let new_max = max.max(largest(s, scores));
    let (scores, _) = S::as_mut_simd_f32s(scores);
    // A row that has seen no key keeps weights of zero: 2^(−inf − 0).
    let shift = if new_max == f32::NEG_INFINITY {
        0.0
    } else {
        new_max
    };
    let shift_v = s.splat_f32s(shift);
    let mut total = s.splat_f32s(0.0);
    for x in scores.iter_mut() {
        let weight = exp2(s, s.sub_f32s(*x, shift_v));
        *x = weight;
        total = s.add_f32s(total, weight);
    }
    let alpha = if *max == shift {
        1.0
    } else {
        (*max - shift).exp2()
    };
    *sum = *sum * alpha + s.reduce_sum_f32s(total);
    *max = new_max;
    alpha
}

/// `acc = alpha · acc + weights · values` for [`TILE`] rows and one panel of value columns.
#[inline(always)]
fn value_tile<S: Simd, const NV: usize>(
    s: S,
    weights: &[f32],
    width: usize,
    panel: &[S::f32s],
    alphas: &[f32],
    out: &mut [f32],
    column: usize,
) {
    let stride = out.len() / TILE;
    let mut acc = [[s.splat_f32s(0.0); NV]; TILE];
    for row in 0..TILE {
        let alpha = s.splat_f32s(alphas[row]);
        let line = &out[row * stride + column..][..NV * S::F32_LANES];
        let (line, _) = S::as_simd_f32s(line);
        for col in 0..NV {
            acc[row][col] = s.mul_f32s(alpha, line[col]);
        }
    }
    let rows: [&[f32]; TILE] = std::array::from_fn(|row| &weights[row * BLOCK_KEYS..][..width]);
    let (panel, _) = panel.as_chunks::<NV>();
    for (key, v) in (0..width).zip(panel) {
        for row in 0..TILE {
            let w = s.splat_f32s(rows[row][key]);
            for col in 0..NV {
                acc[row][col] = s.mul_add_e_f32s(w, v[col], acc[row][col]);
            }
        }
    }
    for row in 0..TILE {
        let line = &mut out[row * stride + column..][..NV * S::F32_LANES];
        let (line, _) = S::as_mut_simd_f32s(line);
        line.copy_from_slice(&acc[row]);
    }
}
