//! Linear maps with a quantised weight: blocks of 32 elements with one scale, unpacked in
//! registers. The whole weight never exists in a float type.

mod few_rows;
#[cfg(test)]
mod tests;
mod unpack;

use std::ops::Range;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{BackendTensor, DispatchTensorKind, Flex};
use burn::tensor::{Bytes, DType, FloatDType, Int, Shape, Tensor, f16};
use half::slice::HalfBitsSliceExt;
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use self::unpack::{Q4, Q8, Unpack};
use super::composed;
use super::dots::{self, Lines, Widened};
use super::quant_format::{GROUP, QuantFormat};
use super::tile::Arrange;
use crate::ops::flex::{Operands, contiguous, floats, from_floats, operands, wrap, wrap_autodiff};

/// Rows up to which unpacking in registers for each four of them wins over unpacking lines into the
/// cache for all. Both give the same results.
const FEW: usize = 32;
/// Rows at a time at least, where there are many: unpacking a line is little beside them.
const MANY: usize = 128;
/// Elements that stay in the last-level cache, 4 MiB: of rows, and of inputs with all outputs in
/// the gradient.
const BLOCK: usize = 1 << 20;
/// Elements of such a block for each task.
const STRETCH: usize = 1 << 15;

/// `x · dequantised weight + bias` over the last axis, in `x`'s dtype. Gradients reach `x` and the
/// bias; the weight is fixed.
///
/// On the CPU the weight is unpacked in registers (few rows) or some lines at a time (many rows).
/// On other devices it is unpacked as a whole for the call.
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
    let weight = Quantized::new(&packed, format, d_in);
    let y = match (weight, operands([x.clone().into_dispatch()])) {
        (Some(weight), Ok(Operands::Plain([x]))) => wrap(weight.apply(&x, shape)),
        (Some(weight), Ok(Operands::Autodiff([x], context))) => {
            let (x, node) = x.into_parts();
            let x_shape = x.layout().shape().clone();
            let out = weight.apply(&x, shape);
            let step = Backward::<Flex, 1>::prepare::<NoCheckpointing>(Step, [node]);
            let out = match step.compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((weight, x_shape), out),
                OpsKind::UnTracked(prep) => prep.finish(out),
            };
            wrap_autodiff(out, context)
        }
        _ => {
            let weight = dequantize(packed, format, d_in).cast(x.dtype());
            return composed(x, weight.transpose(), bias);
        }
    };
    match bias {
        Some(bias) => {
            let dtype = y.dtype();
            y + bias.cast(dtype).reshape::<D, _>({
                let mut shape = [1; D];
                shape[D - 1] = d_out;
                shape
            })
        }
        None => y,
    }
}

/// The weight `[d_out, d_in]` as `f32`, made of tensor operations: for devices without kernels of
/// ours.
pub fn dequantize(packed: Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Tensor<2> {
    let [d_out, words] = packed.dims();
    let (groups, per_line) = (d_in / GROUP, d_in / format.per_unit());
    let (bits, offset) = match format {
        QuantFormat::Q8_0 => (8, 128),
        QuantFormat::Q4_0 => (4, 8),
    };
    let q = fields(packed.clone().narrow(1, 0, per_line), bits);
    let q = match format {
        // Two's complement to offset binary.
        QuantFormat::Q8_0 => q.bitwise_xor_scalar(offset),
        QuantFormat::Q4_0 => q,
    };
    let q = (q.float().cast(FloatDType::F32) - offset as f32).reshape([d_out, groups, GROUP]);
    let scales = fields(packed.narrow(1, per_line, words - per_line), 16).narrow(1, 0, groups);
    (q * widen_f16(scales).reshape([d_out, groups, 1])).reshape([d_out, d_in])
}

/// The fields of `bits` bits of every word, side by side: `[d_out, words * 32 / bits]`.
fn fields(words: Tensor<2, Int>, bits: usize) -> Tensor<2, Int> {
    let [d_out, count] = words.dims();
    let fields = (0..32 / bits)
        .map(|at| {
            let field = words.clone().bitwise_right_shift_scalar((at * bits) as i64);
            field.bitwise_and_scalar((1i64 << bits) - 1)
        })
        .collect();
    Tensor::stack::<3>(fields, 2).reshape([d_out, count * 32 / bits])
}

/// Finite `f16` bit patterns as `f32`.
fn widen_f16(bits: Tensor<2, Int>) -> Tensor<2> {
    let field = |shift: i64, mask: i64| {
        let field = bits.clone().bitwise_right_shift_scalar(shift);
        field.bitwise_and_scalar(mask)
    };
    let dims = bits.dims();
    let powers: Vec<f32> = (0..32).map(|e| 2f32.powi(i32::max(e, 1) - 25)).collect();
    let powers = Tensor::<1>::from_data(powers.as_slice(), &bits.device());
    let exponent = field(10, 31);
    let power = powers.select(0, exponent.clone().reshape([dims[0] * dims[1]]));
    let hidden = exponent.greater_elem(0).int() * 1024;
    let sign: Tensor<2> = field(15, 1).float() * -2.0 + 1.0;
    let mantissa: Tensor<2> = (field(0, 1023).float() + hidden.float()) * sign;
    mantissa.cast(FloatDType::F32) * power.reshape(dims)
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

    /// Units of elements and scales of a line.
    #[inline(always)]
    fn line(&self, line: usize) -> (&[u32], &[f16]) {
        let packed: &[u32] = self.packed.as_slice().unwrap_or_default();
        let words = packed.len() / self.d_out;
        let packed = &packed[line * words..][..words];
        let (units, scales) = packed.split_at(self.d_in / self.format.per_unit());
        let scales: &[u16] = bytemuck::cast_slice(scales);
        (units, &scales.reinterpret_cast()[..self.d_in / GROUP])
    }

    fn apply(&self, x: &FlexTensor, shape: Shape) -> FlexTensor {
        let values = floats(x);
        let rows = values.len() / self.d_in;
        let out = match rows {
            0 => Vec::new(),
            1..=FEW => few_rows::apply(&values, self, Arch::new()),
            _ => {
                let some = (BLOCK / self.d_in).max(MANY) * self.d_in;
                let mut out = Vec::with_capacity(rows * self.d_out);
                for x in values.chunks(some) {
                    let rows = x.len() / self.d_in;
                    out.append(&mut dots::apply(x, rows, &Widened(self), None, Arch::new()));
                }
                out
            }
        };
        from_floats(out, shape, x.dtype())
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

impl Arrange for Quantized {
    #[inline(always)]
    fn arrange<S: Simd>(&self, _: S, row: &[f32], dst: &mut [f32]) {
        match self.format {
            QuantFormat::Q8_0 => arrange::<Q8, 8>(row, dst),
            QuantFormat::Q4_0 => arrange::<Q4, 4>(row, dst),
        }
    }
}

#[inline(always)]
fn arrange<U: Unpack<W>, const W: usize>(row: &[f32], dst: &mut [f32]) {
    let (dst, _) = dst.as_chunks_mut();
    for (dst, block) in dst.iter_mut().zip(row.as_chunks().0) {
        *dst = U::arrange(block);
    }
}

impl Lines for Quantized {
    fn sizes(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, s: S, line: usize, range: Range<usize>, dst: &mut [f32]) {
        self.unpack(s, line, range, dst);
    }
}

#[derive(Debug)]
struct Step;

impl Backward<Flex, 1> for Step {
    type State = (Quantized, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let (weight, shape) = ops.state;
        if let [Some(parent)] = ops.parents {
            grads.register::<Flex>(parent.id, weight.input_gradient(grad, shape));
        }
    }
}
