//! Features that were computed before, as the datasets of moment retrieval ship them.
//!
//! QVHighlights and its relatives come with one `<video>.npz` per video and tower, holding an
//! array `features` of `[clips, width]`, and one `qid<id>.npz` per query with
//! `last_hidden_state` of `[tokens, width]`; several towers are concatenated along the width
//! (CG-DETR's data loader).

mod matrix;
mod npy;
mod read;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tpo_core::head::FeatureSource;

pub use matrix::FeatureMatrix;
pub use read::read_features;

use super::{TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES};
use crate::error::HeadsError;

/// How feature files are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrecomputedOptions {
    /// Name of the array in an `.npz` or `.safetensors` file; by default `features`, else
    /// `last_hidden_state`, else the only array there is.
    pub key: Option<String>,
    /// Divide every row of every file by its length, before files are concatenated. CG-DETR's
    /// training loader does so by default; the published model is fed without.
    pub normalise: bool,
    /// Keep at most this many rows of every file.
    pub max_rows: Option<usize>,
    /// Largest array in bytes, checked before anything is allocated. Default 1 GiB.
    pub max_bytes: u64,
}

impl Default for PrecomputedOptions {
    fn default() -> Self {
        Self {
            key: None,
            normalise: false,
            max_rows: None,
            max_bytes: 1 << 30,
        }
    }
}

impl PrecomputedOptions {
    /// Reads several files of one video or query and concatenates them along the width. Files of
    /// different length are cut to the shortest, as CG-DETR's data loader does.
    ///
    /// # Errors
    /// [`HeadsError::FeatureFile`] for a file that cannot be used, or for no files.
    pub fn read<P: AsRef<Path>>(&self, files: &[P]) -> Result<FeatureMatrix, HeadsError> {
        let mut parts = Vec::with_capacity(files.len());
        for file in files {
            let mut part = read_features(file.as_ref(), self)?;
            if let Some(max) = self.max_rows {
                part.truncate(max);
            }
            if self.normalise {
                part.normalise();
            }
            parts.push(part);
        }
        FeatureMatrix::concat(parts).ok_or_else(|| HeadsError::FeatureFile {
            path: PathBuf::new(),
            why: "no feature file was given".into(),
        })
    }
}

/// Features of one sample from files, under the names the temporal head asks for.
#[derive(Debug, Clone, Default)]
pub struct PrecomputedFeatures {
    video: Option<FeatureMatrix>,
    text: Option<FeatureMatrix>,
    device: Device,
}

impl PrecomputedFeatures {
    /// No features yet; tensors are created on `device`.
    pub fn new(device: &Device) -> Self {
        Self {
            device: super::plain(device),
            ..Self::default()
        }
    }

    /// Reads the video's features.
    ///
    /// # Errors
    /// As [`PrecomputedOptions::read`].
    pub fn with_video<P: AsRef<Path>>(
        mut self,
        files: &[P],
        options: &PrecomputedOptions,
    ) -> Result<Self, HeadsError> {
        self.video = Some(options.read(files)?);
        Ok(self)
    }

    /// Reads the query's features.
    ///
    /// # Errors
    /// As [`PrecomputedOptions::read`].
    pub fn with_text<P: AsRef<Path>>(
        mut self,
        files: &[P],
        options: &PrecomputedOptions,
    ) -> Result<Self, HeadsError> {
        self.text = Some(options.read(files)?);
        Ok(self)
    }

    /// The video's features.
    pub fn video(&self) -> Option<&FeatureMatrix> {
        self.video.as_ref()
    }

    /// The query's features.
    pub fn text(&self) -> Option<&FeatureMatrix> {
        self.text.as_ref()
    }
}

impl FeatureSource for PrecomputedFeatures {
    fn features(&self, name: &str) -> tpo_core::Result<Option<Tensor<2>>> {
        let found = match name {
            TEMPORAL_VIDEO_FEATURES => &self.video,
            TEMPORAL_TEXT_FEATURES => &self.text,
            _ => &None,
        };
        Ok(found.as_ref().map(|m| m.to_tensor(&self.device)))
    }
}

/// Folders of a dataset: one per tower of the video, and one of queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeatureFolders {
    /// Folders with `<video>.npz` (or `.npy`, `.safetensors`), concatenated in this order.
    pub video: Vec<PathBuf>,
    /// Folder with the queries' files.
    pub text: Option<PathBuf>,
    /// How video files are read.
    pub video_options: PrecomputedOptions,
    /// How query files are read.
    pub text_options: PrecomputedOptions,
}

impl FeatureFolders {
    /// Reads the features of one video and, where there is a folder for them, of one query, by
    /// the names of their files without extension (`qid<id>` in QVHighlights).
    ///
    /// # Errors
    /// [`HeadsError::FeatureFile`] when a file is absent or cannot be used, or a name would leave
    /// its folder.
    pub fn read(
        &self,
        video: &str,
        query: Option<&str>,
        device: &Device,
    ) -> Result<PrecomputedFeatures, HeadsError> {
        let mut out = PrecomputedFeatures::new(device);
        if !self.video.is_empty() {
            let files = self
                .video
                .iter()
                .map(|dir| find(dir, video))
                .collect::<Result<Vec<_>, _>>()?;
            out = out.with_video(&files, &self.video_options)?;
        }
        if let (Some(dir), Some(query)) = (&self.text, query) {
            out = out.with_text(&[find(dir, query)?], &self.text_options)?;
        }
        Ok(out)
    }
}

/// The feature file called `name` in a folder.
fn find(dir: &Path, name: &str) -> Result<PathBuf, HeadsError> {
    let fail = |path: PathBuf, why: &str| HeadsError::FeatureFile {
        path,
        why: why.into(),
    };
    if name.is_empty() || name.contains(['/', '\\', ':', '\0']) || name.starts_with('.') {
        return Err(fail(dir.join("?"), "the name is not a plain file name"));
    }
    ["npz", "npy", "safetensors"]
        .iter()
        .map(|extension| dir.join(format!("{name}.{extension}")))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let path = dir.join(format!("{name}.npz"));
            fail(path, "is not there, and neither is .npy or .safetensors")
        })
}
