//! Convolutions of channels-last maps.

use burn::backend::flex::FlexTensor;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Shape, Tensor, module};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{contiguous, floats, from_floats, plain, wrap};
use super::linear;

/// Geometry of a square convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Default for ConvShape {
    fn default() -> Self {
        ConvShape {
            stride: 1,
            padding: 0,
            groups: 1,
        }
    }
}

impl ConvShape {
    fn outputs(&self, size: usize, kernel: usize) -> usize {
        (size + 2 * self.padding).saturating_sub(kernel) / self.stride + 1
    }
}

/// Two-dimensional convolution over a channels-last map.
///
/// # Shapes
/// - `x` `[batch, height, width, c_in]`, at least as large as the kernel with its padding
/// - `weight` `[c_out, c_in / groups, kernel, kernel]` (PyTorch's layout), `bias` `[c_out]`
/// - output `[batch, (height + 2·padding − kernel) / stride + 1, .., c_out]`
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, shape: ConvShape) -> Tensor<4> {
    let [_, height, width, c_in] = x.dims();
    let [c_out, per_group, kh, kw] = weight.dims();
    assert!(
        shape.stride > 0 && per_group * shape.groups == c_in,
        "conv2d: {c_in} channels, weight {:?}, {shape:?}",
        weight.dims()
    );
    assert!(
        height + 2 * shape.padding >= kh && width + 2 * shape.padding >= kw,
        "conv2d: an image of {height}x{width} is smaller than the kernel {kh}x{kw}"
    );
    if (kh, kw) == (1, 1) && shape == ConvShape::default() {
        return linear(x, weight.reshape([c_out, c_in]).transpose(), Some(bias));
    }
    let depthwise = per_group == 1 && shape.groups == c_out && shape.stride == 1;
    if shape.groups > 1 && !depthwise {
        return composed(x, weight, bias, shape);
    }
    if depthwise {
        let all = [
            x.into_dispatch(),
            weight.into_dispatch(),
            bias.into_dispatch(),
        ];
        return match plain(all) {
            Ok([x, weight, bias]) => wrap(depthwise_cpu(&x, &weight, &bias, shape)),
            Err([x, weight, bias]) => composed(
                Tensor::from_dispatch(x),
                Tensor::from_dispatch(weight),
                Tensor::from_dispatch(bias),
                shape,
            ),
        };
    }
    match plain([x.into_dispatch()]) {
        Ok([x]) => {
            let patches = wrap::<4>(patches_cpu(x, [kh, kw], shape));
            let weight = weight
                .permute([0, 2, 3, 1])
                .reshape([c_out, kh * kw * c_in]);
            linear(patches, weight.transpose(), Some(bias))
        }
        Err([x]) => composed(Tensor::from_dispatch(x), weight, bias, shape),
    }
}

fn composed(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>, shape: ConvShape) -> Tensor<4> {
    let (stride, padding) = ([shape.stride; 2], [shape.padding; 2]);
    let options = ConvOptions::new(stride, padding, [1, 1], shape.groups);
    module::conv2d(x.permute([0, 3, 1, 2]), weight, Some(bias), options).permute([0, 2, 3, 1])
}

/// Transposed convolution with kernel 2 and stride 2: every pixel becomes a block of 2x2.
///
/// # Shapes
/// - `x` `[batch, height, width, c_in]`
/// - `weight` `[c_in, c_out, 2, 2]` (PyTorch's layout), `bias` `[c_out]`
/// - output `[batch, 2·height, 2·width, c_out]`
pub fn up_conv_2x2(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    let [batch, height, width, _] = x.dims();
    let [c_in, c_out, kh, kw] = weight.dims();
    assert_eq!([kh, kw], [2, 2], "up_conv_2x2: kernel");
    let weight = weight.permute([0, 2, 3, 1]).reshape([c_in, 4 * c_out]);
    let bias = bias
        .reshape([1, c_out])
        .expand([4, c_out])
        .reshape([4 * c_out]);
    linear(x, weight, Some(bias))
        .reshape([batch, height, width, 2, 2, c_out])
        .swap_dims(2, 3)
        .reshape([batch, 2 * height, 2 * width, c_out])
}

