//! Moment retrieval: recall of the first window and average precision.
//!
//! Both follow the QVHighlights standalone evaluator: the average precision of a query is that of
//! ActivityNet detection (greedy matching, interpolated precision), the recall uses the first
//! *listed* window, whatever its score.

use super::{hull_iou, iou};
use crate::numeric::{argmax, sum};

/// The best overlap of a window with any window of the ground truth, over the hull; `None` without
/// ground truth. The window is *chosen* by IoU over the union, as in the evaluator.
pub fn best_iou(predicted: [f64; 2], truth: &[[f64; 2]]) -> Option<f64> {
    let all: Vec<f64> = truth.iter().map(|t| iou(predicted, *t)).collect();
    argmax(&all).map(|i| hull_iou(predicted, truth[i]))
}

/// Average precision of one query at each IoU threshold.
///
/// `predicted` holds windows with scores in their listed order; equal scores keep it. Without
/// predictions, or without ground truth, all are 0.
pub fn average_precision(
    predicted: &[([f64; 2], f64)],
    truth: &[[f64; 2]],
    thresholds: &[f64],
) -> Vec<f64> {
    if predicted.is_empty() || truth.is_empty() {
        return vec![0.0; thresholds.len()];
    }
    let mut ranked: Vec<_> = predicted.to_vec();
    ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));

    // Per prediction: overlaps, and the ground truth from the best to the worst.
    let overlaps: Vec<(Vec<f64>, Vec<usize>)> = ranked
        .iter()
        .map(|(window, _)| {
            let all: Vec<f64> = truth.iter().map(|t| iou(*window, *t)).collect();
            let mut order: Vec<usize> = (0..all.len()).collect();
            // numpy's ascending argsort (not-a-number last), reversed: of equal overlaps the
            // later window comes first.
            order.sort_by(|a, b| ascending(all[*a], all[*b]));
            order.reverse();
            (all, order)
        })
        .collect();

    thresholds
        .iter()
        .map(|threshold| {
            let mut taken = vec![false; truth.len()];
            let hits = overlaps.iter().map(|(all, order)| {
                for &t in order {
                    if all[t] < *threshold {
                        return false;
                    }
                    if !taken[t] {
                        taken[t] = true;
                        return true;
                    }
                }
                false
            });
            let hits: Vec<bool> = hits.collect();
            interpolated(&hits, truth.len())
        })
        .collect()
}

fn ascending(a: f64, b: f64) -> std::cmp::Ordering {
    a.is_nan()
        .cmp(&b.is_nan())
        .then(a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal))
}

/// Area under the precision envelope (VOC 2011) of ranked hits.
fn interpolated(hits: &[bool], positives: usize) -> f64 {
    let (mut precision, mut recall) = (vec![0.0], vec![0.0]);
    let mut found = 0usize;
    for (i, hit) in hits.iter().enumerate() {
        found += *hit as usize;
        precision.push(found as f64 / (i + 1) as f64);
        recall.push(found as f64 / positives as f64);
    }
    precision.push(0.0);
    recall.push(1.0);
    for i in (0..precision.len() - 1).rev() {
        precision[i] = f64::max(precision[i], precision[i + 1]);
    }
    let steps: Vec<f64> = (1..recall.len())
        .filter(|i| recall[*i] != recall[i - 1])
        .map(|i| (recall[i] - recall[i - 1]) * precision[i])
        .collect();
    sum(&steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_by_hand() {
        let truth = [[0.0, 10.0], [20.0, 30.0]];
        // Ranked: a hit (IoU 0.8), a miss, a hit (IoU 1).
        let predicted = [([20.0, 30.0], 0.1), ([0.0, 8.0], 0.9), ([50.0, 60.0], 0.5)];
        // Recall 1/2 at precision 1, then 1 at precision 2/3.
        let ap = average_precision(&predicted, &truth, &[0.5, 0.8, 0.9]);
        assert_eq!(ap[0], 0.5 + 0.5 * (2.0 / 3.0));
        assert_eq!(ap[1], ap[0]); // the threshold itself counts
        assert_eq!(ap[2], 0.5 * (1.0 / 3.0));
    }

    #[test]
    fn a_window_is_found_once_and_equal_scores_keep_their_order() {
        let truth = [[0.0, 10.0]];
        let twice = [([0.0, 10.0], 0.5), ([0.0, 10.0], 0.5)];
        assert_eq!(average_precision(&twice, &truth, &[0.5]), [1.0]);
        let miss_first = [([50.0, 60.0], 0.5), ([0.0, 10.0], 0.5)];
        assert_eq!(average_precision(&miss_first, &truth, &[0.5]), [0.5]);
        assert_eq!(average_precision(&[], &truth, &[0.5]), [0.0]);
        assert_eq!(average_precision(&twice, &[], &[0.5]), [0.0]);
    }

    #[test]
    fn windows_without_length_are_found_by_their_like() {
        // 0/0 passes every threshold in the evaluator.
        assert_eq!(
            average_precision(&[([5.0, 5.0], 1.0)], &[[5.0, 5.0]], &[0.95]),
            [1.0]
        );
        assert_eq!(best_iou([5.0, 5.0], &[[5.0, 5.0]]), Some(0.0));
        assert_eq!(best_iou([0.0, 1.0], &[]), None);
        assert_eq!(best_iou([0.0, 4.0], &[[3.0, 4.0], [0.0, 2.0]]), Some(0.5));
    }
}
