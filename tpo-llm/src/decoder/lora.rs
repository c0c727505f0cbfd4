//! Linear layer with an optional factored LoRA adapter.
//!
//! The adapter is applied as `x·Wᵀ + scale·(x·Aᵀ)·Bᵀ`: two thin products, never a dense `B·A`,
//! so neither the forward nor the gradient of a frozen `W` grows to its size.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Initializer};
use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::nn::Weight;
use tpo_core::ops::QuantFormat;
use tpo_core::{LoraConfig, ops};

use crate::config::LlmConfig;

/// Of the output layer in every format: it chooses every token, and llama.cpp too has more bits for it than for
/// the blocks.
pub(super) const OUTPUT_FORMAT: QuantFormat = QuantFormat::Q8_0;

/// `y = x·Wᵀ + b`, plus the adapter's part if there is one.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// Base weight `[d_output, d_input]`.
    pub weight: Weight,
    /// Bias `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Adapter.
    pub lora: Option<LoraAdapter>,
}

/// The two factors of an adapter.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// `A` `[rank, d_input]`, uniform in ±1/√d_input (Kaiming with a = √5, as PEFT).
    pub a: Param<Tensor<2>>,
    /// `B` `[d_output, rank]`, zero at first.
    pub b: Param<Tensor<2>>,
    dropout: Dropout,
    scale: f64,
    merged: bool,
}

impl LlmConfig {
    /// The layer `name` with a normal weight, and the adapter that is asked for on it.
    pub(super) fn linear(
        &self,
        name: &str,
        [d_input, d_output]: [usize; 2],
        bias: bool,
        device: &Device,
    ) -> LoraLinear {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        };
        let shape = [d_output, d_input];
        let format = self.quantization.map(|format| match name {
            "lm_head" => OUTPUT_FORMAT,
            _ => format,
        });
        let packed = format.and_then(|format| Weight::to_fill(format, shape, device));
        LoraLinear {
            weight: packed.unwrap_or_else(|| Weight::Float(normal.init(shape, device))),
            bias: bias.then(|| Initializer::Zeros.init([d_output], device)),
            lora: self.adapter(name, shape, device),
        }
    }

    /// The adapter that is asked for on the layer `name` `[d_output, d_input]`.
    pub(super) fn adapter(
        &self,
        name: &str,
        shape: [usize; 2],
        device: &Device,
    ) -> Option<LoraAdapter> {
        let lora = self.lora.as_ref();
        let lora = lora.filter(|l| l.targets.iter().any(|target| target == name));
        lora.map(|l| LoraAdapter::new(l, shape, device))
    }
}

impl LoraAdapter {
    /// For a weight `[d_output, d_input]`.
    fn new(config: &LoraConfig, [d_output, d_input]: [usize; 2], device: &Device) -> Self {
        let bound = 1.0 / (d_input as f64).sqrt();
        Self {
            a: Initializer::Uniform {
                min: -bound,
                max: bound,
            }
            .init([config.rank, d_input], device),
            b: Initializer::Zeros.init([d_output, config.rank], device),
            dropout: DropoutConfig::new(config.dropout).init(),
            scale: config.scale(),
            merged: false,
        }
    }

    /// `scale·B·A` in f32.
    fn delta(&self) -> Tensor<2> {
        let wide = |t: Tensor<2>| t.cast(FloatDType::F32);
        wide(self.b.val()).matmul(wide(self.a.val())) * self.scale
    }
}

impl LoraLinear {
    /// Applies the layer to the last axis of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let adapter = self.lora.as_ref().filter(|l| !l.merged);
        let low = adapter.map(|l| {
            let x = l.dropout.forward(x.clone());
            let a = ops::linear(x, l.a.val().transpose(), None);
            ops::linear(a, l.b.val().transpose(), None) * l.scale
        });
        let y = self.weight.apply(x, self.bias.as_ref().map(|b| b.val()));
        match low {
            Some(low) => y + low,
            None => y,
        }
    }

    /// Whether nothing of the layer is still to be drawn.
    pub(super) fn is_drawn(&self) -> bool {
        let weight = match &self.weight {
            Weight::Float(weight) => weight.is_initialized(),
            Weight::Quantized(_) => true,
        };
        weight && self.lora.as_ref().is_none_or(|l| l.a.is_initialized())
    }

    /// Adds the adapter's product to the base weight; the adapter is kept for
    /// [`LoraLinear::unmerge`] but no longer applied. Merging twice changes nothing. A quantised
    /// weight stays as it is, and its adapter is applied as before.
    pub fn merge(self) -> Self {
        self.fold(true)
    }

    /// Subtracts a merged adapter from the base weight again.
    pub fn unmerge(self) -> Self {
        self.fold(false)
    }

    fn fold(mut self, merged: bool) -> Self {
        let Weight::Float(weight) = self.weight else {
            return self;
        };
        let weight = match self.lora.as_mut().filter(|l| l.merged != merged) {
            None => weight,
            Some(lora) => {
                lora.merged = merged;
                let delta = lora.delta();
                let delta = if merged { delta } else { -delta };
                weight.map(|w| {
                    let (trainable, dtype) = (w.is_require_grad(), w.dtype());
                    let sum = w.detach().cast(FloatDType::F32) + delta;
                    sum.cast(dtype).detach().set_require_grad(trainable)
                })
            }
        };
        self.weight = Weight::Float(weight);
        self
    }

    /// Adds the adapter's product to the base weight and removes the adapter. A quantised weight
    /// is quantised again.
    pub fn bake(self) -> Self {
        let merged = self.merge();
        let weight = match (merged.weight.format(), &merged.lora) {
            (Some(format), Some(lora)) => {
                let sum = merged.weight.val() + lora.delta();
                Weight::Float(Param::from_tensor(sum.detach())).quantize(format)
            }
            _ => merged.weight,
        };
        Self {
            weight,
            bias: merged.bias,
            lora: None,
        }
    }

    /// With a new adapter in place of the one it has, or without one.
    pub(super) fn with_adapter(self, config: Option<&LoraConfig>) -> Self {
        let (shape, device) = (self.weight.shape(), self.weight.device());
        let lora = config.map(|c| LoraAdapter::new(c, shape, &device));
        Self { lora, ..self }
    }

    /// Sets dropout and scale of the adapter; its product stays the same.
    pub(super) fn with_adapter_settings(mut self, config: &LoraConfig) -> Self {
        if let Some(lora) = &mut self.lora {
            lora.dropout = DropoutConfig::new(config.dropout).init();
            let ratio = lora.scale / config.scale();
            if ratio != 1.0 {
                lora.scale = config.scale();
                lora.b = lora.b.clone().map(|b| {
                    let trainable = b.is_require_grad();
                    (b.detach() * ratio).detach().set_require_grad(trainable)
                });
            }
        }
        self
    }
}
