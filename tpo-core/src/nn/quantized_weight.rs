//! A quantised weight, where it lies.

use std::ops::Range;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, ParamId,
};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::ops::{self, QuantFormat};

/// Name of the parameter.
const PACKED: &str = "packed";
/// Container name that visitors get.
const CONTAINER: &str = "Struct:QuantizedWeight";

/// A quantised weight: packed words on the CPU, Burn's quantised tensor of the same blocks on any
/// other device. As a module it has one parameter, the packed words, wherever it lies: so it is
/// loaded, saved, listed and moved.
#[derive(Clone, Debug)]
pub struct QuantizedWeight {
    held: Held,
    pub(super) format: QuantFormat,
    pub(super) d_input: usize,
}

#[derive(Clone, Debug)]
enum Held {
    /// `[d_output, words]`: on the CPU, and on other devices until there are values.
    Words(Param<Tensor<2, Int>>),
    /// `[d_output, d_input]`, a quantised tensor.
    Blocks(ParamId, Box<Tensor<2>>),
}

impl QuantizedWeight {
    /// Of packed words `[d_output, words]`; see [`QuantFormat`].
    pub(super) fn new(packed: Param<Tensor<2, Int>>, format: QuantFormat, d_input: usize) -> Self {
        let held = hold(packed, format, d_input);
        Self {
            held,
            format,
            d_input,
        }
    }

    /// The packed words `[d_output, words]` of type `u32`; see [`QuantFormat`]. On devices other than
    /// the CPU they are made when they are asked for.
    pub fn packed(&self) -> Param<Tensor<2, Int>> {
        match &self.held {
            Held::Words(packed) => packed.clone(),
            Held::Blocks(id, blocks) => {
                let (format, [d_output, _]) = (self.format, blocks.dims());
                let shape = [d_output, format.words(self.d_input).unwrap_or_default()];
                let device = blocks.device();
                let blocks = blocks.clone();
                let words =
                    move |device: &Device, _| ops::from_blocks(&blocks, format).to_device(device);
                Param::uninitialized(*id, words, device, false, shape.into())
            }
        }
    }

    /// With other packed words.
    pub fn map_packed(
        self,
        change: impl FnOnce(Param<Tensor<2, Int>>) -> Param<Tensor<2, Int>>,
    ) -> Self {
        let (format, d_input) = (self.format, self.d_input);
        match self.held {
            // By value: what is not filled yet only changes its device.
            Held::Words(packed) => Self::new(change(packed), format, d_input),
            Held::Blocks(..) => {
                let packed = change(self.packed());
                if !packed.is_initialized() && packed.lazy_device() == self.packed().lazy_device() {
                    // Nobody asked for the words.
                    return self;
                }
                let _ = packed.val();
                Self::new(packed, format, d_input)
            }
        }
    }

    /// The layer's product; see [`Weight::apply`](super::Weight::apply).
    pub(super) fn apply<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match &self.held {
            Held::Words(packed) => ops::quantized_linear(x, packed.val(), self.format, bias),
            Held::Blocks(_, blocks) => ops::blocks_linear(x, blocks, bias),
        }
    }

    /// The elements of some lines, `[lines, d_input]` of type `f32`.
    pub fn elements(&self, lines: Range<usize>) -> Tensor<2> {
        match &self.held {
            Held::Words(packed) => {
                let packed = packed.val().slice_dim(0, lines);
                ops::dequantize(packed, self.format, self.d_input)
            }
            // Slices of Burn's quantised tensors are quantised again.
            Held::Blocks(_, blocks) => ops::dequantize_blocks(blocks).slice_dim(0, lines),
        }
    }

    /// The lines `ids` `[batch, length]`, as `f32` `[batch, length, d_input]`.
    pub fn lines(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = ids.dims();
        let ids = ids.reshape([batch * length]);
        let lines = match &self.held {
            Held::Words(packed) => {
                ops::dequantize(packed.val().select(0, ids), self.format, self.d_input)
            }
            // As in `elements`: none of them can be taken alone.
            Held::Blocks(_, blocks) => ops::dequantize_blocks(blocks).select(0, ids),
        };
        lines.reshape([batch, length, self.d_input])
    }

    /// Lines `[lines, d_input]` as [`packed`](Self::packed) has them; `None` for another width.
    pub fn pack(&self, lines: Tensor<2>) -> Option<Tensor<2, Int>> {
        if lines.dims()[1] != self.d_input {
            return None;
        }
        pack(lines, self.format)
    }
}

