//! Non-maximum suppression on the time axis.

use tpo_core::geometry::ScoredSpan;

/// Keeps the best spans that do not overlap a better one by more than `threshold` IoU, at most
/// `max` of them, best first. Equal scores keep their order.
///
/// A score that is not a number ranks last.
pub fn temporal_nms(spans: &[ScoredSpan], threshold: f64, max: usize) -> Vec<ScoredSpan> {
    let key = |s: &ScoredSpan| {
        if s.score.is_nan() {
            f64::NEG_INFINITY
        } else {
            s.score
        }
    };
    let mut rest = spans.to_vec();
    rest.sort_by(|a, b| key(b).total_cmp(&key(a)));
    let mut kept: Vec<ScoredSpan> = Vec::new();
    for candidate in rest {
        if kept.len() == max {
            break;
        }
        if kept
            .iter()
            .all(|k| k.span.iou(&candidate.span) <= threshold)
        {
            kept.push(candidate);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use tpo_core::geometry::TimeSpan;

    use super::*;

    fn span(start: f64, end: f64, score: f64) -> ScoredSpan {
        ScoredSpan {
            span: TimeSpan { start, end },
            score,
        }
    }

    #[test]
    fn by_hand() {
        // IoU of the first two: 8 / 12; the third is apart; the fourth overlaps the third by 1/3.
        let all = [
            span(0.0, 10.0, 0.5),
            span(2.0, 12.0, 0.9),
            span(20.0, 22.0, 0.7),
            span(21.0, 23.0, 0.6),
        ];
        let kept = temporal_nms(&all, 0.5, 10);
        assert_eq!(kept, [all[1], all[2], all[3]]);
        assert_eq!(temporal_nms(&all, 0.3, 10), [all[1], all[2]]);
        assert_eq!(temporal_nms(&all, 0.7, 2), [all[1], all[2]]);
        assert!(temporal_nms(&[], 0.5, 10).is_empty());
        assert!(temporal_nms(&all, 0.5, 0).is_empty());
        let odd = [span(0.0, 1.0, f64::NAN), span(0.0, 1.0, 0.1)];
        assert_eq!(temporal_nms(&odd, 0.5, 10), [odd[1]]);
    }
}
