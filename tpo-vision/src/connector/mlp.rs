//! Two-layer MLP connector.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::config::{MOST, Problems};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::ops;
use tpo_core::traits::{Connector, Instruction, VisualRows, VisualShape};

use crate::error::{Result, VisionError};

/// Configuration of [`MlpConnector`].
#[derive(Config, Debug, PartialEq)]
pub struct MlpConnectorConfig {
    /// Width of a visual token.
    pub d_vision: usize,
    /// Width of the language model, and of the hidden layer.
    pub d_llm: usize,
}

/// Linear → GELU → Linear on every visual token ("Improved Baselines with Visual Instruction
/// Tuning", arXiv 2310.03744). The number of tokens does not change. Parameters are named as
/// Hugging Face's LLaVA names them.
#[derive(Module, Debug)]
pub struct MlpConnector {
    /// To the language model's width.
    pub linear_1: Linear,
    /// Within the language model's width.
    pub linear_2: Linear,
}

impl MlpConnectorConfig {
    /// Creates the connector.
    ///
    /// # Errors
    /// [`VisionError::Config`] when a width is zero or beyond any model's.
    pub fn init(&self, device: &Device) -> Result<MlpConnector> {
        let mut problems = Problems::default();
        self.problems(&mut problems);
        problems.into_result(VisionError::config("MLP connector"))?;
        Ok(MlpConnector {
            linear_1: LinearConfig::new(self.d_vision, self.d_llm).init(device),
            linear_2: LinearConfig::new(self.d_llm, self.d_llm).init(device),
        })
    }

    /// Notes widths that cannot be.
    pub(super) fn problems(&self, problems: &mut Problems) {
        problems.sizes(&[("d_vision", self.d_vision), ("d_llm", self.d_llm)], MOST);
    }
}

impl MlpConnector {
    /// # Shapes
    /// - features `[batch, tokens, d_vision]`
    /// - output `[batch, tokens, d_llm]`
    ///
    /// # Errors
    /// [`VisionError::Shape`] when the features have another width.
    pub fn forward(&self, features: Tensor<3>) -> Result<Tensor<3>> {
        project(&self.linear_1, &self.linear_2, features)
    }
}

/// [`MlpConnector::forward`] of layers that lie in another module.
pub(super) fn project(
    linear_1: &Linear,
    linear_2: &Linear,
    features: Tensor<3>,
) -> Result<Tensor<3>> {
    let (_, d_vision) = linear_1.shape();
    if features.dims()[2] != d_vision {
        return Err(VisionError::Shape {
            place: "MLP connector",
            what: "visual features",
            expected: format!("[batch, tokens, {d_vision}]"),
            found: features.dims().to_vec(),
        });
    }
    let hidden = ops::gelu(linear_1.forward(features));
    Ok(linear_2.forward(hidden))
}

impl Connector for MlpConnector {
    /// The instruction is not read.
    fn connect(
        &self,
        features: Tensor<3>,
        _visuals: &[VisualShape],
        _instruction: Option<&Instruction>,
    ) -> tpo_core::Result<VisualRows> {
        Ok(VisualRows::even(self.forward(features)?))
    }
}
