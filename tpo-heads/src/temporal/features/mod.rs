//! Features of frozen towers, which the temporal head reads beside the task token.
//!
//! CG-DETR localises a query in a video from one vector per second of video and one vector per
//! token of the query. They come from
//!
//! - a [`ClipFeatureExtractor`] and a [`QueryFeatureExtractor`]: InternVideo2-CLIP's towers
//!   ([`InternVideo2Features`], [`TextTowerFeatures`]) as in the reference implementation, or a
//!   small model's own encoder and language model ([`ClipTower::of_encoder`],
//!   [`LanguageModelFeatures`]);
//! - or files, [`PrecomputedOptions::read`], as the datasets of moment retrieval ship them.
//!
//! Towers are frozen: they always run without autodiff, whatever device they were created on, and
//! what they return is a constant of any graph.

mod clip;
mod identity;
mod internvideo2;
mod precomputed;
mod query;

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::head::FeatureSource;

pub use clip::{ClipFeatureExtractor, ClipInput, ClipTower, FrameRule, InternVideo2Features};
pub use identity::weights_fingerprint;
pub use internvideo2::{CLIP_TEMPERATURE, InternVideo2Files};
pub use precomputed::{FeatureMatrix, PrecomputedOptions, read_features};
pub use query::{LanguageModelFeatures, QueryFeatureExtractor, TextTowerFeatures};

/// Name under which the temporal head asks for the video's features `[seconds, width]`.
pub const TEMPORAL_VIDEO_FEATURES: &str = "temporal.video";
/// Name under which the temporal head asks for the query's features `[tokens, width]`.
pub const TEMPORAL_TEXT_FEATURES: &str = "temporal.text";

/// Added to a row's norm before it is divided by (CG-DETR's data loader).
const L2_EPS: f64 = 1e-5;

/// Features of one video and one query, under the names the temporal head asks for.
#[derive(Debug, Clone, Default)]
pub struct TemporalFeatures {
    /// `[seconds, width]`.
    pub video: Option<Tensor<2>>,
    /// `[tokens, width]`.
    pub text: Option<Tensor<2>>,
}

impl FeatureSource for TemporalFeatures {
    fn features(&self, name: &str) -> tpo_core::Result<Option<Tensor<2>>> {
        Ok(match name {
            TEMPORAL_VIDEO_FEATURES => self.video.clone(),
            TEMPORAL_TEXT_FEATURES => self.text.clone(),
            _ => None,
        })
    }
}

/// Appends to row `i` of `n` where its clip starts and ends as a fraction of the video, `i / n` and
/// `i / n + 1 / n` (reference implementation).
///
/// # Shapes
/// - features `[n, width]`, output `[n, width + 2]`
pub fn with_endpoints(features: Tensor<2>) -> Tensor<2> {
    let [n, _] = features.dims();
    let step = 1.0 / n.max(1) as f32;
    let ends: Vec<f32> = (0..n)
        .map(|i| i as f32 / n as f32)
        .flat_map(|start| [start, start + step])
        .collect();
    let device = features.device();
    let ends = Tensor::<2>::from_data(TensorData::new(ends, [n, 2]), (&device, features.dtype()));
    Tensor::cat(vec![features, ends], 1)
}

/// The device without autodiff of a module's parameters.
fn plain_device<M: burn::module::Module>(module: &M) -> Device {
    let device = module.devices().into_iter().next().unwrap_or_default();
    if device.is_autodiff() {
        device.inner()
    } else {
        device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_fractions_of_the_video() {
        let features = Tensor::<2>::zeros([4, 1], &Device::flex());
        let values: Vec<f32> = with_endpoints(features).into_data().iter::<f32>().collect();
        let expected = [
            0.0, 0.0, 0.25, 0.0, 0.25, 0.5, 0.0, 0.5, 0.75, 0.0, 0.75, 1.0,
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_source_answers_to_the_names_of_the_head() {
        let features = TemporalFeatures {
            video: Some(Tensor::zeros([3, 2], &Device::flex())),
            text: None,
        };
        let video = features.features(TEMPORAL_VIDEO_FEATURES).unwrap();
        assert_eq!(video.unwrap().dims(), [3, 2]);
        assert!(features.features(TEMPORAL_TEXT_FEATURES).unwrap().is_none());
        assert!(features.features("other").unwrap().is_none());
    }
}
