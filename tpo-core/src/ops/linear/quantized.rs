//! Linear maps with a quantised weight: blocks of 32 elements with one scale, unpacked in
//! registers. The whole weight never exists in a float type.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{BackendTensor, DispatchTensorKind, Flex};
use burn::tensor::{Bytes, DType, FloatDType, Int, Shape, Tensor, f16};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;

use super::composed;
use super::dots::{self, Lines, Widened};
use super::quant_format::{GROUP, QuantFormat};
use super::tile::Arrange;
use crate::ops::flex::{Operands, contiguous, floats, from_floats, operands, wrap, wrap_autodiff};
use crate::ops::simd::Cpu;

/// Rows per register tile.
const ROWS: usize = 4;
/// Units of the weight per task.
const TASK: usize = 1 << 17;
/// Rows up to which unpacking in registers wins over unpacking blocks for the matrix product.
const FEW: usize = 128;

/// Elements of a block unpacked for gradients: 4 MiB, which stays in the last-level cache.
const BLOCK: usize = 1 << 20;

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

    /// Line `line` as `f32`.
    #[inline(always)]
    fn unpack(&self, line: usize, dst: &mut [f32]) {
        let per_unit = self.format.per_unit();
        let (units, scales) = self.line(line);
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

    fn apply(&self, x: &FlexTensor, shape: Shape) -> FlexTensor {
        let values = floats(x);
        let rows = values.len() / self.d_in;
        let out = match (rows, self.format) {
            (0, _) => Vec::new(),
            (..=FEW, QuantFormat::Q8_0) => few_rows::<Q8, 4>(&values, self, Arch::new()),
            (..=FEW, QuantFormat::Q4_0) => few_rows::<Q4, 8>(&values, self, Arch::new()),
            _ => dots::apply(&values, rows, &Widened(self), None, Arch::new()),
        };
        from_floats(out, shape, x.dtype())
    }

    /// `grad · weight` of shape `shape`, for `grad` `[.., d_out]`.
    fn input_gradient(&self, grad: FlexTensor, shape: Shape) -> FlexTensor {
        let dtype = grad.dtype();
        let rows = grad.layout().num_elements() / self.d_out;
        let grad = Flex::float_reshape(contiguous(grad), Shape::new([rows, self.d_out]));
        let grad = Flex::float_cast(grad, FloatDType::F32);
        let width = (BLOCK / self.d_in).max(64).min(self.d_out);
        let mut sum: Option<FlexTensor> = None;
        for first in (0..self.d_out).step_by(width) {
            let n = width.min(self.d_out - first);
            let mut block = vec![0.0f32; n * self.d_in];
            block
                .par_chunks_mut(self.d_in)
                .enumerate()
                .for_each(|(at, line)| self.unpack(first + at, line));
            let layout = Layout::contiguous(Shape::new([n, self.d_in]));
            let block = FlexTensor::new(Bytes::from_elems(block), layout, DType::F32);
            let part = Flex::float_matmul(grad.narrow(1, first, n), block);
            sum = Some(match sum {
                Some(sum) => Flex::float_add(sum, part),
                None => part,
            });
        }
        let sum = sum.unwrap_or_else(|| {
            from_floats(
                vec![0.0; rows * self.d_in],
                Shape::new([rows, self.d_in]),
                DType::F32,
            )
        });
        Flex::float_cast(Flex::float_reshape(sum, shape), super::float_dtype(dtype))
    }
}

impl Arrange for Quantized {
    #[inline(always)]
    fn arrange<S: Simd>(&self, _: S, row: &[f32], dst: &mut [f32]) {
        dst[..row.len()].copy_from_slice(row);
    }
}

impl Lines for Quantized {
    fn sizes(&self) -> (usize, usize) {
        (self.d_in, self.d_out)
    }

