//! The features of one question in a session, computed when a head asks for them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use tpo_core::CoreError;
use tpo_core::cancel::CancelToken;
use tpo_core::head::{FeatureSource, HeadSet};
use tpo_data::{MediaLimits, VideoReader};
use tpo_heads::temporal::features::{
    ClipInput, ClipTower, FrameRule, LanguageModelFeatures, TEMPORAL_TEXT_FEATURES,
    TEMPORAL_VIDEO_FEATURES,
};
use tpo_llm::tokenizer::Tokenizer;

use super::{
    ExtractOptions, FeatureCache, FrameCost, TemporalTowers, extract_reader, extract_video,
};
use crate::error::Result;
use crate::model::{OwnClips, Tpo};

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
            video: Arc::new(ClipTower::of_encoder(
                model.vision.clone(),
                "vision",
                input,
            )?),
            text: Arc::new(LanguageModelFeatures::new(
                model.llm.clone(),
                tokenizer.clone(),
                "llm",
            )),
        })
    }
}

/// How far a head is that works in many steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadStep<'a> {
    /// What it works on: `frames`, `features`.
    pub what: &'a str,
    /// Steps done.
    pub done: usize,
    /// Steps in total.
    pub total: usize,
    /// Of a head that goes through frames, from the second one on: what that costs.
    pub cost: Option<FrameCost>,
}

/// Hears how far a head is; may be called from several threads.
#[derive(Clone)]
pub struct HeadProgress(pub Arc<OnProgress>);

type OnProgress = dyn Fn(HeadStep<'_>) + Send + Sync;

impl std::fmt::Debug for HeadProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeadProgress")
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
                (progress.0)(HeadStep {
                    what: "features",
                    done,
                    total,
                    cost: None,
                });
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
                let found = self.extract().map_err(|e| {
                    if self.cancel.is_cancelled() {
                        CoreError::Cancelled
                    } else {
                        CoreError::part("features", e)
                    }
                })?;
                Ok(Some(self.memo.get_or_init(|| found).clone()))
            }
            TEMPORAL_TEXT_FEATURES => Ok(Some(self.towers.text.extract(&self.query)?)),
            _ => Ok(None),
        }
    }
}
