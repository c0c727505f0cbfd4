//! Linear maps with a quantised weight: blocks of 32 elements with one scale, unpacked in
//! registers. The whole weight never exists in a float type.

mod few_rows;
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
use super::blocked::{self, Lines};
use super::composed;
use super::quant_format::{GROUP, QuantFormat};
use crate::ops::flex::{Operands, contiguous, floats, from_floats, operands, wrap, wrap_autodiff};

/// Rows up to which unpacking in registers wins over unpacking blocks for the matrix product.
const FEW: usize = 128;
/// Elements of a block of inputs, with all outputs, in the gradient: 4 MiB, which stays in the
/// last-level cache.
const BLOCK: usize = 1 << 20;
/// Elements of such a block for each task.
const STRETCH: usize = 1 << 15;

/// `x · dequantised weight + bias` over the last axis, in `x`'s dtype. Gradients reach `x` and the
/// bias; the weight is fixed.
///
/// On the CPU the weight is unpacked in registers (few rows) or in blocks of some MiB (many rows).
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
            _ => blocked::apply(&values, rows, self, None),
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

impl Lines for Quantized {
    fn sizes(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    fn by_output(&self) -> bool {
        true
    }

    fn widen(&self, line: usize, range: std::ops::Range<usize>, dst: &mut [f32]) {
        let per_unit = self.format.per_unit();
        let (units, scales) = self.line(line);
        let units = &units[range.start / per_unit..][..dst.len() / per_unit];
        let scales = &scales[range.start / GROUP..];
        for (block, (units, scale)) in dst
            .chunks_mut(GROUP)
            .zip(units.chunks(GROUP / per_unit).zip(scales))
        {
            let scale = scale.to_f32();
            for (dst, &unit) in block.chunks_mut(per_unit).zip(units) {
                self.format.unpack(unit, dst, scale);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData, Tolerance};

    use crate::ops::simd::{Cpu, Fixed};

    const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (((i + seed) * 7919) % 1021) as f32 / 256.0 - 2.0)
            .collect()
    }

    fn weight(format: QuantFormat, d_out: usize, d_in: usize, device: &Device) -> Tensor<2, Int> {
        let packed = format.quantize(&numbers(d_out * d_in, 5), d_in).unwrap();
        let words = format.words(d_in).unwrap();
        Tensor::from_data(
            TensorData::new(packed, [d_out, words]),
            (device, DType::U32),
        )
    }

    fn wide(packed: &Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Vec<f32> {
        let wide = dequantize(packed.clone(), format, d_in);
        wide.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn elements_stay_within_half_a_step() {
        let device = Device::default();
        for format in FORMATS {
            let values = numbers(64 * 96, 5);
            let back = wide(&weight(format, 64, 96, &device), format, 96);
            for (block, back) in values.chunks(GROUP).zip(back.chunks(GROUP)) {
                let peak = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                // Half a step, and the rounding of the scale. The side of the peak has one step
                // more than the other in Q4_0: its far end is a whole step away.
                let limit = match format {
                    QuantFormat::Q8_0 => peak / 254.0 + peak * 5e-4,
                    QuantFormat::Q4_0 => peak / 8.0 + peak * 5e-4,
                };
                for (v, b) in block.iter().zip(back) {
                    assert!((v - b).abs() <= limit, "{format:?}: {v} became {b}");
                }
            }
        }
    }

    /// Unpacked elements are those of tensor operations, to the bit.
    fn unpacks(cpu: impl Cpu) {
        let device = Device::default();
        for format in FORMATS {
            // Less than 16 blocks, and more but no multiple of 16.
            for d_in in [96, 576] {
                let packed = weight(format, 3, d_in, &device);
                let wide = wide(&packed, format, d_in);
                let weight = Quantized::new(&packed, format, d_in).unwrap();
                for inputs in [0..d_in, 32..96] {
                    let mut unpacked = vec![0.0; 2 * inputs.len()];
                    cpu.run(UnpackLines {
                        weight: &weight,
                        lines: 1,
                        inputs: inputs.clone(),
                        block: &mut unpacked,
                    });
                    for (at, line) in unpacked.chunks_exact(inputs.len()).enumerate() {
                        let mut elements = vec![0.0; inputs.len()];
                        weight.restore(line, &mut elements);
                        assert_eq!(elements, &wide[(1 + at) * d_in..][inputs.clone()]);
                    }
                }
            }
        }
    }

    fn check(cpu: impl Cpu) {
        let device = Device::default();
        for format in FORMATS {
            for (d_in, d_out, rows) in [(32, 3, 1), (96, 46, 2), (576, 70, 7), (4096, 9, 3)] {
                let packed = weight(format, d_out, d_in, &device);
                let wide = wide(&packed, format, d_in);
                let weight = Quantized::new(&packed, format, d_in).unwrap();
                let x = numbers(rows * d_in, 77);
                let result = few_rows::apply(&x, &weight, cpu);
                let alone = x.chunks_exact(d_in);
                let alone = alone.flat_map(|row| few_rows::apply(row, &weight, cpu));
                assert!(
                    result.iter().copied().eq(alone),
                    "rows depend on each other"
                );
                for (n, y) in result.iter().enumerate() {
                    let (x, w) = (&x[n / d_out * d_in..], &wide[n % d_out * d_in..]);
                    let terms = (0..d_in).map(|i| f64::from(x[i]) * f64::from(w[i]));
                    let dot: f64 = terms.clone().sum();
                    let bound = 1e-6 * terms.map(f64::abs).sum::<f64>();
                    let error = (f64::from(*y) - dot).abs();
                    assert!(error <= bound, "{format:?}: {y} vs {dot}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set() {
        fn all(cpu: impl Cpu) {
            unpacks(cpu);
            check(cpu);
        }
        all(Arch::new());
        all(Fixed(pulp::Scalar::new()));
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            all(Fixed(v3));
        }
    }

    /// Few rows, many rows and gradients equal the dequantised weight's.
    #[test]
    fn equals_the_dequantised_weight() {
        let device = Device::default().autodiff();
        for format in FORMATS {
            // The last is cut into two blocks of inputs for the gradient.
            for (rows, d_in, d_out) in [(1, 96, 70), (7, 96, 70), (150, 96, 70), (2, 96, 16_400)] {
                let packed = weight(format, d_out, d_in, &device);
                let x = TensorData::new(numbers(2 * rows * d_in, 3), [2, rows, d_in]);
                let bias = TensorData::new(numbers(d_out, 9), [d_out]);
                let run = |quantized: bool| {
                    let x = Tensor::<3>::from_data(x.clone(), &device).require_grad();
                    let bias = Tensor::<1>::from_data(bias.clone(), &device).require_grad();
                    let y = if quantized {
                        quantized_linear(x.clone(), packed.clone(), format, Some(bias.clone()))
                    } else {
                        let wide = dequantize(packed.clone(), format, d_in);
                        composed(x.clone(), wide.transpose(), Some(bias.clone()))
                    };
                    let grads = (y.clone() * y.clone()).mean().backward();
                    let grad_x = x.grad(&grads).unwrap();
                    let grad_bias = bias.grad(&grads).unwrap();
                    [y.into_data(), grad_x.into_data(), grad_bias.into_data()]
                };
                for (ours, composed) in run(true).iter().zip(run(false)) {
                    ours.assert_approx_eq::<f32>(&composed, Tolerance::rel_abs(1e-4, 1e-5));
                }
            }
        }
    }
}
