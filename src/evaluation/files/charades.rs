//! Moment retrieval as reported on Charades-STA: R@n at IoU thresholds and mean IoU.
//!
//! Equal to the recall of the QVHighlights evaluator at other thresholds: windows count in listed
//! order, several windows of ground truth by the best of them, reaching the threshold is a hit.

use serde::Serialize;
use tpo_heads::numeric::{mean, percent};
use tpo_heads::temporal::metric::retrieval;

use super::windows::{predicted_windows, truth_windows};
use super::{
    Matched, SAME_SPLIT, Score, Table, Unusable, WindowPrediction, WindowTruth, nothing_shared,
};
use crate::error::Result;

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "charades-sta R@n, IoU=m and mIoU";

/// Which recalls are computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CharadesOptions {
    /// IoU thresholds; reaching one is a hit.
    pub thresholds: Vec<f64>,
    /// How many windows per query may hit, for each recall.
    pub recall_at: Vec<usize>,
    /// Every query must be on both sides.
    pub strict: bool,
    /// Empty lists and reversed windows.
    pub unusable: Unusable,
}

impl Default for CharadesOptions {
    /// R@1 at 0.3, 0.5 and 0.7 (paper, Table 6).
    fn default() -> Self {
        Self {
            thresholds: vec![0.3, 0.5, 0.7],
            recall_at: vec![1],
            strict: false,
            unusable: Unusable::Refuse,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CharadesReport {
    /// Which queries were scored, and which only one side has.
    pub matched: Matched,
    /// Queries without a predicted window; they count as misses.
    pub empty: usize,
    /// Recalls by `n` and then by threshold, and the mean IoU of the first window; per cent with
    /// two decimals.
    pub scores: Vec<Score>,
}

/// Scores predicted windows against the ground truth.
///
/// # Errors
/// As [`qvhighlights::evaluate`](super::qvhighlights::evaluate).
pub fn evaluate(
    predictions: &Table<WindowPrediction>,
    truth: &Table<WindowTruth>,
    options: &CharadesOptions,
) -> Result<CharadesReport> {
    let matched = predictions.compare(truth, options.strict)?;
    let mut ious: Vec<Vec<f64>> = Vec::with_capacity(matched.matched);
    for p in predictions.iter() {
        let Some(t) = truth.get(&p.qid) else { continue };
        let windows = truth_windows(truth, t)?;
        let predicted = predicted_windows(predictions, p, options.unusable)?;
        let all = predicted
            .iter()
            .filter_map(|w| retrieval::best_iou(w.span, windows));
        ious.push(all.collect());
    }
    if ious.is_empty() {
        return Err(nothing_shared("Charades-STA", "qid", SAME_SPLIT));
    }
    let mut scores = Vec::new();
    for n in &options.recall_at {
        for threshold in &options.thresholds {
            let hit = |q: &&Vec<f64>| q.iter().take(*n).any(|iou| iou >= threshold);
            let share = ious.iter().filter(hit).count() as f64 / ious.len() as f64;
            scores.push(Score::new(format!("R{n}@{threshold}"), percent(share)));
        }
    }
    let first: Vec<f64> = ious
        .iter()
        .map(|q| q.first().copied().unwrap_or(0.0))
        .collect();
    scores.push(Score::new("mIoU", mean(&first).map_or(0.0, percent)));
    Ok(CharadesReport {
        matched,
        empty: ious.iter().filter(|q| q.is_empty()).count(),
        scores,
    })
}
