//! Rotation of neighbouring channels.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::flex::{contiguous, floats, from_floats, plain, wrap};

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
