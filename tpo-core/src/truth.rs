//! What a row of data says is true, in the terms of the clip the model sees: normalised boxes,
//! seconds from its start, masks of its pictures, or any JSON for a task of your own.
//!
//! A head makes its target of it: [`TaskHead::target`](crate::head::TaskHead::target).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{CoreError, Result};
use crate::geometry::{BoxXyxy, Rle, TimeSpan};

/// An annotation ready to be asked for and learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// Name of the head.
    pub task: String,
    /// What is asked for.
    pub query: Option<String>,
    /// The box of the question.
    pub prompt_box: Option<BoxXyxy>,
    /// The ground truth.
    pub target: TruthTarget,
    /// Random number for targets that draw, a pure function of seed, epoch and place.
    pub seed: u64,
}

/// Ground truth of one task token.
#[derive(Debug, Clone, PartialEq)]
pub enum TruthTarget {
    /// Normalised corners.
    Box(BoxXyxy),
    /// When it happens.
    Moments {
        /// In seconds from the start of the clip, cut to it.
        spans: Vec<TimeSpan>,
        /// Scores of pieces of the clip, counted from its start.
        saliency: Option<Saliency>,
        /// Length of the clip in seconds.
        duration: f64,
    },
    /// Where it is, in ascending time.
    Track(Vec<TruthFrame>),
    /// As the row has it.
    Value(Value),
}

/// An annotated frame of a track.
#[derive(Debug, Clone, PartialEq)]
pub struct TruthFrame {
    /// Seconds from the start of the clip.
    pub time: f64,
    /// Which of the sampled frames is nearest.
    pub sampled: usize,
    /// Where the object is.
    pub place: TruthPlace,
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq)]
pub enum TruthPlace {
    /// Not visible.
    Absent,
    /// Normalised corners.
    Box(BoxXyxy),
    /// At the size of the annotation, flipped and cropped like the picture.
    Mask(Rle),
}

/// Scores of equal pieces of a video (QVHighlights: 2 seconds, three raters, 0–4 each).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saliency {
    /// Length of a piece in seconds; piece `i` is `[i, i + 1) * clip_seconds` of the file.
    pub clip_seconds: f64,
    /// Indices of the rated pieces; the others count as 0.
    pub clips: Vec<u32>,
    /// For each of them, one score per rater.
    pub scores: Vec<Vec<f32>>,
}

impl Truth {
    /// The error of a head that cannot learn from this.
    pub fn unusable(&self, why: impl std::fmt::Display) -> CoreError {
        CoreError::Truth {
            task: self.task.clone(),
            why: why.to_string(),
        }
    }

    /// The box, if that is what it is.
    ///
    /// # Errors
    /// [`CoreError::Truth`] for any other truth.
    pub fn to_box(&self) -> Result<BoxXyxy> {
        match &self.target {
            TruthTarget::Box(b) => Ok(*b),
            _ => Err(self.unusable("it is not a box; write `box` or `box_pixels`")),
        }
    }

    /// The JSON `value` of a task of your own, as a type of yours.
    ///
    /// # Errors
    /// [`CoreError::Truth`] for any other truth, and for JSON of another form.
    pub fn to_value<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        match &self.target {
            TruthTarget::Value(value) => T::deserialize(value).map_err(|e| self.unusable(e)),
            _ => Err(self.unusable("it has no `value`")),
        }
    }
}
