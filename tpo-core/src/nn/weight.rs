//! The matrix of a linear layer, in a float type or quantised.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

use super::QuantizedWeight;
use super::quantized_weight::pack;
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
        let packed = Param::uninitialized(id, zeros, device.clone(), false, shape.into());
        Some(Self::Quantized(QuantizedWeight::new(
            packed, format, d_input,
        )))
    }

    /// The layer's product, over the last axis.
    ///
    /// # Shapes
    /// - `x` `[.., d_input]`, `bias` `[d_output]`
    /// - output `[.., d_output]`
    pub fn apply<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Self::Float(weight) => ops::linear(x, weight.val().transpose(), bias),
            Self::Quantized(w) => w.apply(x, bias),
        }
    }

    /// `[d_output, d_input]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.lazy_shape().dims(),
            Self::Quantized(w) => [w.packed().lazy_shape()[0], w.d_input],
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(weight) => weight.lazy_device(),
            Self::Quantized(w) => w.packed().lazy_device(),
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
            Self::Quantized(w) => w.elements(0..self.shape()[0]),
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
        let packed = Param::initialized(ParamId::new(), packed);
        Self::Quantized(QuantizedWeight::new(packed, format, d_input))
    }
}

impl From<Tensor<2>> for Weight {
    /// A parameter `[d_output, d_input]`.
    fn from(weight: Tensor<2>) -> Self {
        Self::Float(Param::from_tensor(weight))
    }
}
