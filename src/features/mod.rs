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
mod extract;

use std::path::Path;

use tpo_data::Progress;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, QueryFeatureExtractor, TemporalFeatures,
};

use crate::error::Result;

pub use cache::{CacheKey, CacheUse, FeatureCache, hash_file};
pub use extract::{ExtractOptions, VideoFeatures, extract_reader, extract_video};

/// The two frozen towers behind the temporal head.
pub struct TemporalTowers {
    /// Video to one vector per clip.
    pub video: Box<dyn ClipFeatureExtractor>,
    /// Query to one vector per token.
    pub text: Box<dyn QueryFeatureExtractor>,
}

impl std::fmt::Debug for TemporalTowers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TemporalTowers")
            .field("video_width", &self.video.width())
            .field("text_width", &self.text.width())
            .finish()
    }
}

impl TemporalTowers {
    /// Features of a video and a query, to be set as
    /// [`SampleContext::features`](tpo_core::head::SampleContext).
    ///
    /// # Errors
    /// As [`extract_video`] and [`QueryFeatureExtractor::extract`].
    pub fn features(
        &self,
        video: impl AsRef<Path>,
        query: &str,
        options: &ExtractOptions<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<TemporalFeatures> {
        let text = self.text.extract(query)?;
        let video = extract_video(video, &*self.video, options, progress)?;
        Ok(TemporalFeatures {
            video: Some(video.features),
            text: Some(text),
        })
    }
}
