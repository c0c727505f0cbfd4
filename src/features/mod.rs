//! Features of the temporal head from video files: streaming extraction and a disk cache.
//!
//! ```no_run
//! use tpo::features::{ExtractOptions, FeatureCache, extract_video};
//! use tpo::heads::temporal::features::InternVideo2Features;
//! use tpo::prelude::*;
//! use tpo::vision::InternVideo2Config;
//!
//! # fn main() -> tpo::Result<()> {
//! let tower = InternVideo2Config::mini().init(&DeviceChoice::Auto.open()?)?;
//! let extractor = InternVideo2Features::new(tower);
//! let cache = FeatureCache::open("features")?;
//! let options = ExtractOptions { cache: Some(&cache), ..ExtractOptions::default() };
//! let found = extract_video("clip.mp4", &extractor, &options, None)?;
//! println!("{:?} features of {} s each", found.features.dims(), found.seconds_per_feature);
//! # Ok(())
//! # }
//! ```

mod cache;
mod cost;
mod extract;
mod session;
mod training;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, FloatDType};
use tpo_core::weights::DtypePolicy;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, InternVideo2Features, InternVideo2Files, QueryFeatureExtractor,
    TextTowerFeatures,
};
use tpo_llm::text_tower::{QueryTokenizer, TextTowerConfig};
use tpo_vision::InternVideo2Config;
use tpo_vision::internvideo2::{VisionFileKind, VisionLoadOptions};

use crate::error::{Error, Result};

pub use crate::model::{FeatureTowers, OwnClips};
pub use cache::{CacheKey, CacheUse, FeatureCache, hash_file};
pub(crate) use cost::FrameClock;
pub use cost::FrameCost;
pub use extract::{ExtractOptions, VideoFeatures, extract_reader, extract_video};
pub(crate) use session::{FeatureVideo, LazyFeatures};
pub use session::{HeadProgress, HeadStep};
pub use training::TrainingFeatures;
pub(crate) use training::readers;

/// The two frozen towers behind the temporal head. Clones share them.
#[derive(Clone)]
pub struct TemporalTowers {
    /// Video to one vector per clip.
    pub video: Arc<dyn ClipFeatureExtractor>,
    /// Query to one vector per token.
    pub text: Arc<dyn QueryFeatureExtractor>,
}

impl std::fmt::Debug for TemporalTowers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TemporalTowers")
            .field("video_width", &self.video.width())
            .field("text_width", &self.text.width())
            .finish()
    }
}

/// Files of a folder of towers, in the order of [`InternVideo2Files`], and the tokenizer's.
const TOWER_FILES: [&str; 4] = [
    "vision.safetensors",
    "text.safetensors",
    "clip.safetensors",
    "tokenizer.model",
];

impl TemporalTowers {
    /// Loads InternVideo2-CLIP, strictly, from a folder with `vision.safetensors` (the stage-2 model),
    /// `text.safetensors` (InternVL-C), `clip.safetensors` (the CLIP post-training) and
    /// `tokenizer.model`. Weights keep the files' dtype off the CPU and become f32 on it.
    ///
    /// # Errors
    /// [`Error::ModelDir`] naming every file that is not there; as [`InternVideo2Files::load`], and a
    /// tokenizer that cannot be read.
    pub fn open(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let missing: Vec<&str> = TOWER_FILES
            .into_iter()
            .filter(|name| !dir.join(name).is_file())
            .collect();
        if !missing.is_empty() {
            return Err(Error::ModelDir {
                path: dir.to_path_buf(),
                why: format!(
                    "not a folder of InternVideo2-CLIP: it lacks {}; tools/pth_to_safetensors.py \
                     writes them from the published files",
                    missing.join(", ")
                ),
            });
        }
        let [vision, text, clip, tokenizer] = TOWER_FILES.map(|name| dir.join(name));
        let files = InternVideo2Files {
            vision,
            vision_kind: VisionFileKind::Stage2,
            text,
            clip: Some(clip),
        };
        let tokenizer = QueryTokenizer::from_sentencepiece(tokenizer)?;
        let vision = InternVideo2Config::internvideo2_1b().init(device)?;
        let text = TextTowerConfig::internvideo2_clip().init(device)?;
        let mut options = VisionLoadOptions::default();
        if *device == Device::flex() {
            options.load.dtype = DtypePolicy::Cast(FloatDType::F32);
        }
        let (vision, text, _) = files.load(vision, text, &options)?;
        Ok(Self {
            video: Arc::new(InternVideo2Features::new(vision)),
            text: Arc::new(TextTowerFeatures::new(text.merge_lora(), tokenizer)),
        })
    }
}
