//! Attention for few query rows (decoding with a cache): keys and values are read once, in place,
//! and the keys are split over the threads.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::problem::{Attended, Problem};
use crate::ops::rows::largest;
use crate::ops::simd::{Cpu, exp2};

/// Rows up to which this kernel beats packing the keys.
pub(super) const MAX_ROWS: usize = 8;
/// Keys per task.
const CHUNK: usize = 512;

/// Attention for up to [`MAX_ROWS`] stacked rows per key-value head.
pub(super) fn attention(p: &Problem, cpu: impl Cpu) -> Attended {
    let (rows, v_dim) = (p.rows(), p.v.width);
    let chunks = p.k_len.div_ceil(CHUNK);
    let parts: Vec<Part> = (0..p.batch * p.kv_heads * chunks)
        .into_par_iter()
        .map(|task| {
            let (head, chunk) = (task / chunks, task % chunks);
            cpu.run(Task {
                p,
                batch: head / p.kv_heads,
                kv_head: head % p.kv_heads,
                first: chunk * CHUNK,
                len: CHUNK.min(p.k_len - chunk * CHUNK),
            })
        })
        .collect();

    let mut out = vec![0.0f32; p.lines() * p.heads * v_dim];
    let mut log_sum = vec![f32::NEG_INFINITY; p.batch * p.kv_heads * rows];
    for (head, parts) in parts.chunks_exact(chunks).enumerate() {
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
            for part in parts {
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
struct Part {
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
}

struct Task<'a> {
    p: &'a Problem<'a>,
    batch: usize,
    kv_head: usize,
    first: usize,
    len: usize,
}

impl WithSimd for Task<'_> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Part {
        let Task {
            p,
            batch,
            kv_head,
            first,
            len,
        } = self;
        let (rows, dim, v_dim) = (p.rows(), p.k.width, p.v.width);
        let seen = (0..rows).any(|row| {
            let (lo, hi) = p.visibility.keys(p.head_and_query(kv_head, row).1);
            lo < (first + len).min(hi) && hi > first
        });
        if !seen {
            return Part {
                maxima: vec![f32::NEG_INFINITY; rows],
                sums: vec![0.0; rows],
                values: vec![0.0; rows * v_dim],
            };
        }
        let mut queries = vec![0.0f32; rows * dim];
        for (row, dst) in queries.chunks_exact_mut(dim).enumerate() {
            let (head, query) = p.head_and_query(kv_head, row);
            for (y, x) in dst.iter_mut().zip(p.q.row(batch, head, query)) {
                *y = x * p.scale;
            }
        }

        let mut scores = vec![0.0f32; rows * len];
        let mut key = 0;
        while key < len {
            let n = (len - key).min(4);
            // The last tile repeats its last key.
            let keys: [&[f32]; 4] =
                std::array::from_fn(|i| p.k.row(batch, kv_head, first + key + i.min(n - 1)));
            for (row, q) in queries.chunks_exact(dim).enumerate() {
                let dots = dot4(s, q, keys);
                scores[row * len + key..][..n].copy_from_slice(&dots[..n]);
            }
            key += n;
        }

        let mut maxima = vec![f32::NEG_INFINITY; rows];
        let mut sums = vec![0.0f32; rows];
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
            maxima[row] = max;
            sums[row] = sum;
        }

        let mut values = vec![0.0f32; rows * v_dim];
        let mut key = 0;
        while key < len {
            let n = (len - key).min(4);
            let v: [&[f32]; 4] =
                std::array::from_fn(|i| p.v.row(batch, kv_head, first + key + i.min(n - 1)));
            for (row, acc) in values.chunks_exact_mut(v_dim).enumerate() {
                let mut w = [0.0; 4];
                w[..n].copy_from_slice(&scores[row * len + key..][..n]);
                axpy4(s, w, v, acc);
            }
            key += n;
        }
        Part {
            maxima,
            sums,
            values,
        }
    }
}

/// Dot products of `q` with four keys.
#[inline(always)]
fn dot4<S: Simd>(s: S, q: &[f32], keys: [&[f32]; 4]) -> [f32; 4] {
    let (q, q_tail) = S::as_simd_f32s(q);
    let split = keys.map(|k| S::as_simd_f32s(k));
    let mut acc = [s.splat_f32s(0.0); 4];
    let bodies: [&[S::f32s]; 4] = split.map(|(body, _)| &body[..q.len()]);
    for (at, &q) in q.iter().enumerate() {
        for i in 0..4 {
            acc[i] = s.mul_add_e_f32s(q, bodies[i][at], acc[i]);
        }
    }
    if !q_tail.is_empty() {
        let q = s.partial_load_f32s(q_tail);
        for i in 0..4 {
            acc[i] = s.mul_add_e_f32s(q, s.partial_load_f32s(split[i].1), acc[i]);
        }
    }
    acc.map(|acc| s.reduce_sum_f32s(acc))
}

/// `acc += Σ w[i] · v[i]`.
#[inline(always)]
fn axpy4<S: Simd>(s: S, w: [f32; 4], v: [&[f32]; 4], acc: &mut [f32]) {
    let weights = w.map(|w| s.splat_f32s(w));
    let split = v.map(|v| S::as_simd_f32s(v));
    let (acc, acc_tail) = S::as_mut_simd_f32s(acc);
    let bodies: [&[S::f32s]; 4] = split.map(|(body, _)| &body[..acc.len()]);
    for (at, acc) in acc.iter_mut().enumerate() {
        let mut sum = *acc;
        for i in 0..4 {
            sum = s.mul_add_e_f32s(weights[i], bodies[i][at], sum);
        }
        *acc = sum;
    }
    if !acc_tail.is_empty() {
        let mut sum = s.partial_load_f32s(acc_tail);
        for i in 0..4 {
            sum = s.mul_add_e_f32s(weights[i], s.partial_load_f32s(split[i].1), sum);
        }
        s.partial_store_f32s(acc_tail, sum);
    }
}
