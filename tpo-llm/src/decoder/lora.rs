//! Linear layer with an optional factored LoRA adapter.
//!
//! The adapter is applied as `x·Wᵀ + scale·(x·Aᵀ)·Bᵀ`: two thin products, never a dense `B·A`,
//! so neither the forward nor the gradient of a frozen `W` grows to its size.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Initializer};
use burn::tensor::{Device, Tensor};
use tpo_core::ops;

use crate::config::LoraConfig;

/// Configuration of a [`LoraLinear`].
#[derive(Config, Debug)]
pub struct LoraLinearConfig {
    /// Size of the input.
    pub d_input: usize,
    /// Size of the output.
    pub d_output: usize,
    /// Whether there is a bias.
    #[config(default = false)]
    pub bias: bool,
    /// The adapter.
    pub lora: Option<LoraConfig>,
}

/// `y = x·Wᵀ + b`, plus the adapter's part if there is one.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// Base weight `[d_output, d_input]`.
    pub weight: Param<Tensor<2>>,
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

impl LoraLinearConfig {
    /// Creates the layer; the weight is normal with deviation 0.02 (Llama's initialisation).
    pub fn init(&self, device: &Device) -> LoraLinear {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        LoraLinear {
            weight: normal.init([self.d_output, self.d_input], device),
            bias: self
                .bias
                .then(|| Initializer::Zeros.init([self.d_output], device)),
            lora: self
                .lora
                .as_ref()
                .map(|l| LoraAdapter::new(l, self, device)),
        }
    }
}

impl LoraAdapter {
    fn new(config: &LoraConfig, linear: &LoraLinearConfig, device: &Device) -> Self {
        let bound = 1.0 / (linear.d_input as f64).sqrt();
        Self {
            a: Initializer::Uniform {
                min: -bound,
                max: bound,
            }
            .init([config.rank, linear.d_input], device),
            b: Initializer::Zeros.init([linear.d_output, config.rank], device),
            dropout: DropoutConfig::new(config.dropout).init(),
            scale: config.scale(),
            merged: false,
        }
    }

    fn delta(&self) -> Tensor<2> {
        self.b.val().matmul(self.a.val()) * self.scale
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
        let y = ops::linear(
            x,
            self.weight.val().transpose(),
            self.bias.as_ref().map(|b| b.val()),
        );
        match low {
            Some(low) => y + low,
            None => y,
        }
    }

    /// Adds the adapter's product to the base weight; the adapter is kept for
    /// [`LoraLinear::unmerge`] but no longer applied. Merging twice changes nothing.
    pub fn merge(self) -> Self {
        self.fold(true)
    }

    /// Takes a merged adapter out of the base weight again.
    pub fn unmerge(self) -> Self {
        self.fold(false)
    }

    fn fold(mut self, merged: bool) -> Self {
        if let Some(lora) = self.lora.as_mut().filter(|l| l.merged != merged) {
            let delta = lora.delta();
            lora.merged = merged;
            self.weight = self.weight.map(|w| {
                let trainable = w.is_require_grad();
                let sum = if merged {
                    w.detach() + delta
                } else {
                    w.detach() - delta
                };
                sum.detach().set_require_grad(trainable)
            });
        }
        self
    }

    /// Whether the adapter is folded into the weight.
    pub fn is_merged(&self) -> bool {
        self.lora.as_ref().is_some_and(|l| l.merged)
    }
}
