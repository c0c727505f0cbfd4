//! Prediction files and ground truth of benchmarks, scored as their official evaluators do.
//!
//! [`Table`] reads one record per line, with errors that name file and line, and says which
//! samples both sides have. A module per benchmark has its rows, its options and `evaluate`; the
//! mathematics (overlaps, average precision, J and F) is that of [`tpo_heads`].
//!
//! - [`qvhighlights`], [`charades`]: windows and clip scores of moment retrieval
//! - [`nextgqa`]: answers with their segments
//! - [`boxes`]: referring expressions
//! - [`vos`]: masks of objects through a video
//! - [`tracks`]: the text files of LaSOT and GOT-10k

pub mod boxes;
pub mod charades;
pub mod nextgqa;
pub mod qvhighlights;
mod table;
pub mod tracks;
pub mod vos;
mod windows;

pub(super) use table::read_json;
pub use table::{Matched, Problem, ReadOptions, Record, SampleId, Table, UnknownField};
pub use windows::{PredictedWindow, Unusable, WindowPrediction, WindowTruth};

use serde::Serialize;

use crate::error::Error;

/// A number with its name; per cent where nothing else is said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Its name in tables.
    pub name: String,
    /// Its value; `None` where it is not defined.
    pub value: Option<f64>,
}

impl Score {
    /// A value, or none, under its name.
    pub fn new(name: impl Into<String>, value: impl Into<Option<f64>>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// What to do where two files of one benchmark have nothing in common.
const SAME_SPLIT: &str = "check that both files are of the same split";

fn nothing_shared(metric: &'static str, what: &str, hint: &'static str) -> Error {
    let why = format!("predictions and ground truth share no {what}");
    tpo_core::CoreError::Metric { metric, why, hint }.into()
}
