//! Rotary positions: rotation of neighbouring channels, and of channels at a distance of half the width.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Shape, Tensor};
use rayon::prelude::*;

use super::attention::Rows;
use super::flex::{Saved, contiguous, differentiable, floats, from_floats, plain, wrap};

/// Elements per task.
const CHUNK: usize = 1 << 15;

/// Turns every pair of neighbouring channels `(a, b)` of the first `rotated` tokens to
/// `(a·cos − b·sin, a·sin + b·cos)`; token `i` takes row `i` modulo `rows` of the tables.
///
/// # Shapes
/// - `x` and output `[batch, tokens, heads, width]`
/// - `cos` and `sin` `[rows, width / 2]`, f32, constants without gradient
pub fn rotate_pairs(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, rotated: usize) -> Tensor<4> {
    let [_, tokens, _, width] = x.dims();
    let [rows, half] = cos.dims();
    assert!(
        half * 2 == width && sin.dims() == [rows, half] && rotated <= tokens,
        "rotate_pairs: {rotated} of {tokens} tokens, {width} channels, tables {:?} and {:?}",
        cos.dims(),
        sin.dims()
    );
    if rotated == 0 || rows == 0 {
        return x;
    }
    let all = [x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()];
    match plain(all) {
        Ok([x, cos, sin]) => wrap(cpu(x, [&cos, &sin], rotated)),
        Err([x, cos, sin]) => {
            let [cos, sin] = [cos, sin].map(Tensor::from_dispatch);
            composed(Tensor::from_dispatch(x), cos, sin, rotated)
        }
    }
}

fn composed(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, rotated: usize) -> Tensor<4> {
    let [batch, tokens, heads, width] = x.dims();
    let [rows, half] = cos.dims();
    let dtype = x.dtype();
    let table = |table: Tensor<2>| {
        let times = rotated.div_ceil(rows);
        table
            .unsqueeze::<3>()
            .expand([times, rows, half])
            .reshape([times * rows, half])
            .narrow(0, 0, rotated)
            .reshape([1, rotated, 1, half, 1])
    };
    let (cos, sin) = (table(cos), table(sin));
    let pairs = x
        .clone()
        .narrow(1, 0, rotated)
        .reshape([batch, rotated, heads, half, 2])
        .cast(DType::F32);
    let (a, b) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
    let turned = Tensor::cat(
        vec![
            a.clone() * cos.clone() - b.clone() * sin.clone(),
            a * sin + b * cos,
        ],
        4,
    );
    let turned = turned.reshape([batch, rotated, heads, width]).cast(dtype);
    if rotated == tokens {
        return turned;
    }
    Tensor::cat(vec![turned, x.narrow(1, rotated, tokens - rotated)], 1)
}