/// The pixels under the kernel at every output position, `[batch, rows, columns, kh·kw·channels]`.
fn patches_cpu(x: FlexTensor, [kh, kw]: [usize; 2], shape: ConvShape) -> FlexTensor {
    let [batch, height, width, channels] = x.layout().shape().dims::<4>();
    let (rows, columns) = (shape.outputs(height, kh), shape.outputs(width, kw));
    let dtype = x.dtype();
    let x = contiguous(x);
    let data = floats(&x);
    let size = kh * kw * channels;
    let mut out = vec![0.0f32; batch * rows * columns * size];
    out.par_chunks_mut((columns * size).max(1))
        .enumerate()
        .for_each(|(at, line)| {
            let (image, row) = (at / rows, at % rows);
            for (column, patch) in line.chunks_exact_mut(size).enumerate() {
                let left = column * shape.stride;
                // Kernel columns that fall into the image.
                let first = shape.padding.saturating_sub(left).min(kw);
                let last = (width + shape.padding)
                    .saturating_sub(left)
                    .min(kw)
                    .max(first);
                for (ky, part) in patch.chunks_exact_mut(kw * channels).enumerate() {
                    let y = row * shape.stride + ky;
                    if y < shape.padding || y >= height + shape.padding || first == last {
                        continue;
                    }
                    let y = y - shape.padding;
                    let x = left + first - shape.padding;
                    let from = ((image * height + y) * width + x) * channels;
                    let len = (last - first) * channels;
                    part[first * channels..][..len].copy_from_slice(&data[from..from + len]);
                }
            }
        });
    from_floats(out, Shape::new([batch, rows, columns, size]), dtype)
}

/// Every channel with its own kernel.
fn depthwise_cpu(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: ConvShape,
) -> FlexTensor {
    let [batch, height, width, channels] = x.layout().shape().dims::<4>();
    let [_, _, kh, kw] = weight.layout().shape().dims::<4>();
    let (rows, columns) = (shape.outputs(height, kh), shape.outputs(width, kw));
    let data = floats(x);
    let bias = floats(bias);
    let by_channel = floats(weight);
    // `[kh·kw, channels]`, so that a tap is a vector over channels as a pixel is.
    let mut taps = vec![0.0f32; kh * kw * channels];
    for (channel, kernel) in by_channel.chunks_exact(kh * kw).enumerate() {
        for (tap, value) in kernel.iter().enumerate() {
            taps[tap * channels + channel] = *value;
        }
    }
    let arch = Arch::new();
    let mut out = vec![0.0f32; batch * rows * columns * channels];
    out.par_chunks_mut((columns * channels).max(1))
        .enumerate()
        .for_each(|(at, line)| {
            let (image, row) = (at / rows, at % rows);
            for (column, pixel) in line.chunks_exact_mut(channels).enumerate() {
                pixel.copy_from_slice(&bias);
                for ky in 0..kh {
                    let y = row + ky;
                    if y < shape.padding || y >= height + shape.padding {
                        continue;
                    }
                    for kx in 0..kw {
                        let x = column + kx;
                        if x < shape.padding || x >= width + shape.padding {
                            continue;
                        }
                        let from = (image * height + y - shape.padding) * width + x - shape.padding;
                        arch.dispatch(MultiplyAdd {
                            sum: pixel,
                            x: &data[from * channels..][..channels],
                            y: &taps[(ky * kw + kx) * channels..][..channels],
                        });
                    }
                }
            }
        });
    let shape = Shape::new([batch, rows, columns, channels]);
    from_floats(out, shape, x.dtype())
}

/// `sum += x · y`.
struct MultiplyAdd<'a> {
    sum: &'a mut [f32],
    x: &'a [f32],
    y: &'a [f32],
}

impl WithSimd for MultiplyAdd<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (sum, sum_tail) = S::as_mut_simd_f32s(self.sum);
        let (x, x_tail) = S::as_simd_f32s(self.x);
        let (y, y_tail) = S::as_simd_f32s(self.y);
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = s.mul_add_e_f32s(*x, *y, *sum);
        }
        for ((sum, x), y) in sum_tail.iter_mut().zip(x_tail).zip(y_tail) {
            *sum += x * y;
        }
    }
}
