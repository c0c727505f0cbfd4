//! Acc@IoU and mean IoU, the metrics of referring expression comprehension.

use serde::Serialize;
use tpo_core::geometry::BoxXyxy;

/// Share of predictions whose IoU with the truth reaches a threshold (RefCOCO: 0.5).
#[derive(Debug, Clone, Serialize)]
pub struct BoxAccuracy {
    /// The threshold; reaching it counts.
    pub threshold: f32,
    /// Predictions seen.
    pub count: usize,
    /// Predictions at or above the threshold.
    pub hits: usize,
    iou_sum: f64,
}

impl BoxAccuracy {
    /// Acc@`threshold`.
    pub fn new(threshold: f32) -> Self {
        Self {
            threshold,
            count: 0,
            hits: 0,
            iou_sum: 0.0,
        }
    }

    /// Adds a prediction. A missing answer counts as a miss.
    pub fn update(&mut self, predicted: Option<&BoxXyxy>, target: &BoxXyxy) {
        let iou = predicted.map_or(0.0, |p| p.clamped().iou(target));
        self.count += 1;
        self.hits += (iou >= self.threshold) as usize;
        self.iou_sum += iou as f64;
    }

    /// Hits over predictions; `None` before the first.
    pub fn accuracy(&self) -> Option<f64> {
        (self.count > 0).then(|| self.hits as f64 / self.count as f64)
    }

    /// Mean IoU; `None` before the first.
    pub fn mean_iou(&self) -> Option<f64> {
        (self.count > 0).then(|| self.iou_sum / self.count as f64)
    }
}

/// Intersection over union of `[x0, y0, x1, y1]`; 0 where the union is empty.
pub fn box_iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let area = |r: [f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let union = area(a) + area(b) - w * h;
    if union > 0.0 { w * h / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_overlap_is_a_miss_and_the_threshold_itself_a_hit() {
        let truth = BoxXyxy::from([0.0, 0.0, 0.5, 1.0]);
        let mut acc = BoxAccuracy::new(0.5);
        acc.update(Some(&truth), &truth);
        acc.update(Some(&BoxXyxy::from([0.0, 0.0, 1.0, 1.0])), &truth); // 0.5
        acc.update(Some(&BoxXyxy::from([0.25, 0.0, 0.75, 1.0])), &truth); // 1/3
        acc.update(None, &truth);
        assert_eq!((acc.hits, acc.count), (2, 4));
        assert_eq!(acc.accuracy(), Some(0.5));
        assert!((acc.mean_iou().unwrap() - (1.0 + 0.5 + 1.0 / 3.0) / 4.0).abs() < 1e-6);
        assert_eq!(BoxAccuracy::new(0.5).accuracy(), None);
    }
}
