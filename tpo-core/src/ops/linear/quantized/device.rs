//! Quantised weights on devices other than the CPU: Burn's quantised tensors of the same blocks.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::QTensorOps;
use burn::backend::tensor::{FloatTensor, QuantizedTensor};
use burn::backend::{
    Backend, BackendTensor, Dispatch, DispatchTensor, DispatchTensorKind, TensorMetadata,
};
use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{Bytes, DType, FloatDType, Int, Tensor, TensorData, f16};
use half::slice::HalfFloatSliceExt;
use pulp::bytemuck;

use super::super::quant_format::{GROUP, QuantFormat};

/// What turns elements of four bits from offset binary, as they are packed, to two's complement,
/// as Burn has them, and back. Those of eight bits are two's complement in both.
const fn flip(format: QuantFormat) -> u32 {
    match format {
        QuantFormat::Q8_0 => 0,
        QuantFormat::Q4_0 => 0x8888_8888,
    }
}

/// Burn's name of a format. Its kernels take every element of the two's complement and scales of
/// either sign, though its own quantisation makes neither −8 nor a negative scale.
fn scheme(format: QuantFormat, scale: ScaleDtype) -> QuantScheme {
    let value = match format {
        QuantFormat::Q8_0 => QuantValue::Q8S,
        QuantFormat::Q4_0 => QuantValue::Q4S,
    };
    QuantScheme::default()
        .with_value(value)
        .with_store(QuantStore::PackedU32(0))
        .per_block([GROUP as u8], scale)
}

/// Burn's quantised tensor `[d_out, d_in]` of packed lines `[d_out, words]`, on their device.
pub fn to_blocks(packed: &Tensor<2, Int>, format: QuantFormat, d_in: usize) -> Tensor<2> {
    let device = packed.device().inner();
    let [d_out, words] = packed.dims();
    let f16 = scheme(format, ScaleDtype::F16);
    let scheme = if device.supports_dtype(DType::QFloat(f16)) {
        f16
    } else {
        scheme(format, ScaleDtype::F32)
    };
    let data = packed.to_data().convert_dtype(DType::U32);
    let lines: &[u32] = data.as_slice().unwrap_or_default();
    let bytes = pack_blocks(lines, words, format, d_in, scheme.scale_dtype());
    let data = TensorData::from_bytes(bytes, [d_out, d_in], DType::QFloat(scheme));
    Tensor::from_data(data, &device)
}

/// The packed lines `[d_out, words]` of what [`to_blocks`] gave, on its device.
pub fn from_blocks(blocks: &Tensor<2>, format: QuantFormat) -> Tensor<2, Int> {
    let [d_out, d_in] = blocks.dims();
    let data = blocks.to_data();
    let scale = match data.dtype() {
        DType::QFloat(scheme) => scheme.scale_dtype(),
        _ => unreachable!("blocks are quantised"),
    };
    let lines = unpack_blocks(data.as_bytes(), format, [d_out, d_in], scale);
    let words = lines.len() / d_out.max(1);
    let lines = TensorData::new(lines, [d_out, words]);
    Tensor::from_data(lines, (&blocks.device(), DType::U32))
}

/// Packed lines in Burn's order: the elements of all lines, then all scales.
pub(super) fn pack_blocks(
    lines: &[u32],
    words: usize,
    format: QuantFormat,
    d_in: usize,
    scale: ScaleDtype,
) -> Bytes {
    let (units, flip) = (d_in / format.per_unit(), flip(format));
    let lines = lines.chunks_exact(words).map(|line| line.split_at(units));
    let elements = lines.clone().flat_map(|(elements, _)| elements);
    let mut bytes = Bytes::from_elems(elements.map(|unit| unit ^ flip).collect::<Vec<u32>>());
    let scales = lines.flat_map(|(_, scales)| &bytemuck::cast_slice(scales)[..d_in / GROUP]);
    let scales: Vec<f16> = scales.map(|bits: &u16| f16::from_bits(*bits)).collect();
    match scale {
        ScaleDtype::F16 => bytes.extend_from_byte_slice(bytemuck::cast_slice(&scales)),
        _ => bytes.extend_from_byte_slice(bytemuck::cast_slice(&scales.to_f32_vec())),
    }
    bytes
}

/// The inverse of [`pack_blocks`].
pub(super) fn unpack_blocks(
    bytes: &[u8],
    format: QuantFormat,
    [d_out, d_in]: [usize; 2],
    scale: ScaleDtype,
) -> Vec<u32> {
    let (units, flip) = (d_in / format.per_unit(), flip(format));
    let words = format.words(d_in).unwrap_or_default();
    let (elements, scales) = bytes.split_at(d_out * units * size_of::<u32>());
    let elements: Vec<u32> = bytemuck::pod_collect_to_vec(elements);
    let scales: Vec<f16> = match scale {
        ScaleDtype::F16 => bytemuck::pod_collect_to_vec(scales),
        _ => {
            let scales: Vec<f32> = bytemuck::pod_collect_to_vec(scales);
            scales.into_iter().map(f16::from_f32).collect()
        }
    };
    let mut lines = vec![0u32; d_out * words];
    let scales = scales.chunks_exact(d_in / GROUP);
    let parts = elements.chunks_exact(units).zip(scales);
    for (line, (elements, scales)) in lines.chunks_exact_mut(words).zip(parts) {
        let (to, to_scales) = line.split_at_mut(units);
        for (to, unit) in to.iter_mut().zip(elements) {
            *to = unit ^ flip;
        }
        for (to, scale) in bytemuck::cast_slice_mut(to_scales).iter_mut().zip(scales) {
            *to = scale.to_bits();
        }
    }
    lines
}

