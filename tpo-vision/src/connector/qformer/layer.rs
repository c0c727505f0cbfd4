//! A Q-Former layer.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::Linear;
use tpo_core::ops;

use super::QFormerConfig;
use super::attention::{QFormerAttention, ResidualOutput, linear};

/// First layer of a feed-forward network, with exact (erf) GELU.
#[derive(Module, Debug)]
pub struct QFormerIntermediate {
    /// To the hidden width of the network.
    pub dense: Linear,
}

/// Self-attention over the sequence, cross-attention of the queries (in some layers), then a
/// feed-forward network each for queries and instruction.
#[derive(Module, Debug)]
pub struct QFormerLayer {
    /// Self-attention over queries and instruction.
    pub attention: QFormerAttention,
    /// Cross-attention of the queries to the visual tokens.
    pub crossattention: Option<QFormerAttention>,
    /// Instruction network, first half. Unused without an instruction.
    pub intermediate: QFormerIntermediate,
    /// Instruction network, second half. Unused without an instruction.
    pub output: ResidualOutput,
    /// Query network, first half.
    pub intermediate_query: QFormerIntermediate,
    /// Query network, second half.
    pub output_query: ResidualOutput,
}

impl QFormerIntermediate {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::gelu(self.dense.forward(x))
    }
}

impl QFormerLayer {
    pub(super) fn new(
        config: &QFormerConfig,
        index: usize,
        drop_path: f64,
        device: &Device,
    ) -> Self {
        let (dim, hidden) = (config.hidden_size, config.intermediate_size);
        let intermediate = || QFormerIntermediate {
            dense: linear(config, dim, hidden, device),
        };
        let output = || ResidualOutput::new(config, hidden, drop_path, device);
        Self {
            attention: QFormerAttention::new(config, dim, drop_path, device),
            crossattention: index
                .is_multiple_of(config.cross_attention_freq)
                .then(|| QFormerAttention::new(config, config.encoder_width, drop_path, device)),
            intermediate: intermediate(),
            output: output(),
            intermediate_query: intermediate(),
            output_query: output(),
        }
    }

    /// # Shapes
    /// - x `[batch, n_query + length, hidden_size]`, queries first
    /// - visual `[batch, tokens, encoder_width]`
    /// - bias, added to the self-attention scores, `[batch, 1, 1, n_query + length]`
    /// - output as x
    pub fn forward(
        &self,
        x: Tensor<3>,
        n_query: usize,
        visual: Tensor<3>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let x = self.attention.forward(x.clone(), x, bias);
        let length = x.dims()[1] - n_query;
        let text = (length > 0).then(|| x.clone().narrow(1, n_query, length));
        let mut query = match length {
            0 => x,
            _ => x.narrow(1, 0, n_query),
        };
        if let Some(cross) = &self.crossattention {
            query = cross.forward(query, visual, None);
        }
        let query = self
            .output_query
            .forward(self.intermediate_query.forward(query.clone()), query);
        match text {
            None => query,
            Some(text) => {
                let text = self
                    .output
                    .forward(self.intermediate.forward(text.clone()), text);
                Tensor::cat(vec![query, text], 1)
            }
        }
    }
}
