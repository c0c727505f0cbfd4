//! The Q-Former with its projection to the language model.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::config::{MOST, Problems};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::traits::{Connector, Instruction, VisualRows, VisualShape};

use super::{QFormer, QFormerConfig};
use crate::error::{Result, VisionError};

/// Query outputs that the reference's `merge_proj` concatenates (reference implementation).
const MERGED_OUTPUTS: usize = 4;

/// Configuration of [`QFormerConnector`].
#[derive(Config, Debug, PartialEq)]
pub struct QFormerConnectorConfig {
    /// The Q-Former.
    pub qformer: QFormerConfig,
    /// Width of the language model.
    pub d_llm: usize,
    /// Whether to hold `project_down` and `merge_proj`, which the reference's checkpoint has and
    /// its published model does not use.
    #[config(default = false)]
    pub unused_projections: bool,
}

/// The Q-Former and `project_up`: visual tokens to a fixed number of language model embeddings.
#[derive(Module, Debug)]
pub struct QFormerConnector {
    /// The Q-Former.
    pub qformer: QFormer,
    /// To the language model's width.
    pub project_up: Linear,
    /// From the language model's width; in the checkpoint, not used in the forward pass.
    pub project_down: Option<Linear>,
    /// From four concatenated query outputs to the language model's width; in the checkpoint,
    /// not used in the forward pass.
    pub merge_proj: Option<Linear>,
}

impl QFormerConnectorConfig {
    /// The connector of VideoChat-TPO with all weights of its checkpoint (96 queries, 768 →
    /// 4096).
    pub fn videochat_tpo() -> Self {
        Self::new(QFormerConfig::base(), 4096).with_unused_projections(true)
    }

    /// A small connector over [`QFormerConfig::mini`] for a language model of width `d_llm`.
    pub fn mini(d_llm: usize) -> Self {
        Self::new(QFormerConfig::mini(), d_llm)
    }

    /// Creates the connector.
    ///
    /// # Errors
    /// [`VisionError::Config`] when the Q-Former's config does not add up or `d_llm` is zero.
    pub fn init(&self, device: &Device) -> Result<QFormerConnector> {
        let mut problems = Problems::default();
        problems.sizes(&[("d_llm", self.d_llm)], MOST);
        problems.into_result(VisionError::config("Q-Former connector"))?;
        let hidden = self.qformer.hidden_size;
        let linear = |from: usize, to: usize| {
            // PyTorch's default for linear weights.
            let bound = 1.0 / (from as f64).sqrt();
            LinearConfig::new(from, to)
                .with_initializer(Initializer::Uniform {
                    min: -bound,
                    max: bound,
                })
                .init(device)
        };
        Ok(QFormerConnector {
            qformer: self.qformer.init(device)?,
            project_up: linear(hidden, self.d_llm),
            project_down: self.unused_projections.then(|| linear(self.d_llm, hidden)),
            merge_proj: self
                .unused_projections
                .then(|| linear(MERGED_OUTPUTS * hidden, self.d_llm)),
        })
    }
}

impl QFormerConnector {
    /// # Shapes
    /// - features `[batch, tokens, encoder_width]`
    /// - output `[batch, n_query, d_llm]`
    ///
    /// # Errors
    /// As [`QFormer::forward`].
    pub fn forward(
        &self,
        features: Tensor<3>,
        instruction: Option<&Instruction>,
    ) -> Result<Tensor<3>> {
        let queries = self.qformer.forward(features, instruction)?;
        Ok(self.project_up.forward(queries))
    }
}

impl Connector for QFormerConnector {
    /// Every visual becomes the same number of rows, one per query.
    fn connect(
        &self,
        features: Tensor<3>,
        _visuals: &[VisualShape],
        instruction: Option<&Instruction>,
    ) -> tpo_core::Result<VisualRows> {
        Ok(VisualRows::even(self.forward(features, instruction)?))
    }
}
