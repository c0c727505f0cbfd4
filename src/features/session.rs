//! The features of one question in a session, computed when a head asks for them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use tpo_core::CoreError;
use tpo_core::cancel::CancelToken;
use tpo_core::head::{FeatureSource, HeadSet};
use tpo_data::{MediaLimits, SIGLIP_MEAN_STD, VideoReader};
use tpo_heads::HeadsError;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, ClipInput, ClipTower, FrameRule, LanguageModelFeatures,
    QueryFeatureExtractor, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES,
};
use tpo_llm::tokenizer::Tokenizer;

use super::folder::{FeatureFolder, FeatureNeeds, Seen};
use super::towers::TOWER_FILES;
use super::{
    ExtractOptions, FeatureCache, FrameCost, TemporalTowers, extract_query, extract_reader,
    extract_video,
};
use crate::error::{Error, Result};
use crate::model::{FeatureTowers, OwnClips, Tpo, TpoConfig, Vision};

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
        let base = ClipInput::one_per_second(size);
        let (mean, std) = match &model.vision {
            Vision::Siglip(_) => (SIGLIP_MEAN_STD, SIGLIP_MEAN_STD),
            Vision::Umt(_) | Vision::InternVideo2(_) => (base.mean, base.std),
        };
        let input = ClipInput {
            mean,
            std,
            frames_per_second: clips.frames_per_second,
            frames_per_clip: clips.frames_per_clip,
            features_per_clip: clips.features_per_clip,
            rule: FrameRule::Shown,
            ..base
        };
        let video = ClipTower::of_encoder(model.vision.clone(), "vision", input)?;
        Ok(Self::new(Arc::new(video), own_text(model, tokenizer)))
    }

    /// The towers that a model of this configuration reads; `given` are those that it does not bring itself, or all.
    ///
    /// # Errors
    /// As [`TemporalTowers::of_model`].
    pub(crate) fn read_by<H: HeadSet>(
        model: &Tpo<H>,
        tokenizer: &Arc<Tokenizer>,
        config: &TpoConfig,
        given: Option<&Self>,
    ) -> Result<Option<Self>> {
        let given = given.cloned();
        Ok(match (&config.features, given) {
            (FeatureTowers::InternVideo2Video, given) => {
                let (video, folder) = given.map_or((None, None), |g| (g.video, g.folder));
                Some(Self {
                    video,
                    text: Some(own_text(model, tokenizer)),
                    folder,
                })
            }
            (FeatureTowers::Own(clips), None) => {
                let size = config.input.size;
                Some(Self::of_model(model, tokenizer, size, *clips)?)
            }
            (FeatureTowers::InternVideo2 | FeatureTowers::Own(_), given) => given,
        })
    }
}

fn own_text<H: HeadSet>(
    model: &Tpo<H>,
    tokenizer: &Arc<Tokenizer>,
) -> Arc<dyn QueryFeatureExtractor> {
    let tokenizer = tokenizer.clone();
    Arc::new(LanguageModelFeatures::new(
        model.llm.clone(),
        tokenizer,
        "llm",
    ))
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

/// The media of a question, as far as features are made of it.
#[derive(Debug, Clone)]
pub(crate) struct FeatureMedia {
    /// The file, or the name of what is in memory.
    pub path: PathBuf,
    /// What of it is seen.
    pub seen: Seen,
    pub video: FeatureVideo,
    /// The video's features live as long as the media of the session.
    pub memo: Arc<OnceLock<Tensor<2>>>,
}

/// Features of one question, read or computed on first use.
#[derive(Debug)]
pub(crate) struct LazyFeatures {
    /// Computed before; looked for first.
    pub folder: Option<FeatureFolder>,
    pub towers: Option<TemporalTowers>,
    /// `None` without a video.
    pub media: Option<FeatureMedia>,
    pub needs: FeatureNeeds,
    /// Name of the question.
    pub id: Option<String>,
    pub query: String,
    pub limits: MediaLimits,
    pub antialias: bool,
    pub cache: Option<FeatureCache>,
    /// Whether the cache keeps features of queries too: those of a model's own language model are
    /// computed sooner than its weights are named.
    pub cache_queries: bool,
    pub progress: Option<HeadProgress>,
    pub cancel: CancelToken,
}

impl LazyFeatures {
    fn video(&self) -> Result<Option<Tensor<2>>> {
        let Some(media) = &self.media else {
            return Ok(None);
        };
        if let Some(features) = media.memo.get() {
            return Ok(Some(features.clone()));
        }
        let folder = self.folder.as_ref();
        let read = folder.map(|f| f.video(&media.path, media.seen, &self.needs));
        let tower = self.towers.as_ref().and_then(|t| t.video.as_ref());
        let found = match (read.transpose()?.flatten(), tower) {
            (Some(read), _) => read,
            (None, Some(tower)) => self.extract(&media.video, &**tower)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(media.memo.get_or_init(|| found).clone()))
    }

    fn extract(&self, video: &FeatureVideo, tower: &dyn ClipFeatureExtractor) -> Result<Tensor<2>> {
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
        let found = match video {
            FeatureVideo::File(path) => extract_video(path, tower, &options, Some(&heard))?,
            FeatureVideo::Open(reader) => extract_reader(&**reader, tower, &options, Some(&heard))?,
        };
        Ok(found.features)
    }

    fn text(&self) -> Result<Option<Tensor<2>>> {
        let (id, query) = (self.id.as_deref(), &self.query);
        let read = self
            .folder
            .as_ref()
            .map(|f| f.query(id, query, &self.needs));
        let tower = self.towers.as_ref().and_then(|t| t.text.as_ref());
        match (read.transpose()?.flatten(), tower) {
            (Some(read), _) => Ok(Some(read)),
            (None, Some(tower)) => {
                let cache = self.cache.as_ref().filter(|_| self.cache_queries);
                Ok(Some(extract_query(query, &**tower, cache)?.0))
            }
            (None, None) => Ok(None),
        }
    }
}

impl FeatureSource for LazyFeatures {
    fn features(&self, name: &str) -> tpo_core::Result<Option<Tensor<2>>> {
        let found = match name {
            TEMPORAL_VIDEO_FEATURES => self.video(),
            TEMPORAL_TEXT_FEATURES => self.text(),
            _ => Ok(None),
        };
        found.map_err(|e| match e {
            _ if self.cancel.is_cancelled() => CoreError::Cancelled,
            // As it is: what is missing leaves a head without an answer.
            Error::Core(e) | Error::Heads(HeadsError::Core(e)) => e,
            e => CoreError::part("features", e),
        })
    }

    fn missing(&self, name: &str) -> String {
        let file = match (name, &self.folder, &self.media) {
            (TEMPORAL_VIDEO_FEATURES, _, None) => {
                return "they are features of a video; ask about one".into();
            }
            (TEMPORAL_VIDEO_FEATURES, Some(folder), Some(media)) => folder.video_file(&media.path),
            (TEMPORAL_TEXT_FEATURES, Some(folder), _) => {
                folder.query_file(self.id.as_deref(), &self.query)
            }
            (TEMPORAL_VIDEO_FEATURES | TEMPORAL_TEXT_FEATURES, None, _) => String::new(),
            _ => return "a session has none of this name".into(),
        };
        let not_there = match file.as_str() {
            "" => String::new(),
            file => format!("there is no {file}; "),
        };
        format!(
            "{not_there}give the folder of InternVideo2-CLIP (--towers DIR) with {}, which \
             tools/pth_to_safetensors.py writes from the published files (`tpo features --help`), or a \
             folder of features that were computed before (--features DIR)",
            TOWER_FILES.join(", ")
        )
    }
}
