//! The rows of moment retrieval: the JSON-lines format of QVHighlights, also used for Charades-STA.

use serde::{Deserialize, Serialize};

use super::{Problem, Record, SampleId, Table};
use crate::error::Result;

/// A predicted window, `[start, end, score]` or `[start, end]` in JSON; seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct PredictedWindow {
    /// Start and end in seconds.
    pub span: [f64; 2],
    /// Confidence, if given; any range.
    pub score: Option<f64>,
}

impl TryFrom<Vec<f64>> for PredictedWindow {
    type Error = &'static str;

    fn try_from(numbers: Vec<f64>) -> Result<Self, Self::Error> {
        let (span, score) = match numbers[..] {
            [start, end] => ([start, end], None),
            [start, end, score] => ([start, end], Some(score)),
            _ => return Err("a window is [start, end, score] or [start, end]"),
        };
        Ok(Self { span, score })
    }
}

impl From<PredictedWindow> for Vec<f64> {
    fn from(window: PredictedWindow) -> Self {
        window.span.into_iter().chain(window.score).collect()
    }
}

/// A line of a submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowPrediction {
    /// The query.
    pub qid: SampleId,
    /// Its text; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The video; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vid: Option<SampleId>,
    /// Windows, the best one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pred_relevant_windows: Option<Vec<PredictedWindow>>,
    /// A score for each clip of two seconds, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pred_saliency_scores: Option<Vec<f64>>,
}

/// A line of the ground truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowTruth {
    /// The query.
    pub qid: SampleId,
    /// Its text; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The video; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vid: Option<SampleId>,
    /// Length of the video in seconds; needed for highlights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Windows `[start, end]` in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relevant_windows: Option<Vec<[f64; 2]>>,
    /// Clips of two seconds that were rated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relevant_clip_ids: Option<Vec<usize>>,
    /// Ratings 0–4 of these clips by three annotators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saliency_scores: Option<Vec<[f64; 3]>>,
}

impl Record for WindowPrediction {
    type Id = SampleId;

    fn id(&self) -> SampleId {
        self.qid.clone()
    }

    fn check(&self) -> Result<(), Problem> {
        if self.pred_relevant_windows.is_none() && self.pred_saliency_scores.is_none() {
            return Err(Problem::new(
                "it has neither `pred_relevant_windows` nor `pred_saliency_scores`",
                "give the windows [[start, end, score], ..], the clip scores, or both",
            ));
        }
        Ok(())
    }
}

impl Record for WindowTruth {
    type Id = SampleId;

    fn id(&self) -> SampleId {
        self.qid.clone()
    }

    fn check(&self) -> Result<(), Problem> {
        let windows = self.relevant_windows.iter().flatten();
        if let Some([start, end]) = windows.into_iter().find(|[s, e]| e < s) {
            return Err(Problem::new(
                format!("the window [{start}, {end}] of the ground truth ends before it starts"),
                "give [start, end] in seconds",
            ));
        }
        Ok(())
    }
}

/// How windows that carry no usable answer are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
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

/// The windows of a row, or an error with its line where they cannot be scored.
pub(super) fn predicted_windows<'a>(
    table: &Table<WindowPrediction>,
    row: &'a WindowPrediction,
    unusable: Unusable,
) -> Result<&'a [PredictedWindow]> {
    let bad = |why: String, hint| Err(table.problem(&row.qid, Problem::new(why, hint)));
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

/// The windows of the ground truth of a row, at least one.
pub(super) fn truth_windows<'a>(
    table: &Table<WindowTruth>,
    row: &'a WindowTruth,
) -> Result<&'a [[f64; 2]]> {
    match row.relevant_windows.as_deref() {
        Some(windows) if !windows.is_empty() => Ok(windows),
        _ => {
            let why = format!("query {} has no window in the ground truth", row.qid);
            let hint = "give `relevant_windows`, or remove the query from both files";
            Err(table.problem(&row.qid, Problem::new(why, hint)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_two_or_three_numbers() {
        let read = |s| serde_json::from_str::<PredictedWindow>(s);
        let w = read("[1, 2.5, -0.5]").unwrap();
        assert_eq!((w.span, w.score), ([1.0, 2.5], Some(-0.5)));
        assert_eq!(read("[1, 2]").unwrap().score, None);
        for bad in [
            "[1]",
            "[]",
            "[1,2,3,4]",
            "[1,2,null]",
            "[null,2]",
            "5",
            "{}",
            "[1,\"2\"]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&w).unwrap(), "[1.0,2.5,-0.5]");
    }
}
