//! Overlap of two windows `[start, end]` in seconds, in the two forms evaluators use.

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
