//! LaSOT: success, precision and normalised precision of the one-pass evaluation.
//!
//! As the evaluation toolkit, habits included: from the second frame on an unusable result repeats
//! the one before; then the first frame takes the annotation. Frames where the object is absent
//! are dropped, yet stay in the denominator. A frame whose annotation is not positive in all four
//! numbers has overlap, error and normalised error −1: no success, but within every error.

use serde::Serialize;
use tpo_core::CoreError;

use super::{BoxXywh, centre, distance, inter_union};
use crate::error::HeadsError;
use crate::numeric::mean;

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "LaSOT evaluation toolkit, one-pass";

/// MATLAB's `eps`, which the toolkit adds to the number of frames.
const EPS: f64 = f64::EPSILON;

/// What is scored of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LasotSequence {
    /// Name, for reports.
    pub name: String,
    /// Annotated boxes.
    pub truth: Vec<BoxXywh>,
    /// Predicted boxes, as many.
    pub predicted: Vec<BoxXywh>,
    /// Whether the object is absent (fully occluded or out of view); empty means never.
    pub absent: Vec<bool>,
}

/// Curves and scores of one sequence, 0–1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LasotSequenceScores {
    /// Name of the sequence.
    pub name: String,
    /// Frames, absent ones included.
    pub frames: usize,
    /// Overlap of each frame that is not absent; −1 without usable annotation.
    pub overlap: Vec<f64>,
    /// Distance of centres in pixels, likewise.
    pub centre_error: Vec<f64>,
    /// Distance of centres in units of the annotated box, likewise.
    pub normalised_error: Vec<f64>,
    /// Share of frames with an overlap above 0, 0.05 .. 1.
    pub success_curve: Vec<f64>,
    /// Share of frames with an error of at most 0, 1 .. 50 pixels.
    pub precision_curve: Vec<f64>,
    /// Share of frames with a normalised error of at most 0, 0.01 .. 0.5.
    pub normalised_curve: Vec<f64>,
    /// Mean of the success curve: the `Success` (AUC) of tables.
    pub success_auc: f64,
    /// Precision at 20 pixels.
    pub precision: f64,
    /// Normalised precision at 0.2, which the toolkit ranks by.
    pub normalised_precision: f64,
    /// Mean of the normalised curve, as TrackingNet reports it.
    pub normalised_precision_auc: f64,
}

/// Plain means over sequences, 0–1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LasotScores {
    /// Mean of `success_auc`.
    pub success_auc: f64,
    /// Mean of `precision`.
    pub precision: f64,
    /// Mean of `normalised_precision`.
    pub normalised_precision: f64,
    /// Mean of `normalised_precision_auc`.
    pub normalised_precision_auc: f64,
    /// Each sequence.
    pub sequences: Vec<LasotSequenceScores>,
}

fn fail(name: &str, why: String) -> HeadsError {
    CoreError::Metric {
        metric: "LaSOT",
        why: format!("sequence {name}: {why}"),
        hint: "give one box and one flag per annotated frame",
    }
    .into()
}

