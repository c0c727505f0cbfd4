//! Self-attention within square windows of an image.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Shape, Tensor};

use super::cpu::solve;
use super::problem::{Problem, Rows, Windows};
use super::visibility::Visibility;
use super::{AttentionOptions, attention};
use crate::ops::flex::{contiguous, floats, from_floats, plain, wrap};
use crate::ops::pool::{max_pool_2x2, max_pool_2x2_cpu as pool_cpu};

/// How [`window_attention`] attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAttention {
    /// Number of heads.
    pub heads: usize,
    /// Side of a window in pixels; `None`: the whole image is one window.
    pub window: Option<usize>,
    /// Queries are max-pooled over 2x2 pixels first, which halves the sides of the output.
    pub pool: bool,
}

/// Multi-head self-attention within windows, from projected queries, keys and values.
///
/// Where the windows do not tile the image they reach beyond its lower and right edge. Pixels
/// there have the query, key and value `padding`, take part as keys, and are cut off afterwards.
/// This is what padding the image with zeros *before* a projection with bias `padding` amounts to,
/// without projecting the padding. On the CPU windows are read where they lie.
///
/// # Shapes
/// - `qkv` `[batch, height, width, 3·dim]`, query, key and value one after the other
/// - `padding` `[3·dim]`
/// - output `[batch, height, width, dim]`, with `pool` `[batch, height/2, width/2, dim]` (rounded
///   down)
///
/// With `pool` the side of a window must be even.
pub fn window_attention(qkv: Tensor<4>, padding: Tensor<1>, options: WindowAttention) -> Tensor<4> {
    let [_, height, width, triple] = qkv.dims();
    assert!(
        triple % (3 * options.heads) == 0 && padding.dims() == [triple],
        "window_attention: {triple} channels are not queries, keys and values of {} heads, or \
         the padding {:?} differs",
        options.heads,
        padding.dims()
    );
    assert!(
        options
            .window
            .is_none_or(|w| w > 0 && !(options.pool && w % 2 == 1)),
        "window_attention: window {:?} cannot be pooled",
        options.window
    );
    // Pooling over the edge mixes pixels with padding; only then windows are built first.
    let mixed = options.pool && options.window.is_some() && (height % 2 == 1 || width % 2 == 1);
    if mixed {
        return composed(qkv, padding, options);
    }
    match plain([qkv.into_dispatch(), padding.into_dispatch()]) {
        Ok([qkv, padding]) => {
            let q = options.pool.then(|| {
                let dim = triple / 3;
                pool_cpu(qkv.clone().with_layout(qkv.layout().narrow(3, 0, dim)))
            });
            wrap(cpu(qkv, q.as_ref(), &padding, options))
        }
        Err([qkv, padding]) => composed(
            Tensor::from_dispatch(qkv),
            Tensor::from_dispatch(padding),
            options,
        ),
    }
}

fn cpu(
    qkv: FlexTensor,
    pooled: Option<&FlexTensor>,
    padding: &FlexTensor,
    options: WindowAttention,
) -> FlexTensor {
    let qkv = contiguous(qkv);
    let [images, height, width, triple] = qkv.layout().shape().dims::<4>();
    let dim = triple / 3;
    let heads = options.heads;
    let head_dim = dim / heads;
    let halve = |x: usize| if options.pool { x / 2 } else { x };
    let (out_height, out_width) = (halve(height), halve(width));
    // The whole image as one window.
    let (k_len, q_len, keys, queries) = match options.window {
        Some(side) => (
            side * side,
            halve(side) * halve(side),
            Windows::new(height, width, side),
            Windows::new(out_height, out_width, halve(side)),
        ),
        None => (
            height * width,
            out_height * out_width,
            Windows::whole(height, width),
            Windows::whole(out_height, out_width),
        ),
    };
    let padding = floats(padding);
    let part = |part: usize| {
        let place = (part * dim, triple, head_dim);
        Rows::windowed(&qkv, place, keys, &padding[part * dim..][..dim])
    };
    let q = match pooled {
        None => part(0),
        Some(pooled) => Rows::windowed(pooled, (0, dim, head_dim), queries, &padding[..dim]),
    };
    let p = Problem {
        q,
        k: part(1),
        v: part(2),
        batch: images * keys.count(),
        heads,
        kv_heads: heads,
        q_len,
        k_len,
        scale: ((head_dim as f64).powf(-0.5) * std::f64::consts::LOG2_E) as f32,
        visibility: Visibility::new(&AttentionOptions::default(), q_len, k_len),
        padding: None,
        bias: None,
        windows: Some(queries),
    };
    let shape = Shape::new([images, out_height, out_width, dim]);
    from_floats(solve(&p).out, shape, qkv.dtype())
}

/// From other operations: windows are copied out, attended to and put together.
fn composed(qkv: Tensor<4>, padding: Tensor<1>, options: WindowAttention) -> Tensor<4> {
    let [batch, height, width, triple] = qkv.dims();
    let dim = triple / 3;
    let heads = options.heads;
    let halve = |x: usize| if options.pool { x / 2 } else { x };
    let (windows, count, side) = match options.window {
        None => (qkv, [1, 1], [height, width]),
        Some(side) => {
            let count = [height.div_ceil(side), width.div_ceil(side)];
            let mut x = qkv;
            for (axis, extent) in [(1, height), (2, width)] {
                let extra = count[axis - 1] * side - extent;
                if extra > 0 {
                    let mut shape = x.dims();
                    shape[axis] = extra;
                    let fill = padding.clone().reshape([1, 1, 1, triple]).expand(shape);
                    x = Tensor::cat(vec![x, fill], axis);
                }
            }
            let windows = x
                .reshape([batch, count[0], side, count[1], side, triple])
                .swap_dims(2, 3)
                .reshape([batch * count[0] * count[1], side, side, triple]);
            (windows, count, [side, side])
        }
    };
    let n = batch * count[0] * count[1];
    let split = |x: Tensor<4>| {
        let [_, h, w, _] = x.dims();
        x.reshape([n, h * w, heads, dim / heads]).swap_dims(1, 2)
    };
    let mut q = windows.clone().narrow(3, 0, dim);
    if options.pool {
        q = max_pool_2x2(q);
    }
    let out = attention(
        split(q),
        split(windows.clone().narrow(3, dim, dim)),
        split(windows.narrow(3, 2 * dim, dim)),
        AttentionOptions::default(),
    );
    let side = side.map(halve);
    let out = out
        .swap_dims(1, 2)
        .reshape([batch, count[0], count[1], side[0], side[1], dim])
        .swap_dims(2, 3)
        .reshape([batch, count[0] * side[0], count[1] * side[1], dim]);
    let (height, width) = (halve(height), halve(width));
    if out.dims() == [batch, height, width, dim] {
        out
    } else {
        out.slice([0..batch, 0..height, 0..width, 0..dim])
    }
}
