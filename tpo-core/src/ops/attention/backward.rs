//! Attention with gradients on the CPU: the flash forward, and a backward pass that recomputes the
//! weights block by block from the saved log-sums (FlashAttention-2, arXiv 2307.08691).

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::Inputs;
use super::problem::{Attended, Problem, Rows};
use crate::ops::flex::{Saved, from_floats};
use crate::ops::simd::exp2;

/// Query rows whose weights exist at a time, per task.
const BLOCK_ROWS: usize = 256;

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub(super) inputs: Inputs,
    pub(super) attended: Arc<Attended>,
}

impl Saved<3> for Forward {
    fn gradients(self, grad: FlexTensor, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        backward(&self, &grad).map(Some)
    }
}

/// Gradients of one key-value head: `[rows, dim]`, `[k_len, dim]`, `[k_len, v_dim]`.
type HeadGradients = [Vec<f32>; 3];

fn backward(saved: &Forward, grad: &FlexTensor) -> [FlexTensor; 3] {
    let p = saved.inputs.problem();
    let grad = Rows::new(grad);
    let heads: Vec<HeadGradients> = (0..p.batch * p.kv_heads)
        .into_par_iter()
        .map(|head| {
            head_backward(
                &p,
                &saved.attended,
                &grad,
                head / p.kv_heads,
                head % p.kv_heads,
            )
        })
        .collect();

    let gather = |part: usize, tensor: &FlexTensor| {
        let shape = tensor.layout().shape().clone();
        let mut all = Vec::with_capacity(shape.num_elements());
        // Stacked rows are [group, q_len]: with the heads in order this is [heads, q_len].
        heads
            .iter()
            .for_each(|head| all.extend_from_slice(&head[part]));
        from_floats(all, shape, tensor.dtype())
    };
    let [q, k, v] = &saved.inputs.qkv;
    [gather(0, q), gather(1, k), gather(2, v)]
}

fn head_backward(
    p: &Problem,
    attended: &Attended,
    grad: &Rows,
    batch: usize,
    kv_head: usize,
) -> HeadGradients {
    let (rows, k_len, dim, v_dim) = (p.rows(), p.k_len, p.k.width, p.v.width);
    let arch = Arch::new();
    let stack = |source: &Rows| {
        let (mut out, mut scratch) = (Vec::with_capacity(k_len * source.width), Vec::new());
        let run = source.run((batch, kv_head), 0..k_len, &mut scratch);
        (0..k_len).for_each(|key| out.extend_from_slice(run.row(key)));
        matrix(out, k_len, source.width)
    };
    let (keys, values) = (stack(&p.k), stack(&p.v));
    let factor = p.scale * std::f32::consts::LN_2;

    let mut d_query = Vec::with_capacity(rows * dim);
    let mut d_key = vec![0.0f32; k_len * dim];
    let mut d_value = vec![0.0f32; k_len * v_dim];
    let (mut q_scratch, mut d_scratch) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let n = BLOCK_ROWS.min(rows - first);
        let mut query = Vec::with_capacity(n * dim);
        let mut d_out = Vec::with_capacity(n * v_dim);
        let mut shifts = Vec::with_capacity(n);
        let mut dots = Vec::with_capacity(n);
        for row in first..first + n {
            let (head, at) = p.head_and_query(kv_head, row);
            let q = p.q.run((batch, head), at..at + 1, &mut q_scratch);
            query.extend(q.row(0).iter().map(|x| x * p.scale));
            let d = grad.run((batch, head), at..at + 1, &mut d_scratch).row(0);
            let out = &attended.out[((batch * p.q_len + at) * p.heads + head) * v_dim..][..v_dim];
            dots.push(d.iter().zip(out).map(|(d, o)| d * o).sum::<f32>());
            d_out.extend_from_slice(d);
            shifts.push(attended.log_sum[(batch * p.kv_heads + kv_head) * rows + row]);
        }
        let (query, d_out) = (matrix(query, n, dim), matrix(d_out, n, v_dim));

        let mut scores = into_floats(multiply(&query, &transposed(&keys)));
        let mut d_scores = into_floats(multiply(&d_out, &transposed(&values)));
        for row in 0..n {
            let line = &mut scores[row * k_len..][..k_len];
            p.mask_row(batch, kv_head, first + row, 0, line);
            arch.dispatch(WeightRow {
                scores: line,
                d_weights: &mut d_scores[row * k_len..][..k_len],
                shift: shifts[row],
                dot: dots[row],
            });
        }
        let (weights, d_scores) = (matrix(scores, n, k_len), matrix(d_scores, n, k_len));
        let part = into_floats(multiply(&transposed(&weights), &d_out));
        add(&mut d_value, &part);
        // `query` carries `scale` with log2 e; ln 2 takes the latter away.
        let mut part = into_floats(multiply(&transposed(&d_scores), &query));
        part.iter_mut().for_each(|x| *x *= std::f32::consts::LN_2);
        add(&mut d_key, &part);
        let part = into_floats(multiply(&d_scores, &keys));
        d_query.extend(part.iter().map(|x| x * factor));
    }
    [d_query, d_key, d_value]
}

/// In place: scores become weights `2^(score − shift)`, their gradients become those of the scores,
/// `weight · (gradient − dot)`.
struct WeightRow<'a> {
    scores: &'a mut [f32],
    d_weights: &'a mut [f32],
    shift: f32,
    dot: f32,
}

impl WithSimd for WeightRow<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        if self.shift == f32::NEG_INFINITY {
            // No visible key: no weight, no gradient.
            self.scores.fill(0.0);
            self.d_weights.fill(0.0);
            return;
        }
        let (shift, dot) = (s.splat_f32s(self.shift), s.splat_f32s(self.dot));
        let (scores, scores_tail) = S::as_mut_simd_f32s(self.scores);
        let (grads, grads_tail) = S::as_mut_simd_f32s(self.d_weights);
        for (x, g) in scores.iter_mut().zip(grads) {
            let w = exp2(s, s.sub_f32s(*x, shift));
            *x = w;
            *g = s.mul_f32s(w, s.sub_f32s(*g, dot));
        }
        if !scores_tail.is_empty() {
            let w = exp2(s, s.sub_f32s(s.partial_load_f32s(scores_tail), shift));
            let g = s.mul_f32s(w, s.sub_f32s(s.partial_load_f32s(grads_tail), dot));
            s.partial_store_f32s(scores_tail, w);
            s.partial_store_f32s(grads_tail, g);
        }
    }
}

fn matrix(values: Vec<f32>, rows: usize, cols: usize) -> FlexTensor {
    from_floats(values, Shape::new([rows, cols]), DType::F32)
}

fn transposed(m: &FlexTensor) -> FlexTensor {
    m.clone().with_layout(m.layout().transpose(0, 1))
}

fn multiply(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    Flex::float_matmul(a.clone(), b.clone())
}

fn into_floats(m: FlexTensor) -> Vec<f32> {
    let (bytes, _, _) = m.into_data().into_parts();
    bytes
        .try_into_vec::<f32>()
        .unwrap_or_else(|bytes| pulp::bytemuck::pod_collect_to_vec(&bytes))
}

fn add(sum: &mut [f32], part: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(part) {
        *sum += x;
    }
}
