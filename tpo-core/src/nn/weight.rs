//! The matrix of a linear layer, in a float type or quantised.

use std::ops::Range;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::ops::{self, QuantFormat};

/// Weight of a linear layer. A float weight is the parameter at the layer's `weight`, a quantised
/// one that at `weight.packed`.
#[derive(Module, Debug)]
pub enum Weight {
    /// `[d_output, d_input]`.
    Float(Param<Tensor<2>>),
    /// Blocks of 32 elements with one scale. Fixed: gradients pass through to the input.
    Quantized(QuantizedWeight),
}

/// A quantised weight.
#[derive(Module, Debug)]
pub struct QuantizedWeight {
    /// `[d_output, words]` of type `u32`; see [`QuantFormat`].
    pub packed: Param<Tensor<2, Int>>,
    #[module(skip)]
    format: QuantFormat,
    d_input: usize,
}

impl Weight {
    /// A quantised weight to be filled from a file. Until then it is zero. `None` if lines of
    /// `d_input` elements are no whole blocks.
    pub fn to_fill(
        format: QuantFormat,
        [d_output, d_input]: [usize; 2],
        device: &Device,
    ) -> Option<Self> {
        let shape = [d_output, format.words(d_input)?];
        let zeros = move |device: &Device, _| Tensor::zeros(shape, (device, DType::U32));
        let id = ParamId::new();
        Some(Self::Quantized(QuantizedWeight {
            packed: Param::uninitialized(id, zeros, device.clone(), false, shape.into()),
            format,
            d_input,
        }))
    }

    /// The layer's product, over the last axis.
    ///
    /// # Shapes
    /// - `x` `[.., d_input]`, `bias` `[d_output]`
    /// - output `[.., d_output]`
    pub fn apply<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Self::Float(weight) => ops::linear(x, weight.val().transpose(), bias),
            Self::Quantized(w) => ops::quantized_linear(x, w.packed.val(), w.format, bias),
        }
    }

    /// `[d_output, d_input]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.lazy_shape().dims(),
            Self::Quantized(w) => [w.packed.lazy_shape()[0], w.d_input],
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(weight) => weight.lazy_device(),
            Self::Quantized(w) => w.packed.lazy_device(),
        }
    }

    /// How it is quantised, if it is.
    pub fn format(&self) -> Option<QuantFormat> {
        match self {
            Self::Float(_) => None,
            Self::Quantized(w) => Some(w.format),
        }
    }

    /// The elements `[d_output, d_input]`: the parameter itself, or what a quantised weight stands
    /// for as `f32`.
    pub fn val(&self) -> Tensor<2> {
        match self {
            Self::Float(weight) => weight.val(),
            Self::Quantized(w) => ops::dequantize(w.packed.val(), w.format, w.d_input),
        }
    }

    /// The same weight quantised. It is unchanged if it is so already or if its lines are no whole
    /// blocks.
    pub fn quantize(self, format: QuantFormat) -> Self {
        let Self::Float(weight) = &self else {
            return self;
        };
        let [_, d_input] = self.shape();
        let Some(packed) = pack(weight.val(), format) else {
            return self;
        };
        Self::Quantized(QuantizedWeight {
            packed: Param::initialized(ParamId::new(), packed),
            format,
            d_input,
        })
    }
}

impl From<Tensor<2>> for Weight {
    /// A parameter `[d_output, d_input]`.
    fn from(weight: Tensor<2>) -> Self {
        Self::Float(Param::from_tensor(weight))
    }
}

impl QuantizedWeight {
    /// The elements of some lines, `[lines, d_input]` of type `f32`.
    pub fn elements(&self, lines: Range<usize>) -> Tensor<2> {
        let packed = self.packed.val().slice_dim(0, lines);
        ops::dequantize(packed, self.format, self.d_input)
    }

    /// The lines `ids` `[batch, length]`, as `f32` `[batch, length, d_input]`.
    pub fn lines(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let packed = self.packed.val().select(0, ids.reshape([batch * length]));
        ops::dequantize(packed, self.format, self.d_input).reshape([batch, length, self.d_input])
    }

    /// Lines `[lines, d_input]` as [`packed`](Self::packed) has them; `None` for another width.
    pub fn pack(&self, lines: Tensor<2>) -> Option<Tensor<2, Int>> {
        if lines.dims()[1] != self.d_input {
            return None;
        }
        pack(lines, self.format)
    }
}

/// Lines `[lines, d_input]` quantised; `None` where these are no whole blocks.
fn pack(lines: Tensor<2>, format: QuantFormat) -> Option<Tensor<2, Int>> {
    let ([count, d_input], device) = (lines.dims(), lines.device());
    let values = lines.detach().cast(FloatDType::F32).into_data();
    let packed = format.quantize(values.as_slice::<f32>().ok()?, d_input)?;
    let shape = [count, format.words(d_input)?];
    let packed = TensorData::new(packed, shape);
    Some(Tensor::from_data(packed, (&device, DType::U32)))
}
