//! Linear maps with a quantised weight: blocks of 32 elements with one scale. The input is rounded to
//! 16 bits a block, and multiplied in integers. The whole weight never exists in a float type.

mod device;
mod integers;
mod products;
#[cfg(test)]
mod tests;
mod unpack;

use std::ops::Range;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{BackendTensor, DispatchTensorKind, Flex};
use burn::tensor::{Bytes, DType, FloatDType, Int, Shape, Tensor, f16};
use half::slice::HalfBitsSliceExt;
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

pub use self::device::{blocks_linear, dequantize_blocks, from_blocks, to_blocks};

use self::unpack::{Q4, Q8, Unpack};
use super::backward::bias_gradient;
use super::quant_format::{GROUP, QuantFormat};
use crate::ops::flex::{Saved, contiguous, differentiable, floats, from_floats};

/// Elements of the rows at a time: rounded they are half of a second-level cache.
const ROWS: usize = 1 << 18;
/// Rows at a time at least: reading the weight is little beside them.
const MANY: usize = 16;
/// Elements of inputs with all outputs that stay in the last-level cache in the gradient, 4 MiB.
const BLOCK: usize = 1 << 20;
/// Elements of such a block for each task.
const STRETCH: usize = 1 << 15;

/// `x · dequantised weight + bias` over the last axis, in `x`'s dtype. Gradients reach `x` and the
/// bias; the weight is fixed.
///
/// On the CPU each block of 32 elements of `x` is rounded to 16 bits (an element by at most 2⁻¹⁵ of
/// the largest magnitude beside it) and multiplied with the integers of the weight; sums are in `f32`. A row's result
/// does not depend on the rows beside it, and a row with an element that is not finite becomes NaN.
/// Gradients are those of the products with the weight's elements. Other devices
/// multiply by [`to_blocks`] of it: make these once and call [`blocks_linear`].
///
/// # Shapes
/// - `x` `[.., d_in]`, `packed` `[d_out, words]` of type `u32`, `bias` `[d_out]`
/// - output `[.., d_out]`
pub fn quantized_linear<const D: usize>(
    x: Tensor<D>,
    packed: Tensor<2, Int>,
    format: QuantFormat,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let dims = x.dims();
    let d_in = dims[D - 1];
    let [d_out, words] = packed.dims();
    assert_eq!(
        format.words(d_in),
        Some(words),
        "quantized_linear: the input {dims:?} and lines of {words} words do not fit ({format:?})"
    );
    let shape = {
        let mut shape = dims.to_vec();
        shape[D - 1] = d_out;
        Shape::from(shape)
    };
    if let Some(weight) = Quantized::new(&packed, format, d_in) {
        let x = x.clone().into_dispatch();
        let y = match bias.clone() {
            None => differentiable([x], |[x], tracked| weight.run(x, None, shape, tracked)).ok(),
            Some(bias) => differentiable([x, bias.into_dispatch()], |[x, bias], tracked| {
                weight.run(x, Some(bias), shape, tracked)
            })
            .ok(),
        };
        if let Some(y) = y {
            return y;
        }
    }
    blocks_linear(x, &to_blocks(&packed, format, d_in), bias)
}