fn cpu(x: FlexTensor, [cos, sin]: [&FlexTensor; 2], rotated: usize) -> FlexTensor {
    let shape = x.layout().shape().clone();
    let [_, tokens, heads, width] = shape.dims::<4>();
    let rows = cos.layout().shape()[0];
    let (cos, sin) = (floats(cos), floats(sin));
    let half = width / 2;
    let dtype = x.dtype();
    let mut x = contiguous(x);
    let line = heads * width;
    let lines = (CHUNK / line.max(1)).max(1);
    let turn_lines = |first: usize, values: &mut [f32]| {
        for (at, token) in values.chunks_exact_mut(line).enumerate() {
            let token_at = (first + at) % tokens;
            if token_at >= rotated {
                continue;
            }
            let row = token_at % rows * half;
            let (cos, sin) = (&cos[row..row + half], &sin[row..row + half]);
            for head in token.chunks_exact_mut(width) {
                let (pairs, _) = head.as_chunks_mut::<2>();
                for ((pair, cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    };
    let turn = |values: &mut [f32]| {
        values
            .par_chunks_mut((lines * line).max(1))
            .enumerate()
            .for_each(|(chunk, values)| turn_lines(chunk * lines, values));
    };
    if dtype == DType::F32
        && let Some((start, end)) = x.layout().contiguous_offsets()
        && let Some(storage) = x.try_storage_mut::<f32>()
    {
        turn(&mut storage[start..end]);
        return x;
    }
    let mut values = floats(&x).into_owned();
    turn(&mut values);
    from_floats(values, shape, dtype)
}

/// Turns channels `(a, b)` at a distance of half the width to `(a·cos − b·sin, b·cos + a·sin)`, in
/// f32; the result has the input's dtype.
///
/// # Shapes
/// - `x` and output `[batch, heads, tokens, width]`
/// - `cos` and `sin` `[batch or 1, tokens, width / 2]`, f32, constants that are not on an autodiff
///   device
pub fn rotate_halves(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let [batch, _, tokens, width] = x.dims();
    let [rows, length, half] = cos.dims();
    assert!(
        half * 2 == width
            && length == tokens
            && (rows == 1 || rows == batch)
            && sin.dims() == [rows, length, half],
        "rotate_halves: input {:?}, tables {:?} and {:?}",
        x.dims(),
        cos.dims(),
        sin.dims()
    );
    match plain([cos.into_dispatch(), sin.into_dispatch()]) {
        Ok([cos, sin]) => {
            let run = |[x]: [FlexTensor; 1], tracked: bool| {
                let out = halves_cpu(&x, [&cos, &sin], false);
                (out, tracked.then(|| Angles(cos.clone(), sin.clone())))
            };
            differentiable([x.into_dispatch()], run).unwrap_or_else(|[x]| {
                let tables = [&cos, &sin].map(|table| wrap(table.clone()));
                halves_composed(Tensor::from_dispatch(x), tables)
            })
        }
        Err(tables) => halves_composed(x, tables.map(Tensor::from_dispatch)),
    }
}

/// Cosines and sines of a rotation; its gradient is the rotation back.
#[derive(Clone, Debug)]
struct Angles(FlexTensor, FlexTensor);

impl Saved<1> for Angles {
    fn gradients(self, grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(halves_cpu(&grad, [&self.0, &self.1], true))]
    }
}

fn halves_composed(x: Tensor<4>, tables: [Tensor<3>; 2]) -> Tensor<4> {
    let dtype = x.dtype();
    let half = x.dims()[3] / 2;
    let autodiff = x.device().is_autodiff();
    let [cos, sin] = tables.map(|table| {
        let table = table.unsqueeze_dim::<4>(1);
        if autodiff { table.autodiff() } else { table }
    });
    let x = x.cast(DType::F32);
    let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let turned = vec![
        a.clone() * cos.clone() - b.clone() * sin.clone(),
        b * cos + a * sin,
    ];
    Tensor::cat(turned, 3).cast(dtype)
}

/// As [`rotate_halves`], or back. The values are in the order `[batch, tokens, heads, width]`, in
/// which projections give and take them.
fn halves_cpu(x: &FlexTensor, [cos, sin]: [&FlexTensor; 2], back: bool) -> FlexTensor {
    let [batch, heads, tokens, width] = x.layout().shape().dims::<4>();
    let rows = cos.layout().shape()[0];
    let (cos, sin) = (floats(cos), floats(sin));
    let half = width / 2;
    let sign = if back { -1.0 } else { 1.0 };
    let source = Rows::new(x);
    let line = heads * width;
    let lines = (CHUNK / line.max(1)).max(1);
    let mut out = vec![0.0f32; batch * tokens * line];
    out.par_chunks_mut((lines * line).max(1))
        .enumerate()
        .for_each_init(Vec::new, |scratch, (chunk, values)| {
            for (at, token) in values.chunks_exact_mut(line).enumerate() {
                let (item, position) =
                    ((chunk * lines + at) / tokens, (chunk * lines + at) % tokens);
                let row = (item % rows * tokens + position) * half;
                let angles = cos[row..row + half].iter().zip(&sin[row..row + half]);
                for (head, turned) in token.chunks_exact_mut(width).enumerate() {
                    let run = source.run((item, head), position..position + 1, scratch);
                    let pairs = run.row(0).split_at(half);
                    let pairs = pairs.0.iter().zip(pairs.1);
                    let (first, second) = turned.split_at_mut(half);
                    let turned = first.iter_mut().zip(second);
                    for (((c, d), (a, b)), (cos, sin)) in turned.zip(pairs).zip(angles.clone()) {
                        let sin = sign * sin;
                        *c = a * cos - b * sin;
                        *d = b * cos + a * sin;
                    }
                }
            }
        });
    let ordered = from_floats(out, Shape::new([batch, tokens, heads, width]), x.dtype());
    let layout = ordered.layout().transpose(1, 2);
    ordered.with_layout(layout)
}
