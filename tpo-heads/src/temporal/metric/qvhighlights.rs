//! The numbers of the QVHighlights standalone evaluator.
//!
//! Equal to the official script in every printed digit, its habits included: at most so many
//! windows per query count, in listed order before they are ranked; recall looks at the first
//! listed window; the splits by length keep the windows of the ground truth whose length is in
//! range and the queries that have one left; the long split ends at 150 s; numbers are per cent
//! with two decimals. The mean over annotators and queries is one mean.

use rayon::prelude::*;
use serde::Serialize;

use super::{highlight, retrieval};
use crate::numeric::{mean, percent};

/// Length ranges of the splits, in seconds: above the first, up to the second.
const SPLITS: [(&str, f64, f64); 4] = [
    ("short", 0.0, 10.0),
    ("middle", 10.0, 30.0),
    ("long", 30.0, 150.0),
    ("full", 0.0, 150.0),
];

/// Lowest rating of a positive clip.
const RATINGS: [(&str, f64); 3] = [("Fair", 2.0), ("Good", 3.0), ("VeryGood", 4.0)];

/// The windows of one query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// Predicted windows in seconds with their scores, in listed order.
    pub predicted: Vec<([f64; 2], f64)>,
    /// Windows of the ground truth in seconds, at least one.
    pub truth: Vec<[f64; 2]>,
}

/// Scores of one split by length; per cent with two decimals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitScores {
    /// `short`, `middle`, `long` or `full`.
    pub split: &'static str,
    /// Queries in it.
    pub queries: usize,
    /// mAP at IoU 0.5, 0.55 .. 0.95; empty in a split without queries.
    pub map: Vec<(f64, f64)>,
    /// Mean of these; `None` in a split without queries.
    pub map_average: Option<f64>,
    /// R1 at IoU 0.3, 0.35 .. 0.95. The official script prints those from 0.5 on.
    pub r1: Vec<(f64, f64)>,
    /// Mean IoU of the first window; not in the official script.
    pub miou: Option<f64>,
}

/// Scores at one lowest rating; per cent with two decimals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HighlightScores {
    /// `Fair`, `Good` or `VeryGood`.
    pub rating: &'static str,
    /// Mean average precision.
    pub map: f64,
    /// HIT@1.
    pub hit1: f64,
}

/// IoU thresholds from 0.3 on, each the nearest double of its decimal.
fn thresholds() -> Vec<f64> {
    (30..=95).step_by(5).map(|t| t as f64 / 100.0).collect()
}

/// Scores of the splits `short`, `middle`, `long` and `full`; `max_windows` per query count.
pub fn moments(queries: &[Query], max_windows: usize) -> Vec<SplitScores> {
    SPLITS
        .map(|(name, above, to)| split(name, above, to, queries, max_windows))
        .to_vec()
}

fn split(name: &'static str, above: f64, to: f64, all: &[Query], max: usize) -> SplitScores {
    let thresholds = thresholds();
    let from_half = thresholds.iter().position(|t| *t == 0.5).unwrap_or(0);
    let per_query: Vec<_> = all
        .par_iter()
        .filter_map(|q| {
            let kept: Vec<[f64; 2]>;
            let truth = if name == "full" {
                &q.truth
            } else {
                let in_range = |w: &&[f64; 2]| above < w[1] - w[0] && w[1] - w[0] <= to;
                kept = q.truth.iter().filter(in_range).copied().collect();
                &kept
            };
            (!truth.is_empty()).then(|| {
                let counted = &q.predicted[..q.predicted.len().min(max)];
                let ap = retrieval::average_precision(counted, truth, &thresholds[from_half..]);
                let first = q.predicted.first();
                let iou = first.and_then(|(w, _)| retrieval::best_iou(*w, truth));
                (ap, iou.unwrap_or(0.0))
            })
        })
        .collect();
    let n = per_query.len();
    if n == 0 {
        return SplitScores {
            split: name,
            queries: 0,
            map: Vec::new(),
            map_average: None,
            r1: Vec::new(),
            miou: None,
        };
    }
    // numpy adds row after row when it reduces the first axis.
    let mut sums = vec![0.0; thresholds.len() - from_half];
    for (ap, _) in &per_query {
        sums.iter_mut().zip(ap).for_each(|(s, a)| *s += a);
    }
    let means: Vec<f64> = sums.iter().map(|s| s / n as f64).collect();
    let ious: Vec<f64> = per_query.iter().map(|(_, iou)| *iou).collect();
    let recall = |t: f64| ious.iter().filter(|iou| **iou >= t).count() as f64 / n as f64;
    SplitScores {
        split: name,
        queries: n,
        map: thresholds[from_half..]
            .iter()
            .copied()
            .zip(means.iter().map(|m| percent(*m)))
            .collect(),
        map_average: mean(&means).map(percent),
        r1: thresholds
            .iter()
            // np.mean(..) * 100, in this order
            .map(|t| (*t, percent(recall(*t))))
            .collect(),
        miou: mean(&ious).map(percent),
    }
}

/// Scores at the ratings `Fair`, `Good` and `VeryGood` of queries: a score per clip, and the
/// annotators' ratings of each clip of the video. Without queries there is nothing.
pub fn highlights(queries: &[(&[f64], Vec<[f64; highlight::ANNOTATORS]>)]) -> Vec<HighlightScores> {
    if queries.is_empty() {
        return Vec::new();
    }
    let all = RATINGS.map(|(rating, lowest)| {
        let per_query: Vec<_> = queries
            .par_iter()
            .map(|(scores, ratings)| {
                let positive: Vec<_> = ratings.iter().map(|r| r.map(|v| v >= lowest)).collect();
                let hit = highlight::hit_at_one(scores, &positive) == Some(true);
                let ap: [f64; highlight::ANNOTATORS] = std::array::from_fn(|a| {
                    let positive: Vec<bool> = positive.iter().map(|p| p[a]).collect();
                    highlight::average_precision(scores, &positive)
                });
                (hit, ap)
            })
            .collect();
        let aps: Vec<f64> = per_query.iter().flat_map(|(_, ap)| *ap).collect();
        let hits = per_query.iter().filter(|(hit, _)| *hit).count();
        HighlightScores {
            rating,
            map: mean(&aps).map_or(0.0, percent),
            hit1: percent(hits as f64 / per_query.len() as f64),
        }
    });
    all.to_vec()
}
