//! Highlight detection: does the highest clip score lie on a highlight, and the average precision
//! of the whole curve.

use crate::numeric::{argmax, mean};

/// Annotators per clip in QVHighlights.
pub const ANNOTATORS: usize = 3;

/// Whether the clip with the highest score is a highlight for at least one annotator. Clips past
/// the end of the ground truth are none. `None` without scores.
pub fn hit_at_one(scores: &[f64], positive: &[[bool; ANNOTATORS]]) -> Option<bool> {
    let best = argmax(scores)?;
    Some(positive.get(best).is_some_and(|p| p.contains(&true)))
}

/// Average precision of a score per clip against one annotator, as the QVHighlights evaluator
/// computes it: the mean, over the clips' distinct scores at which the recall grows, of the best
/// precision at that recall or any higher one.
///
/// Scores are cut to the number of clips, or filled up with zeros. All clips negative gives 0, all
/// positive 1.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> f64 {
    let total = positive.iter().filter(|p| **p).count();
    if total == 0 {
        return 0.0;
    }
    if total == positive.len() {
        return 1.0;
    }
    let score = |i: usize| scores.get(i).copied().unwrap_or(0.0);
    let mut order: Vec<usize> = (0..positive.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (score(*a), score(*b));
        b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
    });
    // Precision and recall after each group of equal scores, from the highest score down.
    let mut curve: Vec<(f64, f32)> = vec![(1.0, 0.0)];
    let mut found = 0usize;
    for (i, clip) in order.iter().enumerate() {
        found += positive[*clip] as usize;
        if order
            .get(i + 1)
            .is_some_and(|next| score(*next) == score(*clip))
        {
            continue;
        }
        // Recall in single precision, as there: it decides where the recall grows.
        let recall = (found as f64 / total as f64) as f32;
        curve.push((found as f64 / (i + 1) as f64, recall));
    }
    let mut best = 0.0;
    let mut points = Vec::new();
    for pair in curve.windows(2).rev() {
        let ((_, before), (precision, recall)) = (pair[0], pair[1]);
        best = f64::max(best, precision);
        if recall != before {
            points.push(best);
        }
    }
    mean(&points).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_by_hand() {
        let positive = [true, false, true, false];
        // Ranking 2, 1, 0, 3: precision 1 at recall 1/2, 2/3 at recall 1.
        let ap = average_precision(&[0.3, 0.5, 0.9, 0.1], &positive);
        assert_eq!(ap, (2.0 / 3.0 + 1.0) / 2.0);
        // All equal: one threshold, precision 1/2.
        assert_eq!(average_precision(&[0.0; 4], &positive), 0.5);
        // Missing scores are zeros, surplus ones are cut.
        assert_eq!(average_precision(&[1.0], &positive), (0.5 + 1.0) / 2.0);
        assert_eq!(
            average_precision(&[1.0, 0.0, 1.0, 0.0, 9.0], &positive),
            1.0
        );
        assert_eq!(average_precision(&[1.0], &[false, false]), 0.0);
        assert_eq!(average_precision(&[1.0], &[true, true]), 1.0);
        // A later, better precision counts for the recall before it: 1/2, then 2/3.
        let ap = average_precision(&[4.0, 3.0, 2.0], &[false, true, true]);
        assert_eq!(ap, 2.0 / 3.0);
    }

    #[test]
    fn hits_by_hand() {
        let positive = [[false; 3], [false, true, false]];
        assert_eq!(hit_at_one(&[0.1, 0.2], &positive), Some(true));
        assert_eq!(hit_at_one(&[0.2, 0.2], &positive), Some(false));
        assert_eq!(hit_at_one(&[0.1, 0.2, 0.3], &positive), Some(false));
        assert_eq!(hit_at_one(&[], &positive), None);
    }
}
