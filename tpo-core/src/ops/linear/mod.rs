//! Affine maps of the last axis.

mod backward;

mod decode;
mod dots;
mod few_rows;
mod outer;
mod quant_format;
mod quantized;
mod tile;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Tensor, bf16, f16, module};
use pulp::{Arch, bytemuck};
use rayon::prelude::*;

pub use self::quant_format::QuantFormat;
pub use self::quantized::{
    blocks_linear, dequantize, dequantize_blocks, from_blocks, quantized_linear, to_blocks,
};

use self::decode::{Bf16, F16, F32};
use self::dots::{Direct, Widened};
use super::flex::{Operands, contiguous, floats, from_floats, operands, wrap, wrap_autodiff};

/// `x · weight + bias` over the last axis, in `x`'s dtype.
///
/// The weight has Burn's layout; a weight stored as PyTorch does, `[d_out, d_in]`, is passed as its
/// transposed view, which is free and the faster storage for few rows. On the CPU the weight may be
/// of another float dtype than `x`: half-precision weights are widened block by block while they
/// are used, never as a whole.
///
/// # Shapes
/// - `x` `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`
/// - output `[.., d_out]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let dims = x.dims();
    let [d_in, d_out] = weight.dims();
    assert_eq!(
        dims[D - 1],
        d_in,
        "linear: last axis of the input {dims:?} and rows of the weight [{d_in}, {d_out}] differ"
    );
    let shape = {
        let mut shape = dims.to_vec();
        shape[D - 1] = d_out;
        Shape::from(shape)
    };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    match bias {
        None => match operands([x, weight]) {
            Ok(Operands::Plain([x, weight])) => wrap(cpu(x, weight, None, shape)),
            Ok(Operands::Autodiff([x, weight], context)) => {
                wrap_autodiff(backward::linear(x, weight, None, shape), context)
            }
            Err([x, weight]) => composed(
                Tensor::<D>::from_dispatch(x),
                Tensor::from_dispatch(weight),
                None,
            ),
        },
        Some(bias) => match operands([x, weight, bias.into_dispatch()]) {
            Ok(Operands::Plain([x, weight, bias])) => wrap(cpu(x, weight, Some(bias), shape)),
            Ok(Operands::Autodiff([x, weight, bias], context)) => {
                wrap_autodiff(backward::linear(x, weight, Some(bias), shape), context)
            }
            Err([x, weight, bias]) => composed(
                Tensor::<D>::from_dispatch(x),
                Tensor::from_dispatch(weight),
                Some(Tensor::from_dispatch(bias)),
            ),
        },
    }
}

/// Burn operations: differentiable, and fused on GPU devices.
fn composed<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let dtype = x.dtype();
    let weight = weight.cast(dtype);
    let bias = bias.map(|bias| bias.cast(dtype));
    module::linear(x, weight, bias)
}

/// A weight as a matrix in memory: `[d_out, d_in]` or `[d_in, d_out]` with one axis contiguous.
struct Weight<'a, T> {
    data: &'a [T],
    d_in: usize,
    d_out: usize,
    /// Distance between lines: outputs if `by_output`, else inputs.
    stride: usize,
    /// The elements of one output lie together (PyTorch's storage).
    by_output: bool,
}

impl<'a, T> Weight<'a, T> {
    /// `None` if neither axis is contiguous.
    fn new(tensor: &FlexTensor, storage: &'a [T]) -> Option<Self> {
        let layout = tensor.layout();
        let [d_in, d_out] = layout.shape().dims::<2>();
        let (s_in, s_out) = (layout.strides()[0], layout.strides()[1]);
        let by_output = (s_in == 1 || d_in == 1) && (s_out >= d_in as isize || d_out == 1);
        let by_input = (s_out == 1 || d_out == 1) && (s_in >= d_out as isize || d_in == 1);
        if d_in == 0 || d_out == 0 || !(by_output || by_input) {
            return None;
        }
        let (stride, lines, width) = if by_output {
            (s_out, d_out, d_in)
        } else {
            (s_in, d_in, d_out)
        };
        let stride = stride.unsigned_abs().max(width);
        let data = storage.get(layout.start_offset()..)?;
        (data.len() >= (lines - 1) * stride + width).then_some(Weight {
            data,
            d_in,
            d_out,
            stride,
            by_output,
        })
    }

    /// The same weight as 32-bit units of `per_unit` elements; `None` if lines or their width do
    /// not fall on whole units.
    fn units(&self, per_unit: usize) -> Option<Weight<'a, u32>>
    where
        T: bytemuck::Pod,
    {
        let width = if self.by_output {
            self.d_in
        } else {
            self.d_out
        };
        if !width.is_multiple_of(per_unit) || !self.stride.is_multiple_of(per_unit) {
            return None;
        }
        let whole = self.data.len() / per_unit * per_unit;
        Some(Weight {
            data: bytemuck::try_cast_slice(&self.data[..whole]).ok()?,
            d_in: self.d_in,
            d_out: self.d_out,
            stride: self.stride / per_unit,
            by_output: self.by_output,
        })
    }