/// The weight `[d_out, d_in]` as `f32`.
pub fn dequantize(packed: Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Tensor<2> {
    dequantize_blocks(&to_blocks(&packed, format, d_in))
}

/// A quantised weight on the CPU.
#[derive(Clone, Debug)]
struct Quantized {
    /// `[d_out, words]`, contiguous `u32`.
    packed: FlexTensor,
    format: QuantFormat,
    d_in: usize,
    d_out: usize,
}

impl Quantized {
    /// `None` if the weight is not on the CPU.
    fn new(packed: &Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Option<Self> {
        let [d_out, _] = packed.dims();
        let packed = match packed.clone().into_dispatch().kind {
            DispatchTensorKind::Flex(BackendTensor::Int(packed)) => packed,
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Flex(BackendTensor::Int(packed)) => packed,
                _ => return None,
            },
            #[allow(unreachable_patterns)] // other variants exist only with GPU features
            _ => return None,
        };
        (packed.dtype() == DType::U32).then(|| Self {
            packed: contiguous(packed),
            format,
            d_in,
            d_out,
        })
    }

    /// All lines, and the words of one.
    fn lines(&self) -> (&[u32], usize) {
        let packed: &[u32] = self.packed.as_slice().unwrap_or_default();
        (packed, packed.len() / self.d_out)
    }

    /// Units of elements and scales of a line.
    #[inline(always)]
    fn line(&self, line: usize) -> (&[u32], &[f16]) {
        let (packed, words) = self.lines();
        let packed = &packed[line * words..][..words];
        let (units, scales) = packed.split_at(self.d_in / self.format.per_unit());
        let scales: &[u16] = bytemuck::cast_slice(scales);
        (units, &scales.reinterpret_cast()[..self.d_in / GROUP])
    }

    /// The output, and what its gradients need if they are `tracked`.
    fn run(
        self,
        x: FlexTensor,
        bias: Option<FlexTensor>,
        shape: Shape,
        tracked: bool,
    ) -> (FlexTensor, Option<Kept>) {
        let (values, bias_values) = (floats(&x), bias.as_ref().map(floats));
        let rows = (ROWS / self.d_in).max(MANY).next_multiple_of(4);
        let mut out = vec![0.0f32; values.len() / self.d_in * self.d_out];
        let parts = out.chunks_mut((rows * self.d_out).max(1));
        for (x, out) in values.chunks(rows * self.d_in).zip(parts) {
            products::apply(x, &self, bias_values.as_deref(), out, Arch::new());
        }
        let out = from_floats(out, shape, x.dtype());
        let kept = tracked.then(|| Kept {
            x_shape: x.layout().shape().clone(),
            bias_dtype: bias.as_ref().map_or(DType::F32, FlexTensor::dtype),
            weight: self,
        });
        (out, kept)
    }

    /// Elements `range`, whole blocks, of a line, as they are arranged when they are unpacked.
    #[inline(always)]
    fn unpack<S: Simd>(&self, s: S, line: usize, range: Range<usize>, dst: &mut [f32]) {
        let per_unit = self.format.per_unit();
        let (units, scales) = self.line(line);
        let units = &units[range.start / per_unit..range.end / per_unit];
        let scales = &scales[range.start / GROUP..range.end / GROUP];
        match self.format {
            QuantFormat::Q8_0 => unpack::widen::<S, Q8, 8>(s, units, scales, dst),
            QuantFormat::Q4_0 => unpack::widen::<S, Q4, 4>(s, units, scales, dst),
        }
    }

    /// Copies whole blocks of unpacked elements back to their own order.
    fn restore(&self, unpacked: &[f32], dst: &mut [f32]) {
        let restore = match self.format {
            QuantFormat::Q8_0 => Q8::restore,
            QuantFormat::Q4_0 => Q4::restore,
        };
        let (dst, _) = dst.as_chunks_mut();
        for (dst, block) in dst.iter_mut().zip(unpacked.as_chunks().0) {
            *dst = restore(block);
        }
    }

    /// `grad · weight` of shape `shape`, for `grad` `[.., d_out]`.
    fn input_gradient(&self, grad: FlexTensor, shape: Shape) -> FlexTensor {
        let dtype = grad.dtype();
        let rows = grad.layout().num_elements() / self.d_out;
        let grad = Flex::float_reshape(contiguous(grad), Shape::new([rows, self.d_out]));
        let grad = Flex::float_cast(grad, FloatDType::F32);
        let width = (BLOCK / self.d_out)
            .next_multiple_of(2 * GROUP)
            .min(self.d_in);
        let mut out = vec![0.0f32; rows * self.d_in];
        for first in (0..self.d_in).step_by(width) {
            let n = width.min(self.d_in - first);
            let mut block = vec![0.0f32; self.d_out * n];
            let lines = (STRETCH / n).max(1);
            block
                .par_chunks_mut(lines * n)
                .enumerate()
                .for_each(|(at, block)| {
                    Arch::new().dispatch(UnpackLines {
                        weight: self,
                        lines: at * lines,
                        inputs: first..first + n,
                        block,
                    });
                });
            let layout = Layout::contiguous(Shape::new([self.d_out, n]));
            let block = FlexTensor::new(Bytes::from_elems(block), layout, DType::F32);
            let product = Flex::float_matmul(grad.clone(), block);
            let product = product.as_slice::<f32>().unwrap_or_default();
            out.par_chunks_mut(self.d_in)
                .zip(product.par_chunks(n))
                .for_each(|(out, product)| self.restore(product, &mut out[first..first + n]));
        }
        from_floats(out, shape, dtype)
    }
}

/// Writes some inputs of successive lines, the first of which is `lines`.
struct UnpackLines<'a> {
    weight: &'a Quantized,
    lines: usize,
    inputs: Range<usize>,
    block: &'a mut [f32],
}

impl WithSimd for UnpackLines<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for (at, dst) in self.block.chunks_exact_mut(self.inputs.len()).enumerate() {
            self.weight
                .unpack(s, self.lines + at, self.inputs.clone(), dst);
        }
    }
}

/// What gradients need: no input, as the weight is fixed.
#[derive(Clone, Debug)]
struct Kept {
    weight: Quantized,
    x_shape: Shape,
    bias_dtype: DType,
}

impl Saved<1> for Kept {
    fn gradients(self, grad: FlexTensor, [x]: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [x.then(|| self.weight.input_gradient(grad, self.x_shape))]
    }
}

impl Saved<2> for Kept {
    fn gradients(self, grad: FlexTensor, [x, bias]: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let d_bias = bias.then(|| bias_gradient(&grad, self.bias_dtype));
        let [d_x] = Saved::<1>::gradients(self, grad, [x]);
        [d_x, d_bias]
    }
}
