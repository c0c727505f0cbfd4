//! Pooling of channels-last maps.

use burn::backend::flex::FlexTensor;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Shape, Tensor, module};
use rayon::prelude::*;

use super::attention::Rows;
use super::flex::{from_floats, plain, wrap};

/// Largest value of every 2x2 block of pixels; a last odd row or column is dropped.
///
/// # Shapes
/// - `x` `[batch, height, width, channels]`
/// - output `[batch, height/2, width/2, channels]`
pub fn max_pool_2x2(x: Tensor<4>) -> Tensor<4> {
    match plain([x.into_dispatch()]) {
        Ok([x]) => wrap(max_pool_2x2_cpu(x)),
        Err([x]) => {
            let x = Tensor::<4>::from_dispatch(x).permute([0, 3, 1, 2]);
            module::max_pool2d(x, MaxPoolOptions::new([2, 2])).permute([0, 2, 3, 1])
        }
    }
}

/// [`max_pool_2x2`] of a CPU tensor with any strides.
pub(super) fn max_pool_2x2_cpu(x: FlexTensor) -> FlexTensor {
    let [batch, height, width, channels] = x.layout().shape().dims::<4>();
    let (rows, columns) = (height / 2, width / 2);
    // Read in place as long as the channels of a pixel lie together.
    let pixels = Rows::new(&x);
    let mut out = vec![0.0f32; batch * rows * columns * channels];
    let line = columns * channels;
    out.par_chunks_mut(line.max(1)).enumerate().for_each_init(
        Default::default,
        |scratch: &mut [Vec<f32>; 2], (at, line)| {
            let (image, row) = (at / rows, at % rows);
            let [upper, lower] = scratch;
            let upper = pixels.run((image, 2 * row), 0..width, upper);
            let lower = pixels.run((image, 2 * row + 1), 0..width, lower);
            for (column, out) in line.chunks_exact_mut(channels).enumerate() {
                let (left, right) = (2 * column, 2 * column + 1);
                let (a, b) = (upper.row(left), upper.row(right));
                let (c, d) = (lower.row(left), lower.row(right));
                for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *out = a.max(*b).max(c.max(*d));
                }
            }
        },
    );
    from_floats(out, Shape::new([batch, rows, columns, channels]), x.dtype())
}
