//! Trunk and pyramid together.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::config::ImageEncoderConfig;
use super::neck::FpnNeck;
use super::position::sine_encoding;
use super::trunk::Hiera;
use crate::error::Result;

/// The image encoder of SAM 2.
#[derive(Module, Debug)]
pub struct ImageEncoder {
    /// The transformer.
    pub trunk: Hiera,
    /// The feature pyramid.
    pub neck: FpnNeck,
    #[module(skip)]
    config: ImageEncoderConfig,
}

/// Maps of the pyramid.
#[derive(Debug, Clone)]
pub struct ImageFeatures {
    /// Finest first, `[batch, height, width, channels]`; with SAM 2's settings strides 4, 8 and
    /// 16 of the image.
    pub maps: Vec<Tensor<4>>,
}

impl ImageEncoderConfig {
    /// Creates the encoder. Values are drawn on first use.
    ///
    /// # Errors
    /// [`VisionError::Config`](crate::VisionError::Config) when [`validate`](Self::validate)
    /// finds problems.
    pub fn init(&self, device: &Device) -> Result<ImageEncoder> {
        self.validate()?;
        Ok(ImageEncoder {
            trunk: self.trunk.init(device)?,
            neck: FpnNeck::new(self, device),
            config: self.clone(),
        })
    }
}

impl ImageEncoder {
    /// The architecture.
    pub fn config(&self) -> &ImageEncoderConfig {
        &self.config
    }

    /// Encodes images `[batch, 3, height, width]`, normalised with the ImageNet statistics. Sides
    /// are multiples of 32 but need not be those of training nor equal; the position table is
    /// resized.
    ///
    /// # Errors
    /// As [`Hiera::check`].
    pub fn forward(&self, images: Tensor<4>) -> Result<ImageFeatures> {
        Ok(ImageFeatures {
            maps: self.neck.forward(self.trunk.forward(images)?),
        })
    }
}

impl ImageFeatures {
    /// The coarsest map.
    pub fn last(&self) -> Option<&Tensor<4>> {
        self.maps.last()
    }

    /// Sine encoding of the pixels of a map with `channels` channels, `[1, height, width,
    /// channels]` in f32; `None` if there is no such level.
    pub fn position_encoding(&self, level: usize, channels: usize) -> Option<Tensor<4>> {
        let map = self.maps.get(level)?;
        let [_, height, width, _] = map.dims();
        Some(sine_encoding(
            height,
            width,
            channels,
            &map.device().inner(),
        ))
    }
}