/// The elements `[d_out, d_in]` of Burn's quantised tensor as `f32`.
pub fn dequantize_blocks(blocks: &Tensor<2>) -> Tensor<2> {
    let blocks = blocks.clone().into_dispatch();
    Tensor::from_dispatch(Dispatch::dequantize(blocks, FloatDType::F32))
}

/// [`quantized_linear`](super::quantized_linear) for Burn's quantised tensor, on any device. What is
/// kept for the gradient of `x` is the quantised tensor.
///
/// # Shapes
/// - `x` `[.., d_in]`, `blocks` `[d_out, d_in]`, `bias` `[d_out]`
/// - output `[.., d_out]`
pub fn blocks_linear<const D: usize>(
    x: Tensor<D>,
    blocks: &Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [d_out, d_in] = blocks.dims();
    let mut dims = x.dims();
    assert_eq!(
        dims[D - 1],
        d_in,
        "blocks_linear: the input {dims:?} does not fit the weight [{d_out}, {d_in}]"
    );
    dims[D - 1] = d_out;
    let rows = dims[..D - 1].iter().product();
    let y = product(x.reshape([rows, d_in]), blocks);
    let y = match bias {
        Some(bias) => {
            let bias = bias.cast(y.dtype()).unsqueeze();
            y + bias
        }
        None => y,
    };
    y.reshape(dims)
}

/// `x · Wᵀ` for `x` `[rows, d_in]`.
fn product(x: Tensor<2>, blocks: &Tensor<2>) -> Tensor<2> {
    let (input, weight) = (x.clone().into_dispatch(), blocks.clone().into_dispatch());
    let autodiff = input.autodiff;
    let kind = match (input.kind, weight.kind) {
        (DispatchTensorKind::Autodiff(input), weight) => {
            let product = match (*input, weight) {
                #[cfg(feature = "gpu")]
                (DispatchTensorKind::Cube(x), DispatchTensorKind::Cube(w)) => {
                    DispatchTensorKind::Cube(recorded(x, w))
                }
                (DispatchTensorKind::Flex(x), DispatchTensorKind::Flex(w)) => {
                    DispatchTensorKind::Flex(recorded(x, w))
                }
                #[allow(unreachable_patterns)] // others exist only with GPU features
                _ => return composed(x, blocks),
            };
            DispatchTensorKind::Autodiff(Box::new(product))
        }
        #[cfg(feature = "gpu")]
        (DispatchTensorKind::Cube(x), DispatchTensorKind::Cube(w)) => {
            DispatchTensorKind::Cube(plain(x, w))
        }
        (DispatchTensorKind::Flex(x), DispatchTensorKind::Flex(w)) => {
            DispatchTensorKind::Flex(plain(x, w))
        }
        #[allow(unreachable_patterns)] // others exist only with GPU features
        _ => return composed(x, blocks),
    };
    Tensor::from_dispatch(DispatchTensor { kind, autodiff })
}

/// Burn operations, for its other backends: the unpacked weight is kept for the gradient.
fn composed(x: Tensor<2>, blocks: &Tensor<2>) -> Tensor<2> {
    let weight = dequantize_blocks(blocks).cast(x.dtype());
    x.matmul(weight.transpose())
}

fn plain<B: Backend>(x: BackendTensor<B>, weight: BackendTensor<B>) -> BackendTensor<B> {
    BackendTensor::Float(multiply::<B>(x.float(), weight.quantized()))
}

fn recorded<B: Backend>(x: BackendTensor<B>, weight: BackendTensor<B>) -> BackendTensor<B> {
    let (x, node) = x.autodiff().into_parts();
    let weight = weight.quantized();
    let step = Step.prepare::<NoCheckpointing>([node]).compute_bound();
    BackendTensor::Autodiff(match step.stateful() {
        OpsKind::Tracked(prep) => prep.finish(weight.clone(), multiply::<B>(x, weight)),
        OpsKind::UnTracked(prep) => prep.finish(multiply::<B>(x, weight)),
    })
}

/// `x · Wᵀ`.
fn multiply<B: Backend>(x: FloatTensor<B>, weight: QuantizedTensor<B>) -> FloatTensor<B> {
    let weight = B::dequantize(weight, x.dtype().into());
    B::float_matmul(x, B::float_transpose(weight))
}

#[derive(Debug)]
struct Step;

impl<B: Backend> Backward<B, 1> for Step {
    type State = QuantizedTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            let weight = B::dequantize(ops.state, grad.dtype().into());
            grads.register::<B>(parent.id, B::float_matmul(grad, weight));
        }
    }
}
