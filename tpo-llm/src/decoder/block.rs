//! A decoder block: attention and a SiLU-gated MLP, each after an RMSNorm.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{RmsNorm, RmsNormConfig};
use tpo_core::ops;

use super::attention::{Pass, SelfAttention};
use super::cache::KvCache;
use super::lora::LoraLinear;
use crate::config::LlmConfig;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// Gate `[intermediate, hidden]`.
    pub gate_proj: LoraLinear,
    /// Up projection `[intermediate, hidden]`.
    pub up_proj: LoraLinear,
    /// Down projection `[hidden, intermediate]`.
    pub down_proj: LoraLinear,
}

impl GatedMlp {
    fn new(config: &LlmConfig, device: &Device) -> Self {
        let (d, ff) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_proj: config.linear("gate_proj", [d, ff], false, device),
            up_proj: config.linear("up_proj", [d, ff], false, device),
            down_proj: config.linear("down_proj", [ff, d], false, device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [width, d] = self.up_proj.weight.shape();
        let gate = |x| self.gate_proj.forward(x);
        let up = |x| self.up_proj.forward(x);
        let drawn = self.gate_proj.is_drawn() && self.up_proj.is_drawn();
        let (gate, up) = ops::together(x, width * d, drawn, gate, up);
        self.down_proj.forward(ops::swiglu(gate, up))
    }
}

/// One layer of the decoder.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention.
    pub self_attn: SelfAttention,
    /// MLP.
    pub mlp: GatedMlp,
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
}

impl Block {
    pub(crate) fn new(config: &LlmConfig, layer: usize, device: &Device) -> Self {
        let norm = || {
            RmsNormConfig::new(config.hidden_size)
                .with_eps(config.rms_norm_eps)
                .init(device)
        };
        Self {
            self_attn: SelfAttention::new(config, layer, device),
            mlp: GatedMlp::new(config, device),
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
        }
    }

    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        pass: &Pass,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Tensor<3> {
        let attended = self
            .self_attn
            .forward(self.input_layernorm.forward(x.clone()), pass, cache);
        let x = ops::add(x, attended);
        let out = self
            .mlp
            .forward(self.post_attention_layernorm.forward(x.clone()));
        ops::add(x, out)
    }

    pub(crate) fn map_linears(self, f: &impl Fn(&str, LoraLinear) -> LoraLinear) -> Self {
        Self {
            self_attn: self.self_attn.map_linears(f),
            mlp: GatedMlp {
                gate_proj: f("gate_proj", self.mlp.gate_proj),
                up_proj: f("up_proj", self.mlp.up_proj),
                down_proj: f("down_proj", self.mlp.down_proj),
            },
            ..self
        }
    }
}