    /// Elements `range` of line `line`.
    #[inline(always)]
    fn line(&self, line: usize, range: std::ops::Range<usize>) -> &'a [T] {
        &self.data[line * self.stride..][range]
    }
}

fn cpu(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, shape: Shape) -> FlexTensor {
    let [d_in, d_out] = weight.layout().shape().dims::<2>();
    let rows = x.layout().num_elements().checked_div(d_in).unwrap_or(0);
    let dtype = x.dtype();
    if rows > 0
        && let Some(values) = dispatch(&x, &weight, bias.as_ref(), rows)
    {
        return from_floats(values, shape, dtype);
    }

    // Burn's gemm.
    let weight = Flex::float_cast(weight, float_dtype(dtype));
    let x = Flex::float_reshape(contiguous(x), Shape::new([rows, d_in]));
    let mut out = Flex::float_matmul(x, weight);
    if let Some(bias) = bias {
        if dtype != DType::F32 {
            let bias = Flex::float_cast(bias, float_dtype(dtype));
            out = Flex::float_add(out, Flex::float_reshape(bias, Shape::new([1, d_out])));
        } else if let Some(values) = out.try_storage_mut::<f32>() {
            let bias = floats(&bias);
            // About 64 KiB per task.
            let lines = (16_384 / d_out.max(1)).max(1);
            values
                .par_chunks_mut((lines * d_out).max(1))
                .for_each(|chunk| {
                    for line in chunk.chunks_exact_mut(d_out.max(1)) {
                        line.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                    }
                });
        }
    }
    Flex::float_reshape(out, shape)
}

fn float_dtype(dtype: DType) -> burn::tensor::FloatDType {
    match dtype {
        DType::F16 => burn::tensor::FloatDType::F16,
        DType::BF16 => burn::tensor::FloatDType::BF16,
        _ => burn::tensor::FloatDType::F32,
    }
}

/// Rows up to which streaming a weight whose lines are inputs wins over the general matrix product,
/// which is quick for this order, in `f32` and half precision.
const FEW_BY_INPUT: [usize; 2] = [8, 32];
/// Rows up to which our dot products always win over the general matrix product of `f32`, which first
/// rearranges a weight whose lines are outputs.
const DOTS: usize = 128;
/// Rows and elements of the input up to which they do for lines that are not short: of short ones the products
/// cost less than their sums across the lanes, and beside more rows the rearrangement is little.
const DOTS_OF_LONG: [usize; 2] = [1024, 1 << 20];
/// Elements of a line that is not short.
const LONG: usize = 512;

/// Whether [`dots`] should multiply so many rows of `f32` with lines of `d_in` elements.
fn dots_win(rows: usize, d_in: usize) -> bool {
    let [most, elements] = DOTS_OF_LONG;
    rows <= DOTS || (d_in >= LONG && rows <= most && rows * d_in <= elements)
}

/// Runs the kernel for the weight's dtype; `None` if Burn's matrix product should do it.
fn dispatch(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    rows: usize,
) -> Option<Vec<f32>> {
    let call = Call { x, bias, rows };
    match weight.dtype() {
        DType::F32 => call.run::<F32, f32, 2>(&Weight::new(weight, weight.storage())?, false),
        DType::F16 => call.run::<F16, f16, 1>(&Weight::new(weight, weight.storage())?, true),
        DType::BF16 => call.run::<Bf16, bf16, 1>(&Weight::new(weight, weight.storage())?, true),
        _ => None,
    }
}

struct Call<'a> {
    x: &'a FlexTensor,
    bias: Option<&'a FlexTensor>,
    rows: usize,
}

impl Call<'_> {
    fn run<D, T, const U: usize>(&self, weight: &Weight<T>, half: bool) -> Option<Vec<f32>>
    where
        D: decode::Decode<U>,
        T: outer::Element + bytemuck::Pod,
    {
        let (rows, few) = (self.rows, FEW_BY_INPUT[usize::from(half)]);
        let ours = if weight.by_output {
            dots_win(rows, weight.d_in)
        } else {
            rows <= few
        };
        if !half && !ours {
            return None;
        }
        let x = floats(self.x);
        let bias = self.bias.map(floats);
        let bias = bias.as_deref();
        let cpu = Arch::new();
        Some(match weight.units(2 / U) {
            Some(units) if weight.by_output => {
                let lines = Direct::<D, U>::new(&units);
                if rows < D::WIDEN_ONCE {
                    dots::apply(&x, rows, &lines, bias, cpu)
                } else {
                    dots::apply(&x, rows, &Widened(&lines), bias, cpu)
                }
            }
            None if weight.by_output => dots::apply(&x, rows, &Widened(weight), bias, cpu),
            Some(units) if rows <= few => few_rows::apply::<D, U>(&x, rows, &units, bias, cpu),
            _ => outer::apply(&x, rows, weight, bias, cpu),
        })
    }
}