    #[inline(always)]
    fn widen<S: Simd>(&self, _: S, line: usize, dst: &mut [f32]) {
        self.unpack(line, &mut dst[..self.d_in]);
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

/// Unpacks a vector of units into `K` vectors of integers as `f32`: element `k` of every unit.
trait Unpack<const K: usize>: Copy + Send + Sync + 'static {
    fn vectors<S: Simd>(s: S, units: S::u32s) -> [S::f32s; K];
}

/// `2²³`: an integer below it, or-ed into the mantissa, is exact.
const MAGIC: u32 = 0x4b00_0000;

#[inline(always)]
fn unpacked<S: Simd, const K: usize>(s: S, units: S::u32s, offset: f32) -> [S::f32s; K] {
    let bits = 32 / K as u32;
    let mask = s.splat_u32s((1 << bits) - 1);
    let magic = s.splat_u32s(MAGIC);
    let offset = s.splat_f32s(f32::from_bits(MAGIC) + offset);
    let mut out = [s.splat_f32s(0.0); K];
    for (at, out) in out.iter_mut().enumerate() {
        let field = s.wrapping_dyn_shr_u32s(units, s.splat_u32s(at as u32 * bits));
        let value = s.or_u32s(s.and_u32s(field, mask), magic);
        *out = s.sub_f32s(s.transmute_f32s_u32s(value), offset);
    }
    out
}

#[derive(Clone, Copy)]
struct Q8;

impl Unpack<4> for Q8 {
    #[inline(always)]
    fn vectors<S: Simd>(s: S, units: S::u32s) -> [S::f32s; 4] {
        // Two's complement to offset binary.
        unpacked(s, s.xor_u32s(units, s.splat_u32s(0x8080_8080)), 128.0)
    }
}

#[derive(Clone, Copy)]
struct Q4;

impl Unpack<8> for Q4 {
    #[inline(always)]
    fn vectors<S: Simd>(s: S, units: S::u32s) -> [S::f32s; 8] {
        unpacked(s, units, 8.0)
    }
}

/// `[rows, d_out]` products of `x` `[rows, d_in]`.
fn few_rows<U: Unpack<K>, const K: usize>(
    x: &[f32],
    weight: &Quantized,
    cpu: impl Cpu,
) -> Vec<f32> {
    let (lanes, _) = cpu.vector_shape();
    let (d_in, d_out) = (weight.d_in, weight.d_out);
    let rows = x.len() / d_in;
    let arranged: Vec<Vec<f32>> = x
        .chunks_exact(d_in)
        .map(|row| arrange::<K>(row, lanes))
        .collect();
    let per_line = d_in / K;
    let even = d_out.div_ceil(2 * rayon::current_num_threads());
    let width = (TASK / per_line).clamp(1, even.max(1));
    let mut columns = vec![0.0f32; d_out * rows];
    columns
        .par_chunks_mut(width * rows)
        .enumerate()
        .for_each(|(task, out)| {
            cpu.run(Dots::<U, K> {
                x: &arranged,
                weight,
                first: task * width,
                out,
                unpack: std::marker::PhantomData,
            });
        });
    if rows == 1 {
        return columns;
    }
    let mut out = vec![0.0f32; rows * d_out];
    for (output, values) in columns.chunks_exact(rows).enumerate() {
        for (row, &value) in values.iter().enumerate() {
            out[row * d_out + output] = value;
        }
    }
    out
}

/// A row in the order in which units give their elements: for every vector of units, `K` vectors.
/// Padded with zeros to whole vectors.
fn arrange<const K: usize>(row: &[f32], lanes: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; row.len().next_multiple_of(K * lanes)];
    for (out, row) in out.chunks_exact_mut(K * lanes).zip(row.chunks(K * lanes)) {
        for (at, &value) in row.iter().enumerate() {
            out[at % K * lanes + at / K] = value;
        }
    }
    out
}

/// Dot products of some lines with all rows.
struct Dots<'a, U, const K: usize> {
    /// Rows in the order of [`arrange`].
    x: &'a [Vec<f32>],
    weight: &'a Quantized,
    first: usize,
    /// `[lines][rows]`.
    out: &'a mut [f32],
    unpack: std::marker::PhantomData<U>,
}

