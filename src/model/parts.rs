//! The built-in encoders and connectors as one type each, chosen by the tag in a configuration.
//!
//! An encoder or connector of the library is an arm here; your own, from outside, goes into the
//! generic [`TpoModel`](tpo_core::model::TpoModel) as it is.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tpo_core::geometry::Packing;
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::ops::QuantFormat;
use tpo_core::traits::{Connector as Connect, Instruction, VisionEncoder, VisualRows, VisualShape};
use tpo_core::weights::KeyRules;
use tpo_data::ImageTransform;
use tpo_llm::LlmConfig;
use tpo_vision::{
    InternVideo2, InternVideo2Config, MlpConnector, MlpConnectorConfig, OneVisionConnector,
    OneVisionConnectorConfig, QFormerConnector, QFormerConnectorConfig, Siglip, SiglipConfig,
    UmtConfig, VideoEncoder,
};

use super::families::onevision::{self, Names};
use super::families::videochat;
use crate::error::Result;

/// Sizes of a vision encoder: `"vision": { "kind": "umt", .. }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum VisionConfig {
    /// UMT, a video ViT.
    Umt(UmtConfig),
    /// The video tower of InternVideo2.
    #[serde(rename = "internvideo2")]
    InternVideo2(InternVideo2Config),
    /// SigLIP, a ViT over single pictures.
    Siglip(SiglipConfig),
}

impl VisionConfig {
    /// Creates the encoder with random weights.
    ///
    /// # Errors
    /// [`VisionError::Config`](tpo_vision::VisionError::Config).
    pub fn init(&self, device: &Device) -> Result<Vision> {
        Ok(match self {
            Self::Umt(config) => Vision::Umt(VideoEncoder::new(config, device)?),
            Self::InternVideo2(config) => Vision::InternVideo2(config.init(device)?),
            Self::Siglip(config) => Vision::Siglip(config.init(device)?),
        })
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// As [`VisionConfig::init`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Umt(config) => config.validate()?,
            Self::InternVideo2(config) => config.validate()?,
            Self::Siglip(config) => config.validate()?,
        }
        Ok(())
    }

    /// Width of a visual token.
    pub fn dim(&self) -> usize {
        match self {
            Self::Umt(config) => config.encoder_embed_dim,
            Self::InternVideo2(config) => config.embed_dim,
            Self::Siglip(config) => config.hidden_size,
        }
    }

    /// Its attention layers, and the heads of each.
    pub(crate) fn attention(&self) -> (usize, usize) {
        match self {
            Self::Umt(config) => (config.encoder_depth, config.encoder_num_heads),
            Self::InternVideo2(config) => (config.depth, config.num_heads),
            Self::Siglip(config) => (config.num_hidden_layers, config.num_attention_heads),
        }
    }

    /// Side of the square frames in pixels.
    pub fn side(&self) -> usize {
        match self {
            Self::Umt(config) => config.img_size,
            Self::InternVideo2(config) => config.img_size,
            Self::Siglip(config) => config.image_size,
        }
    }

    /// From pictures to the pixels it reads. `antialias` is for encoders that were published with and without;
    /// SigLIP's pictures are always resized with it.
    pub fn transform(&self, antialias: bool) -> ImageTransform {
        let transform = match self {
            Self::Siglip(_) => ImageTransform::siglip(),
            Self::Umt(_) | Self::InternVideo2(_) => {
                ImageTransform::vision().with_antialias(antialias)
            }
        };
        transform.with_size([self.side(); 2])
    }

    /// Frames of a clip, and frames that one token covers.
    pub fn clip(&self) -> (usize, usize) {
        match self {
            // Every picture by itself.
            Self::Siglip(_) => (1, 1),
            Self::Umt(config) => (config.num_frames, config.tubelet_size),
            Self::InternVideo2(config) => (config.num_frames, config.tubelet_size),
        }
    }

    /// Whether it sees every picture by itself.
    pub fn sees_pictures(&self) -> bool {
        matches!(self, Self::Siglip(_))
    }

    /// Tokens along a side of a picture.
    pub fn grid(&self) -> usize {
        let patch = match self {
            Self::Umt(config) => config.patch_size,
            Self::InternVideo2(config) => config.patch_size,
            Self::Siglip(config) => config.patch_size,
        };
        self.side() / patch.max(1)
    }

    /// Visual tokens of so many pictures. The last is shown again where a token would cover more: an
    /// image as often as one covers frames.
    pub fn tokens(&self, pictures: usize) -> usize {
        let class = matches!(self, Self::InternVideo2(_)) as usize;
        let grid = self.grid();
        let steps = pictures.div_ceil(self.clip().1.max(1)).max(1);
        let columns = steps.saturating_mul(grid);
        columns.saturating_mul(grid).saturating_add(class)
    }

    /// How the linear layers of the blocks are quantised, if they are.
    pub(crate) fn quantization(&self) -> Option<QuantFormat> {
        match self {
            Self::Umt(config) => config.quantization,
            Self::InternVideo2(config) => config.quantization,
            Self::Siglip(config) => config.quantization,
        }
    }

    pub(super) fn quantization_mut(&mut self) -> &mut Option<QuantFormat> {
        match self {
            Self::Umt(config) => &mut config.quantization,
            Self::InternVideo2(config) => &mut config.quantization,
            Self::Siglip(config) => &mut config.quantization,
        }
    }

    /// Names of the encoder's parameters in checkpoints; paths count from the encoder.
    pub(super) fn keys(&self, names: Names) -> Result<Vec<KeyRules>> {
        match self {
            Self::Umt(_) => videochat::umt_keys(),
            Self::InternVideo2(_) => Ok(own_names("vision.")),
            Self::Siglip(_) => onevision::tower_keys(names),
        }
    }

    /// UMT's sizes, for what is made for it alone.
    pub fn umt(&self) -> Option<&UmtConfig> {
        match self {
            Self::Umt(config) => Some(config),
            Self::InternVideo2(_) | Self::Siglip(_) => None,
        }
    }
}