impl LasotSequence {
    /// Scores the sequence.
    ///
    /// # Errors
    /// No frame, or lists of different lengths.
    pub fn score(&self) -> Result<LasotSequenceScores, HeadsError> {
        let n = self.truth.len();
        if n == 0 {
            return Err(fail(&self.name, "it has no frame".into()));
        }
        if self.predicted.len() != n || !(self.absent.is_empty() || self.absent.len() == n) {
            return Err(fail(
                &self.name,
                format!(
                    "{n} annotated boxes, {} predicted ones, {} flags",
                    self.predicted.len(),
                    self.absent.len()
                ),
            ));
        }
        let predicted = repaired(&self.truth, &self.predicted);
        let (mut overlap, mut error, mut normalised) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (t, p)) in self.truth.iter().zip(&predicted).enumerate() {
            if self.absent.get(i) == Some(&true) {
                continue;
            }
            if !t.iter().all(|v| *v > 0.0) {
                overlap.push(-1.0);
                error.push(-1.0);
                normalised.push(-1.0);
                continue;
            }
            let (inter, union) = inter_union(*t, *p);
            overlap.push(inter / union);
            let (ct, cp) = (centre(*t), centre(*p));
            error.push(distance(ct, cp));
            let scaled = |c: [f64; 2]| [c[0] / t[2], c[1] / t[3]];
            let (ct, cp) = (scaled(ct), scaled(cp));
            normalised.push(distance(ct, cp));
        }
        let all = n as f64 + EPS;
        let share = |values: &[f64], within: &dyn Fn(f64) -> bool| {
            values.iter().filter(|v| within(**v)).count() as f64 / all
        };
        let success_curve: Vec<f64> = (0..=20)
            .map(|k| share(&overlap, &|o| o > k as f64 * 0.05))
            .collect();
        let precision_curve: Vec<f64> = (0..=50)
            .map(|k| share(&error, &|e| e <= k as f64))
            .collect();
        let normalised_curve: Vec<f64> = (0..=50)
            .map(|k| share(&normalised, &|e| e <= k as f64 * 0.01))
            .collect();
        let auc = |curve: &[f64]| mean(curve).unwrap_or(0.0);
        Ok(LasotSequenceScores {
            name: self.name.clone(),
            frames: n,
            success_auc: auc(&success_curve),
            precision: precision_curve[20],
            normalised_precision: normalised_curve[20],
            normalised_precision_auc: auc(&normalised_curve),
            overlap,
            centre_error: error,
            normalised_error: normalised,
            success_curve,
            precision_curve,
            normalised_curve,
        })
    }
}

/// Unusable results repeat the one before; afterwards the first is the annotation.
fn repaired(truth: &[BoxXywh], predicted: &[BoxXywh]) -> Vec<BoxXywh> {
    let mut out = predicted.to_vec();
    for i in 1..out.len() {
        let b = out[i];
        let bad = b.iter().any(|v| v.is_nan()) || b[2] <= 0.0 || b[3] <= 0.0;
        if bad && !truth[i].iter().any(|v| v.is_nan()) {
            out[i] = out[i - 1];
        }
    }
    out[0] = truth[0];
    out
}

impl LasotScores {
    /// Means over sequences; an error without any.
    pub fn new(sequences: Vec<LasotSequenceScores>) -> Result<Self, HeadsError> {
        let over = |get: fn(&LasotSequenceScores) -> f64| {
            mean(&sequences.iter().map(get).collect::<Vec<_>>())
                .ok_or_else(|| fail("(none)", "there is no sequence".into()))
        };
        Ok(Self {
            success_auc: over(|s| s.success_auc)?,
            precision: over(|s| s.precision)?,
            normalised_precision: over(|s| s.normalised_precision)?,
            normalised_precision_auc: over(|s| s.normalised_precision_auc)?,
            sequences,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let b = |x: f64| [x, 10.0, 20.0, 10.0];
        let s = LasotSequence {
            name: "s".into(),
            truth: vec![b(0.0), b(10.0), b(10.0), b(10.0), b(10.0)],
            // First one ignored; 5 px off; unusable, so 5 px off again; absent; exact.
            predicted: vec![b(99.0), b(15.0), [0.0, 0.0, 0.0, 5.0], b(80.0), b(10.0)],
            absent: vec![false, false, false, true, false],
        };
        let r = s.score().unwrap();
        // The first annotation starts at x = 0, which is not positive.
        assert_eq!(r.overlap, [-1.0, 150.0 / 250.0, 0.6, 1.0]);
        assert_eq!(r.centre_error, [-1.0, 5.0, 5.0, 0.0]);
        for (got, right) in r.normalised_error.iter().zip([-1.0, 0.25, 0.25, 0.0]) {
            assert!((got - right).abs() < 1e-12);
        }
        assert_eq!((r.precision, r.normalised_precision), (0.8, 0.4));
        // Above 0 .. 0.55: three of five; up to 0.95: one.
        assert!((r.success_auc - (12.0 * 0.6 + 8.0 * 0.2) / 21.0).abs() < 1e-12);
        assert!(LasotScores::new(vec![]).is_err());
        let short = LasotSequence {
            predicted: vec![],
            ..s.clone()
        };
        assert!(short.score().is_err());
        assert!(LasotSequence::default().score().is_err());
    }
}
