//! Metrics of the temporal task: moment retrieval, highlight detection, grounded questions.
//!
//! - [`qvhighlights`]: the QVHighlights standalone evaluator, equal to every printed digit.
//! - [`charades`]: R@n at IoU thresholds and mIoU, as reported on Charades-STA.
//! - [`nextgqa`]: grounded question answering of NExT-GQA.
//!
//! Rows are the public JSON-lines formats, read through [`tpo_core::rows::Table`].

pub mod charades;
pub mod highlight;
pub mod nextgqa;
pub mod qvhighlights;
pub mod retrieval;
mod rows;
mod window;

pub use rows::{PredictedWindow, WindowPrediction, WindowTruth};
pub use window::{hull_iou, iou};

use serde::Serialize;
use tpo_core::rows::{Problem, Table};

use crate::error::HeadsError;

/// How windows that carry no usable answer are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// An error that names the line. The official scripts stop at an empty list, and score a
    /// reversed window without a word.
    #[default]
    Refuse,
    /// Empty lists count as a miss, with IoU 0 and AP 0; reversed windows are scored as the
    /// official scripts do.
    Score,
}

fn no_sample(metric: &'static str, id: &str) -> HeadsError {
    let why = format!("predictions and ground truth share no {id}");
    let hint = "check that both files are of the same split";
    tpo_core::CoreError::Metric { metric, why, hint }.into()
}

/// The windows of a row, or an error with its line where they cannot be scored.
fn predicted_windows<'a>(
    table: &Table<WindowPrediction>,
    row: &'a WindowPrediction,
    unusable: Unusable,
) -> Result<&'a [PredictedWindow], HeadsError> {
    let bad = |why: String, hint| Err(table.problem(&row.qid, Problem::new(why, hint)).into());
    let qid = &row.qid;
    let Some(windows) = &row.pred_relevant_windows else {
        return bad(
            format!("query {qid} has no `pred_relevant_windows`, the first row has"),
            "give windows in all rows or in none",
        );
    };
    if unusable == Unusable::Score {
        return Ok(windows);
    }
    if windows.is_empty() {
        return bad(
            format!("query {qid} has an empty list of windows"),
            "predict one, or count such queries as misses (Unusable::Score, --unusable score)",
        );
    }
    match windows.iter().find(|w| w.span[1] < w.span[0]) {
        Some(w) => bad(
            format!("query {qid}: the window {:?} ends before it starts", w.span),
            "swap its ends, or score it as it is (Unusable::Score, --unusable score)",
        ),
        None => Ok(windows),
    }
}

fn truth_windows<'a>(
    table: &Table<WindowTruth>,
    row: &'a WindowTruth,
) -> Result<&'a [[f64; 2]], HeadsError> {
    match row.relevant_windows.as_deref() {
        Some(windows) if !windows.is_empty() => Ok(windows),
        _ => {
            let why = format!("query {} has no window in the ground truth", row.qid);
            let hint = "give `relevant_windows`, or remove the query from both files";
            Err(table.problem(&row.qid, Problem::new(why, hint)).into())
        }
    }
}