impl<U: Unpack<K>, const K: usize> WithSimd for Dots<'_, U, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let rows = self.x.len();
        let d_in = self.weight.d_in;
        let per_line = d_in / K;
        let mut narrow = vec![0.0f32; d_in / GROUP];
        // The scale of every unit, padded to whole vectors.
        let mut scales = vec![0.0f32; per_line.next_multiple_of(S::U32_LANES)];
        for (at, out) in self.out.chunks_exact_mut(rows).enumerate() {
            let (units, line_scales) = self.weight.line(self.first + at);
            line_scales.convert_to_f32_slice(&mut narrow);
            match K {
                4 => repeat::<8>(&narrow, &mut scales),
                _ => repeat::<4>(&narrow, &mut scales),
            }
            let (scales, _) = S::as_simd_f32s(&scales);
            let mut row = 0;
            while row < rows {
                let x = &self.x[row..];
                match rows - row {
                    1 => dots::<S, U, K, 1>(s, x, units, scales, &mut out[row..]),
                    2 => dots::<S, U, K, 2>(s, x, units, scales, &mut out[row..]),
                    3 => dots::<S, U, K, 3>(s, x, units, scales, &mut out[row..]),
                    _ => dots::<S, U, K, ROWS>(s, x, units, scales, &mut out[row..]),
                }
                row += ROWS;
            }
        }
    }
}

/// Every value `N` times.
#[inline(always)]
fn repeat<const N: usize>(values: &[f32], out: &mut [f32]) {
    for (out, &value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *out = [value; N];
    }
}

/// Writes the products of one line with `R` rows.
#[inline(always)]
fn dots<S: Simd, U: Unpack<K>, const K: usize, const R: usize>(
    s: S,
    x: &[Vec<f32>],
    units: &[u32],
    scales: &[S::f32s],
    out: &mut [f32],
) {
    let (body, tail) = S::as_simd_u32s(units);
    let x: [&[[S::f32s; K]]; R] =
        std::array::from_fn(|r| S::as_simd_f32s(&x[r]).0.as_chunks::<K>().0);
    let x_body = x.map(|x| &x[..body.len()]);
    let scales_body = &scales[..body.len()];
    let mut acc = [s.splat_f32s(0.0); R];
    for at in 0..body.len() {
        let w = U::vectors(s, body[at]);
        for r in 0..R {
            acc[r] = scaled(s, &w, &x_body[r][at], scales_body[at], acc[r]);
        }
    }
    if !tail.is_empty() {
        let w = U::vectors(s, s.partial_load_u32s(tail));
        for r in 0..R {
            acc[r] = scaled(s, &w, &x[r][body.len()], scales[body.len()], acc[r]);
        }
    }
    for (y, acc) in out.iter_mut().zip(acc) {
        *y = s.reduce_sum_f32s(acc);
    }
}

/// `acc + scale · Σ w[k] · x[k]`.
#[inline(always)]
fn scaled<S: Simd, const K: usize>(
    s: S,
    w: &[S::f32s; K],
    x: &[S::f32s; K],
    scale: S::f32s,
    acc: S::f32s,
) -> S::f32s {
    let mut sum = s.mul_f32s(w[0], x[0]);
    for k in 1..K {
        sum = s.mul_add_e_f32s(w[k], x[k], sum);
    }
    s.mul_add_e_f32s(sum, scale, acc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData, Tolerance};

    use crate::ops::simd::Fixed;

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

    fn check(cpu: impl Cpu) {
        let device = Device::default();
        for format in FORMATS {
            for (d_in, d_out, rows) in [(32, 3, 1), (96, 46, 2), (160, 70, 5), (4096, 9, 3)] {
                let packed = weight(format, d_out, d_in, &device);
                let wide = wide(&packed, format, d_in);
                let weight = Quantized::new(&packed, format, d_in).unwrap();
                let x = numbers(rows * d_in, 77);
                let result = match format {
                    QuantFormat::Q8_0 => few_rows::<Q8, 4>(&x, &weight, cpu),
                    QuantFormat::Q4_0 => few_rows::<Q4, 8>(&x, &weight, cpu),
                };
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
        check(Arch::new());
        check(Fixed(pulp::Scalar::new()));
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            check(Fixed(v3));
        }
    }

    /// Few rows, many rows and gradients equal the dequantised weight's.
    #[test]
    fn equals_the_dequantised_weight() {
        let device = Device::default().autodiff();
        let (d_in, d_out) = (96, 70);
        for format in FORMATS {
            for rows in [1, 7, 150] {
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