/// Sizes of a connector: `"connector": { "kind": "qformer", .. }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum ConnectorConfig {
    /// A Q-Former with its projection: a fixed number of rows per visual.
    #[serde(rename = "qformer")]
    QFormer(QFormerConnectorConfig),
    /// Two linear layers on every visual token: a row per token.
    Mlp(MlpConnectorConfig),
    /// LLaVA-OneVision's: two linear layers, then rows of tiles or frames with newlines.
    #[serde(rename = "onevision")]
    OneVision(OneVisionConnectorConfig),
}

impl ConnectorConfig {
    /// Creates the connector with random weights.
    ///
    /// # Errors
    /// [`VisionError::Config`](tpo_vision::VisionError::Config).
    pub fn init(&self, device: &Device) -> Result<Connector> {
        Ok(match self {
            Self::QFormer(config) => Connector::QFormer(config.init(device)?),
            Self::Mlp(config) => Connector::Mlp(config.init(device)?),
            Self::OneVision(config) => Connector::OneVision(config.init(device)?),
        })
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// As [`ConnectorConfig::init`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::QFormer(config) => config.qformer.validate()?,
            Self::Mlp(_) => {}
            Self::OneVision(config) => config.validate()?,
        }
        Ok(())
    }

    /// Width of a visual token, and of the language model.
    pub fn widths(&self) -> (usize, usize) {
        match self {
            Self::QFormer(config) => (config.qformer.encoder_width, config.d_llm),
            Self::Mlp(config) => (config.d_vision, config.d_llm),
            Self::OneVision(config) => (config.d_vision, config.d_llm),
        }
    }

    /// Rows that it makes of a visual of so many tokens.
    ///
    /// # Errors
    /// As [`Packing::layout`].
    pub fn rows(&self, visual: &VisualShape, tokens: usize) -> tpo_core::Result<usize> {
        match self {
            Self::QFormer(config) => Ok(config.qformer.n_query()),
            Self::Mlp(_) => Ok(tokens),
            Self::OneVision(config) => config.packing.rows(visual),
        }
    }

    /// At least as many rows as it makes of an image, which has so many tokens as one picture.
    pub fn most_image_rows(&self, tokens: usize) -> usize {
        match self {
            Self::QFormer(config) => config.qformer.n_query(),
            Self::Mlp(_) => tokens,
            Self::OneVision(config) => config.packing.most_image_rows(),
        }
    }

    /// How the tokens of a picture or video become rows, where that goes by its size.
    pub fn packing(&self) -> Option<&Packing> {
        match self {
            Self::OneVision(config) => Some(&config.packing),
            Self::QFormer(_) | Self::Mlp(_) => None,
        }
    }

    /// Names of the connector's parameters in checkpoints; paths count from the connector.
    pub(super) fn keys(&self, names: Names) -> Result<Vec<KeyRules>> {
        match self {
            Self::QFormer(_) => videochat::qformer_keys(),
            Self::Mlp(_) => Ok(own_names("connector.")),
            Self::OneVision(_) => Ok(onevision::connector_keys(names)),
        }
    }

    /// Names of the parameters of the language model `llm` in checkpoints, which are those of the base that
    /// the connector is of; paths count from the language model.
    pub(super) fn llm_keys(&self, llm: &LlmConfig, names: Names) -> Result<KeyRules> {
        match self {
            Self::QFormer(_) | Self::Mlp(_) => Ok(videochat::llm_keys()),
            Self::OneVision(_) => onevision::llm_keys(llm, names),
        }
    }

    /// The Q-Former's sizes, for what is made for it alone.
    pub fn qformer(&self) -> Option<&QFormerConnectorConfig> {
        match self {
            Self::QFormer(config) => Some(config),
            Self::Mlp(_) | Self::OneVision(_) => None,
        }
    }
}

