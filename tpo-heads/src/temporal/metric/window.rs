//! Overlap of two windows `[start, end]` in seconds, in the forms evaluators use.

/// Intersection over union. NaN where both windows have no length, as in the reference.
pub fn iou(a: [f64; 2], b: [f64; 2]) -> f64 {
    let inter = (a[1].min(b[1]) - a[0].max(b[0])).max(0.0);
    let union = (a[1] - a[0]) + (b[1] - b[0]) - inter;
    inter / union
}

/// Intersection over the *hull* of both windows: equal to [`iou`] where they touch, and 0 like it
/// where they do not. 0 where the hull has no length.
pub fn hull_iou(a: [f64; 2], b: [f64; 2]) -> f64 {
    let inter = (a[1].min(b[1]) - a[0].max(b[0])).max(0.0);
    let hull = a[1].max(b[1]) - a[0].min(b[0]);
    if hull != 0.0 { inter / hull } else { 0.0 }
}

/// IoU over the hull and intersection over prediction, as NExT-GQA's script computes them: both
/// may be negative where the windows do not touch. A predicted moment (start = end) has IoU 0, and
/// an intersection over prediction of 1 inside the truth.
pub fn grounding_overlap(truth: [f64; 2], predicted: [f64; 2]) -> (f64, f64) {
    if predicted[0] == predicted[1] {
        let inside = truth[0] <= predicted[0] && predicted[0] <= truth[1];
        return (0.0, inside as u8 as f64);
    }
    let hull = truth[1].max(predicted[1]) - truth[0].min(predicted[0]);
    let inter = truth[1].min(predicted[1]) - truth[0].max(predicted[0]);
    let length = predicted[1] - predicted[0];
    let over = |d: f64| if d > 0.0 { inter / d } else { 0.0 };
    (over(hull), over(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(iou([0.0, 4.0], [2.0, 6.0]), 2.0 / 6.0);
        assert_eq!(hull_iou([0.0, 4.0], [2.0, 6.0]), 2.0 / 6.0);
        assert_eq!(
            (
                iou([0.0, 1.0], [2.0, 3.0]),
                hull_iou([0.0, 1.0], [2.0, 3.0])
            ),
            (0.0, 0.0)
        );
        assert!(iou([1.0, 1.0], [1.0, 1.0]).is_nan());
        assert_eq!(hull_iou([1.0, 1.0], [1.0, 1.0]), 0.0);
    }
}
