//! Features that were computed before, as the datasets of moment retrieval ship them.
//!
//! QVHighlights and its relatives come with one `<video>.npz` per video and tower, holding an
//! array `features` of `[clips, width]`, and one `qid<id>.npz` per query with
//! `last_hidden_state` of `[tokens, width]`; several towers are concatenated along the width
//! (CG-DETR's data loader). [`PrecomputedOptions::read`] makes a [`FeatureMatrix`] of them, and
//! [`FeatureMatrix::to_tensor`] what [`TemporalFeatures`](super::TemporalFeatures) holds.

mod matrix;
mod npy;
mod read;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use matrix::FeatureMatrix;
pub use read::read_features;

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