fn hold(packed: Param<Tensor<2, Int>>, format: QuantFormat, d_input: usize) -> Held {
    if packed.lazy_device() == Device::flex() || !packed.is_initialized() {
        return Held::Words(packed);
    }
    let id = packed.id;
    let blocks = ops::to_blocks(&packed.into_value(), format, d_input);
    Held::Blocks(id, Box::new(blocks))
}

impl Module for QuantizedWeight {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.packed().collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.map_packed(|packed| packed.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_packed(|packed| packed.to_device(device))
    }

    /// Nothing of it learns.
    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(PACKED, CONTAINER);
        self.packed().visit(visitor);
        visitor.exit_module(PACKED, CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        mapper.enter_module(PACKED, CONTAINER);
        let mapped = self.map_packed(|packed| Module::map(packed, mapper));
        mapper.exit_module(PACKED, CONTAINER);
        mapped
    }
}

impl ModuleDisplayDefault for QuantizedWeight {
    fn content(&self, content: Content) -> Option<Content> {
        content
            .add_debug_attribute("format", &self.format)
            .add("d_input", &self.d_input)
            .optional()
    }
}

impl ModuleDisplay for QuantizedWeight {}

/// Lines `[lines, d_input]` quantised; `None` where these are no whole blocks.
pub(super) fn pack(lines: Tensor<2>, format: QuantFormat) -> Option<Tensor<2, Int>> {
    let ([count, d_input], device) = (lines.dims(), lines.device());
    let values = lines.detach().cast(FloatDType::F32).into_data();
    let packed = format.quantize(values.as_slice::<f32>().ok()?, d_input)?;
    let shape = [count, format.words(d_input)?];
    let packed = TensorData::new(packed, shape);
    Some(Tensor::from_data(packed, (&device, DType::U32)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{ParamKind, cast_params, module_params};

    /// A weight as another device has it, on the CPU.
    fn on_a_device(device: &Device) -> (QuantizedWeight, TensorData) {
        let (format, d_input) = (QuantFormat::Q8_0, 64);
        let values: Vec<f32> = (0..5 * d_input).map(|i| (i as f32).sin()).collect();
        let values = Tensor::from_data(TensorData::new(values, [5, d_input]), device);
        let packed = pack(values, format).unwrap();
        let blocks = Box::new(ops::to_blocks(&packed, format, d_input));
        let held = Held::Blocks(ParamId::new(), blocks);
        let weight = QuantizedWeight {
            held,
            format,
            d_input,
        };
        (weight, packed.into_data())
    }

    #[test]
    fn visitors_see_packed_words_wherever_it_lies() {
        let (weight, words) = on_a_device(&Device::flex());
        let params = module_params(&weight);
        let [param] = &params[..] else {
            panic!("{params:?}");
        };
        let found = (param.path.as_str(), param.shape.as_slice(), param.kind);
        assert_eq!(found, (PACKED, &[5, 17][..], ParamKind::Int));
        assert_eq!(weight.packed().val().into_data(), words);
        assert_eq!(weight.packed().id, param.id);
        // Mappers that leave words alone do not make them.
        let weight = cast_params(weight, FloatDType::F16);
        assert!(matches!(weight.held, Held::Blocks(..)));
        // What comes to the CPU is packed words again.
        let elements = weight.elements(1..3).into_data();
        let weight = weight.map_packed(|packed| packed.map(|words| words));
        assert!(matches!(weight.held, Held::Words(_)));
        assert_eq!(weight.packed().val().into_data(), words);
        assert_eq!(weight.elements(1..3).into_data(), elements);
    }

    #[test]
    fn both_kinds_give_the_same_layer() {
        let device = Device::flex().autodiff();
        let (weight, _) = on_a_device(&device.clone().inner());
        let words = weight
            .clone()
            .map_packed(|packed| packed.map(|words| words));
        let run = |weight: &QuantizedWeight| {
            // Numbers of 8 bits: packed words round them to 16.
            let x = (0..192).map(|i| (i * 37 % 255 - 127) as f32 / 128.0);
            let x = TensorData::new(x.collect::<Vec<f32>>(), [3, 64]);
            let x = Tensor::<2>::from_data(x, &device).require_grad();
            let y = weight.apply(x.clone(), None);
            let grads = (y.clone() * y.clone()).sum().backward();
            [y.into_data(), x.grad(&grads).unwrap().into_data()]
        };
        for (blocks, words) in run(&weight).iter().zip(run(&words)) {
            let close = burn::tensor::Tolerance::rel_abs(1e-5, 1e-5);
            blocks.assert_approx_eq::<f32>(&words, close);
        }
    }
}
