//! Features of the temporal head: streaming extraction from video files, a disk cache, towers in a folder,
//! files of features that were computed before.
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
mod folder;
mod session;
mod towers;
mod training;

use std::sync::Arc;

use tpo_heads::temporal::features::{ClipFeatureExtractor, QueryFeatureExtractor};

pub use crate::model::{FeatureTowers, OwnClips};
pub use cache::{CacheKey, CacheUse, FeatureCache, hash_file};
pub(crate) use cost::FrameClock;
pub use cost::FrameCost;
pub use extract::{ExtractOptions, VideoFeatures, extract_query, extract_reader, extract_video};
pub use folder::FeatureFolder;
pub(crate) use folder::{FeatureNeeds, Seen};
pub(crate) use session::{FeatureMedia, FeatureVideo, LazyFeatures};
pub use session::{HeadProgress, HeadStep};
pub use towers::TowerOptions;
#[cfg(feature = "cli")]
pub(crate) use towers::{VIDEO_TOWER, identity_of_files};
pub use training::TrainingFeatures;
pub(crate) use training::readers;

/// The two frozen towers behind the temporal head. Clones share them.
#[derive(Clone)]
pub struct TemporalTowers {
    /// Video to one vector per clip; `None` where those of videos are read from files alone.
    pub video: Option<Arc<dyn ClipFeatureExtractor>>,
    /// Query to one vector per token; `None` where a model brings its own.
    pub text: Option<Arc<dyn QueryFeatureExtractor>>,
    /// Those of a folder, which open when they are needed.
    folder: Option<Arc<towers::Folder>>,
}

impl TemporalTowers {
    /// Towers that are in memory.
    pub fn new(video: Arc<dyn ClipFeatureExtractor>, text: Arc<dyn QueryFeatureExtractor>) -> Self {
        Self {
            video: Some(video),
            text: Some(text),
            folder: None,
        }
    }

    /// Bytes of the CPU's memory that they will take beyond what they take now: those of the larger
    /// one, because one after the other is opened and gives way to the other where it must.
    pub fn bytes_to_open(&self) -> u64 {
        let folder = self.folder.as_ref();
        folder.map_or(0, |folder| folder.larger().saturating_sub(folder.open()))
    }

    /// Bytes of the CPU's memory that those of a folder take now.
    pub(crate) fn bytes_open(&self) -> u64 {
        self.folder.as_ref().map_or(0, |folder| folder.open())
    }

    /// Bounds what they may take of the CPU's memory, where a model beside them has taken its part of it.
    pub(crate) fn keep_within(&self, bytes: u64) {
        if let Some(folder) = &self.folder {
            folder.keep_within(bytes);
        }
    }
}

impl std::fmt::Debug for TemporalTowers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TemporalTowers")
            .field("video_width", &self.video.as_ref().map(|t| t.width()))
            .field("text_width", &self.text.as_ref().map(|t| t.width()))
            .finish()
    }
}
