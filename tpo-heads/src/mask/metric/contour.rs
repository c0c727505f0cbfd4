//! Region similarity J and contour accuracy F of one frame, as DAVIS defines them.

use serde::{Deserialize, Serialize};
use tpo_core::CoreError;

use super::BitMask;
use crate::error::HeadsError;

/// How far a contour may lie from the annotated one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundaryTolerance {
    /// A share of the image diagonal, rounded up to pixels.
    Diagonal(f64),
    /// Pixels.
    Pixels(usize),
}

impl Default for BoundaryTolerance {
    /// 0.008 of the diagonal (DAVIS).
    fn default() -> Self {
        Self::Diagonal(0.008)
    }
}

impl BoundaryTolerance {
    /// The radius in pixels for an image of this size.
    pub fn radius(self, height: usize, width: usize) -> usize {
        match self {
            Self::Diagonal(share) => {
                let diagonal = ((height * height + width * width) as f64).sqrt();
                (share * diagonal).ceil().max(0.0) as usize
            }
            Self::Pixels(radius) => radius,
        }
    }
}

/// Contour accuracy and its parts, 0–1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Contour {
    /// Share of the predicted contour near the annotated one.
    pub precision: f64,
    /// Share of the annotated contour near the predicted one.
    pub recall: f64,
    /// Their harmonic mean; 0 where both are 0.
    pub f: f64,
}

fn same_size(place: &'static str, truth: &BitMask, result: &BitMask) -> Result<(), HeadsError> {
    if truth.size() == result.size() {
        return Ok(());
    }
    let (h, w) = result.size();
    Err(CoreError::Shape {
        place,
        what: "mask",
        expected: format!("{:?}, the size of the ground truth", truth.size()),
        found: vec![h, w],
    }
    .into())
}

/// Region similarity: intersection over union, 1 where both are empty. Masks without their void
/// pixels ([`BitMask::without`]) give DAVIS's variant with void.
pub fn region_similarity(truth: &BitMask, result: &BitMask) -> Result<f64, HeadsError> {
    same_size("region_similarity", truth, result)?;
    let union = truth.union(result);
    Ok(if union == 0 {
        1.0
    } else {
        truth.intersection(result) as f64 / union as f64
    })
}

/// Contour accuracy. Without any contour it is 1, with one on one side only 0; a full mask has no
/// contour, so a full and an empty mask agree.
pub fn contour_accuracy(
    truth: &BitMask,
    result: &BitMask,
    tolerance: BoundaryTolerance,
) -> Result<Contour, HeadsError> {
    same_size("contour_accuracy", truth, result)?;
    let (height, width) = truth.size();
    let radius = tolerance.radius(height, width);
    let (truth, result) = (truth.boundary(), result.boundary());
    let (n_truth, n_result) = (truth.area(), result.area());
    let (precision, recall) = match (n_result, n_truth) {
        (0, 0) => (1.0, 1.0),
        (0, _) => (1.0, 0.0),
        (_, 0) => (0.0, 1.0),
        _ => {
            let near_truth = result.intersection(&truth.dilate(radius));
            let near_result = truth.intersection(&result.dilate(radius));
            (
                near_truth as f64 / n_result as f64,
                near_result as f64 / n_truth as f64,
            )
        }
    };
    let f = if precision + recall == 0.0 {
        0.0
    } else {
        2.0 * precision * recall / (precision + recall)
    };
    Ok(Contour {
        precision,
        recall,
        f,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let left = BitMask::from_fn(4, 8, |_, x| x < 4);
        let shifted = BitMask::from_fn(4, 8, |_, x| x < 5);
        assert_eq!(region_similarity(&left, &shifted).unwrap(), 0.8);
        // Contours are the columns 3 and 4.
        let at = |r| {
            contour_accuracy(&left, &shifted, BoundaryTolerance::Pixels(r))
                .unwrap()
                .f
        };
        assert_eq!((at(0), at(1)), (0.0, 1.0));
        let none = BitMask::empty(4, 8);
        let full = BitMask::from_fn(4, 8, |_, _| true);
        let f = |a, b| contour_accuracy(a, b, Default::default()).unwrap().f;
        assert_eq!(
            (f(&none, &none), f(&full, &none), f(&left, &none)),
            (1.0, 1.0, 0.0)
        );
        assert_eq!(region_similarity(&none, &none).unwrap(), 1.0);
        assert_eq!(region_similarity(&full, &none).unwrap(), 0.0);
        assert!(region_similarity(&left, &BitMask::empty(8, 4)).is_err());
        // 0.008 of the diagonal, rounded up: 480p has 8 pixels, a small image 1.
        let radius = |h, w| BoundaryTolerance::default().radius(h, w);
        assert_eq!(
            (radius(480, 854), radius(10, 10), radius(1080, 1920)),
            (8, 1, 18)
        );
    }
}