/// Names in checkpoints that are the paths in the model.
fn own_names(field: &str) -> Vec<KeyRules> {
    vec![KeyRules::new().owns([field]).prefix(field, "")]
}

/// A built-in vision encoder. An arm has no segment of its own in the paths of parameters.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Vision {
    /// UMT.
    Umt(VideoEncoder),
    /// InternVideo2.
    InternVideo2(InternVideo2),
    /// SigLIP.
    Siglip(Siglip),
}

impl Vision {
    /// The last picture is shown again until an encoder whose tokens cover several has a whole number
    /// of them: an image, and what a sampling by seconds leaves over.
    fn shown(&self, frames: Tensor<5>) -> Tensor<5> {
        let tubelet = match self {
            Self::Umt(encoder) => encoder.encoder.config().tubelet_size,
            Self::InternVideo2(encoder) => encoder.config().tubelet_size,
            Self::Siglip(_) => 1,
        };
        let count = frames.dims()[1];
        match count % tubelet {
            0 => frames,
            over => {
                let last = frames.clone().narrow(1, count - 1, 1);
                Tensor::cat(vec![frames, last.repeat_dim(1, tubelet - over)], 1)
            }
        }
    }
}

impl VisionEncoder for Vision {
    fn encode(&self, frames: Tensor<5>) -> tpo_core::Result<Tensor<3>> {
        let frames = self.shown(frames);
        match self {
            Self::Umt(encoder) => VisionEncoder::encode(encoder, frames),
            Self::InternVideo2(encoder) => encoder.encode(frames),
            Self::Siglip(encoder) => encoder.encode(frames),
        }
    }

    fn encode_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        tape: &mut Tape<'m>,
    ) -> tpo_core::Result<Tensor<3>> {
        let frames = self.shown(frames);
        match self {
            Self::Umt(encoder) => encoder.encode_checkpointed(frames, tape),
            Self::InternVideo2(encoder) => encoder.encode_checkpointed(frames, tape),
            Self::Siglip(encoder) => encoder.encode_checkpointed(frames, tape),
        }
    }

    fn dim(&self) -> usize {
        match self {
            Self::Umt(encoder) => VisionEncoder::dim(encoder),
            Self::InternVideo2(encoder) => encoder.dim(),
            Self::Siglip(encoder) => encoder.dim(),
        }
    }
}

/// A built-in connector. An arm has no segment of its own in the paths of parameters.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Connector {
    /// The Q-Former.
    QFormer(QFormerConnector),
    /// Two linear layers.
    Mlp(MlpConnector),
    /// LLaVA-OneVision's.
    OneVision(OneVisionConnector),
}

impl Connect for Connector {
    fn connect(
        &self,
        features: Tensor<3>,
        visuals: &[VisualShape],
        instruction: Option<&Instruction>,
    ) -> tpo_core::Result<VisualRows> {
        match self {
            Self::QFormer(connector) => connector.connect(features, visuals, instruction),
            Self::Mlp(connector) => connector.connect(features, visuals, instruction),
            Self::OneVision(connector) => connector.connect(features, visuals, instruction),
        }
    }
}
