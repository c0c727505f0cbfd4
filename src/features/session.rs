//! The features of one question in a session, computed when a head asks for them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::cancel::CancelToken;
use tpo_core::head::{FeatureSource, HeadSet};
use tpo_data::{MediaLimits, VideoReader};
use tpo_heads::temporal::features::{
    ClipInput, EncoderFeatures, FrameRule, LanguageModelFeatures, TEMPORAL_TEXT_FEATURES,
    TEMPORAL_VIDEO_FEATURES,
};
use tpo_llm::tokenizer::Tokenizer;

use super::{ExtractOptions, FeatureCache, TemporalTowers, extract_reader, extract_video};
use crate::error::Result;
use crate::model::Tpo;
use crate::session::HeadProgress;

/// Which frozen towers the temporal head of a model was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FeatureTowers {
    /// InternVideo2-CLIP, in files of its own: one feature per second (reference implementation).
    InternVideo2,
    /// The model's own vision encoder and language model.
    Own {
        /// Frames per second of video that are encoded.
        frames_per_second: f64,
        /// Frames of a clip. 1 encodes each frame as an image.
        frames_per_clip: usize,
        /// Features of a clip, each of an equal part of its time.
        #[serde(default = "one")]
        features_per_clip: usize,
    },
}

fn one() -> usize {
    1
}

impl FeatureTowers {
    /// The model's own encoder on single frames, twice a second.
    pub fn own() -> Self {
        Self::Own {
            frames_per_second: 2.0,
            frames_per_clip: 1,
            features_per_clip: 1,
        }
    }

    /// Checks that the values make sense, against the encoder's frames per clip and per token.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self, num_frames: usize, tubelet: usize) -> std::result::Result<(), String> {
        let Self::Own {
            frames_per_second,
            frames_per_clip,
            features_per_clip,
        } = self
        else {
            return Ok(());
        };
        if !(frames_per_second.is_finite() && *frames_per_second > 0.0) {
            return Err(format!(
                "features.frames_per_second is {frames_per_second}, expected a positive number"
            ));
        }
        if *frames_per_clip != 1 && *frames_per_clip != num_frames {
            return Err(format!(
                "features.frames_per_clip is {frames_per_clip}, expected 1 or the encoder's \
                 {num_frames}"
            ));
        }
        let steps = frames_per_clip / tubelet.max(1);
        if *features_per_clip == 0 || !steps.is_multiple_of(*features_per_clip) || steps == 0 {
            return Err(format!(
                "features.features_per_clip is {features_per_clip}, expected a divisor of the \
                 {steps} steps in time of {frames_per_clip} frames in tokens of {tubelet}"
            ));
        }
        Ok(())
    }
}

/// Clips that a model's own encoder makes features of; see [`FeatureTowers::Own`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnClips {
    /// Frames per second of video that are encoded.
    pub frames_per_second: f64,
    /// Frames of a clip.
    pub frames_per_clip: usize,
    /// Features of a clip.
    pub features_per_clip: usize,
}

impl FeatureTowers {
    /// Seconds of one row of video features.
    pub fn seconds(&self) -> f64 {
        let Some(clips) = self.own_clips() else {
            return 1.0;
        };
        clips.frames_per_clip as f64 / clips.features_per_clip as f64 / clips.frames_per_second
    }

    /// The clips of a model that uses its own parts.
    pub fn own_clips(&self) -> Option<OwnClips> {
        match *self {
            Self::InternVideo2 => None,
            Self::Own {
                frames_per_second,
                frames_per_clip,
                features_per_clip,
            } => Some(OwnClips {
                frames_per_second,
                frames_per_clip,
                features_per_clip,
            }),
        }
    }
}

impl TemporalTowers {
    /// A model's own vision encoder and language model as towers; they share its weights.
    ///
    /// # Errors
    /// [`HeadsError::Config`](tpo_heads::HeadsError) for a clip that makes no sense.
    pub fn of_model<H: HeadSet>(
        model: &Tpo<H>,
        tokenizer: &Arc<Tokenizer>,
        size: usize,
        clips: OwnClips,
    ) -> Result<Self> {
        let input = ClipInput {
            frames_per_second: clips.frames_per_second,
            frames_per_clip: clips.frames_per_clip,
            features_per_clip: clips.features_per_clip,
            rule: FrameRule::Shown,
            ..ClipInput::one_per_second(size)
        };
        Ok(Self {
            video: Arc::new(EncoderFeatures::new(model.vision.clone(), "vision", input)?),
            text: Arc::new(LanguageModelFeatures::new(
                model.llm.clone(),
                tokenizer.clone(),
                "llm",
            )),
        })
    }
}

/// What video features are made of.
#[derive(Clone)]
pub(crate) enum FeatureVideo {
    /// A whole file, whose features may be in a cache.
    File(PathBuf),
    /// A video that is open.
    Open(Arc<dyn VideoReader>),
}

impl std::fmt::Debug for FeatureVideo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Open(reader) => f.debug_tuple("Open").field(&reader.path()).finish(),
        }
    }
}

/// Features of one video and one question, computed on first use.
#[derive(Debug)]
pub(crate) struct LazyFeatures {
    pub towers: TemporalTowers,
    pub video: FeatureVideo,
    pub query: String,
    pub limits: MediaLimits,
    pub antialias: bool,
    pub cache: Option<FeatureCache>,
    /// The video's features live as long as the media of the session.
    pub memo: Arc<OnceLock<Tensor<2>>>,
    pub progress: Option<HeadProgress>,
    pub cancel: CancelToken,
}

impl LazyFeatures {
    fn extract(&self) -> Result<Tensor<2>> {
        let options = ExtractOptions {
            limits: self.limits.clone(),
            antialias: self.antialias,
            cache: self.cache.as_ref(),
            ..ExtractOptions::default()
        };
        let heard = |done: usize, total: usize| {
            if let Some(progress) = &self.progress {
                (progress.0)("features", done, total);
            }
            !self.cancel.is_cancelled()
        };
        let tower = &*self.towers.video;
        let found = match &self.video {
            FeatureVideo::File(path) => extract_video(path, tower, &options, Some(&heard))?,
            FeatureVideo::Open(reader) => extract_reader(&**reader, tower, &options, Some(&heard))?,
        };
        Ok(found.features)
    }
}

impl FeatureSource for LazyFeatures {
    fn features(&self, name: &str) -> tpo_core::Result<Option<Tensor<2>>> {
        match name {
            TEMPORAL_VIDEO_FEATURES => {
                if let Some(features) = self.memo.get() {
                    return Ok(Some(features.clone()));
                }
                let found = self
                    .extract()
                    .map_err(|e| match self.cancel.is_cancelled() {
                        true => CoreError::Cancelled,
                        false => CoreError::part("features", e),
                    })?;
                Ok(Some(self.memo.get_or_init(|| found).clone()))
            }
            TEMPORAL_TEXT_FEATURES => Ok(Some(self.towers.text.extract(&self.query)?)),
            _ => Ok(None),
        }
    }
}
