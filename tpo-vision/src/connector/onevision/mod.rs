//! LLaVA-OneVision's connector (arXiv 2408.03326): two linear layers on every visual token, then rows: an
//! image as a whole and in tiles without their margins, the frames of a video with a quarter of their
//! tokens, and a learned newline where the layout says so.
//!
//! Which rows there are is [`Packing`]'s, on the host; what is in them is [`pack`]'s, on the device.

pub mod pack;

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use tpo_core::config::Problems;
use tpo_core::geometry::{Packing, UnpadRule};
use tpo_core::nn::Linear;
use tpo_core::traits::{Connector, Instruction, VisualRows, VisualShape};

use super::mlp::{MlpConnector, MlpConnectorConfig, project};
use crate::error::{Result, VisionError};

/// Configuration of [`OneVisionConnector`].
#[derive(Config, Debug, PartialEq)]
pub struct OneVisionConnectorConfig {
    /// Width of a visual token.
    pub d_vision: usize,
    /// Width of the language model.
    pub d_llm: usize,
    /// From visual tokens to rows.
    pub packing: Packing,
}

/// Linear → GELU → Linear, and rows with newlines. Parameters are named as transformers names
/// LLaVA-OneVision's.
#[derive(Module, Debug)]
pub struct OneVisionConnector {
    /// To the language model's width.
    pub linear_1: Linear,
    /// Within the language model's width.
    pub linear_2: Linear,
    /// The row that ends lines and visuals, `[d_llm]`.
    pub image_newline: Param<Tensor<1>>,
    #[module(skip)]
    packing: Packing,
}

impl OneVisionConnectorConfig {
    /// Of the published models: SigLIP's 1152 to 896 (0.5B) or 3584 (7B), 27 tokens a side, tiles of 384
    /// pixels on up to 6x6, `anyres_max_9`.
    pub fn one_vision(d_llm: usize, unpad: UnpadRule) -> Self {
        Self::new(1152, d_llm, Packing::one_vision(unpad))
    }

    /// Checks widths and layout.
    ///
    /// # Errors
    /// [`VisionError::Config`].
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        self.projector().problems(&mut problems);
        self.packing.problems(&mut problems);
        problems.into_result(VisionError::config("OneVision connector"))
    }

    /// Creates the connector.
    ///
    /// # Errors
    /// As [`OneVisionConnectorConfig::validate`].
    pub fn init(&self, device: &Device) -> Result<OneVisionConnector> {
        self.validate()?;
        let MlpConnector { linear_1, linear_2 } = self.projector().init(device)?;
        // The published code's: a normal distribution, divided by the root of the width.
        let newline = Initializer::Normal {
            mean: 0.0,
            std: 1.0 / (self.d_llm as f64).sqrt(),
        };
        Ok(OneVisionConnector {
            linear_1,
            linear_2,
            image_newline: newline.init([self.d_llm], device),
            packing: self.packing.clone(),
        })
    }

    fn projector(&self) -> MlpConnectorConfig {
        MlpConnectorConfig::new(self.d_vision, self.d_llm)
    }
}

impl OneVisionConnector {
    /// From visual tokens to rows.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// The visual tokens in the width of the language model.
    ///
    /// # Shapes
    /// - features `[batch, tokens, d_vision]`
    /// - output `[batch, tokens, d_llm]`
    ///
    /// # Errors
    /// [`VisionError::Shape`] when the features have another width.
    pub fn project(&self, features: Tensor<3>) -> Result<Tensor<3>> {
        project(&self.linear_1, &self.linear_2, features)
    }
}

impl Connector for OneVisionConnector {
    /// Visuals may be of different kinds and sizes. The instruction is not read.
    fn connect(
        &self,
        features: Tensor<3>,
        visuals: &[VisualShape],
        _instruction: Option<&Instruction>,
    ) -> tpo_core::Result<VisualRows> {
        let [batch, tokens, width] = features.dims();
        let tile = self.packing.side * self.packing.side;
        let layouts = visuals.iter().map(|visual| self.packing.layout(visual));
        let layouts = layouts.collect::<tpo_core::Result<Vec<_>>>()?;
        let fits = |v: &VisualShape| v.pictures.checked_mul(tile) == Some(tokens);
        if batch == 0 || batch != visuals.len() || !visuals.iter().all(fits) {
            let pictures: Vec<usize> = visuals.iter().map(|v| v.pictures).collect();
            return Err(VisionError::Shape {
                place: "OneVision connector",
                what: "visual features",
                expected: format!(
                    "[visuals, pictures x {tile}, {width}] for visuals of {pictures:?} pictures"
                ),
                found: features.dims().to_vec(),
            }
            .into());
        }
        let projected = self.project(features)?;
        let newline = self.image_newline.val().cast(projected.dtype());
        let rows = layouts.iter().enumerate().map(|(i, layout)| {
            let tokens = projected.clone().narrow(0, i, 1).squeeze_dim(0);
            pack::rows(tokens, layout, &self.packing, &newline)
        });
        Ok(VisualRows {
            rows: Tensor::cat(rows.collect(), 0),
            counts: layouts.iter().map(|layout| layout.rows()).collect(),
        })
    }
}
