//! GOT-10k: average overlap and success rates.
//!
//! As the toolkit: the first frame is left out, boxes are cut to the image, frames where the
//! object is not visible at all do not count, a rate counts overlaps strictly above its threshold.
//! The toolkit averages over all frames of all sequences, the server over classes, which needs
//! labels that are not public; the mean over sequences is given too.

use serde::Serialize;
use tpo_core::CoreError;

use super::{BoxXywh, inter_union};
use crate::error::HeadsError;
use crate::numeric::mean;

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "GOT-10k toolkit 0.1.3";

/// What is scored of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Got10kSequence {
    /// Name, for reports.
    pub name: String,
    /// Annotated boxes.
    pub truth: Vec<BoxXywh>,
    /// Predicted boxes, as many.
    pub predicted: Vec<BoxXywh>,
    /// Visible share of the object, 0–8; empty means always visible.
    pub cover: Vec<f64>,
    /// `[width, height]` of the image; `None` leaves boxes as they are.
    pub resolution: Option<[f64; 2]>,
}

/// Overlaps and scores, 0–1. `None` where no frame counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Got10kSequenceScores {
    /// Name of the sequence.
    pub name: String,
    /// Overlap of each counted frame.
    pub overlap: Vec<f64>,
    /// Mean overlap.
    pub ao: Option<f64>,
    /// Share of overlaps above 0.5.
    pub sr_50: Option<f64>,
    /// Share of overlaps above 0.75.
    pub sr_75: Option<f64>,
}

/// Scores of a dataset, 0–1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Got10kScores {
    /// Over all frames of all sequences, as the toolkit prints.
    pub ao: Option<f64>,
    /// Share of overlaps above 0.5.
    pub sr_50: Option<f64>,
    /// Share of overlaps above 0.75.
    pub sr_75: Option<f64>,
    /// Share of overlaps above 0, 0.01 .. 1.
    pub success_curve: Vec<f64>,
    /// Plain mean of the sequences' AO, SR0.5 and SR0.75; sequences without counted frames are
    /// left out.
    pub mean_of_sequences: [Option<f64>; 3],
    /// Each sequence.
    pub sequences: Vec<Got10kSequenceScores>,
}

/// Overlap of two boxes, both cut to the image where its size is given.
pub fn rect_iou(a: BoxXywh, b: BoxXywh, resolution: Option<[f64; 2]>) -> f64 {
    let cut = |r: BoxXywh| match resolution {
        None => r,
        Some([w, h]) => {
            // min and max in numpy's order, which lets no bound panic
            let x = r[0].max(0.0).min(w);
            let y = r[1].max(0.0).min(h);
            [x, y, r[2].max(0.0).min(w - x), r[3].max(0.0).min(h - y)]
        }
    };
    let (inter, union) = inter_union(cut(a), cut(b));
    let iou = inter / (union + f64::EPSILON);
    if iou.is_nan() {
        0.0
    } else {
        iou.clamp(0.0, 1.0)
    }
}

/// Share of overlaps strictly above a threshold.
fn rate(overlap: &[f64], threshold: f64) -> Option<f64> {
    let above = overlap.iter().filter(|o| **o > threshold).count();
    (!overlap.is_empty()).then(|| above as f64 / overlap.len() as f64)
}

impl Got10kSequence {
    /// Scores the sequence.
    ///
    /// # Errors
    /// Lists of different lengths, a predicted box that is not a number.
    pub fn score(&self) -> Result<Got10kSequenceScores, HeadsError> {
        let fail = |why: String| -> HeadsError {
            CoreError::Metric {
                metric: "GOT-10k",
                why: format!("sequence {}: {why}", self.name),
                hint: "give one box of finite numbers per annotated frame",
            }
            .into()
        };
        let n = self.truth.len();
        if self.predicted.len() != n || !(self.cover.is_empty() || self.cover.len() == n) {
            return Err(fail(format!(
                "{n} annotated boxes, {} predicted ones, {} values of cover",
                self.predicted.len(),
                self.cover.len()
            )));
        }
        let finite =
            |boxes: &[BoxXywh]| boxes.iter().position(|b| b.iter().any(|v| !v.is_finite()));
        if let Some(frame) = finite(&self.predicted).or_else(|| finite(&self.truth)) {
            return Err(fail(format!("the box of frame {frame} is not finite")));
        }
        let overlap: Vec<f64> = (1..n)
            .filter(|i| self.cover.get(*i).is_none_or(|c| *c > 0.0))
            .map(|i| rect_iou(self.predicted[i], self.truth[i], self.resolution))
            .collect();
        Ok(Got10kSequenceScores {
            name: self.name.clone(),
            ao: mean(&overlap),
            sr_50: rate(&overlap, 0.5),
            sr_75: rate(&overlap, 0.75),
            overlap,
        })
    }
}

impl Got10kScores {
    /// Scores over all frames, and means over sequences.
    pub fn new(sequences: Vec<Got10kSequenceScores>) -> Self {
        let all: Vec<f64> = sequences
            .iter()
            .flat_map(|s| s.overlap.iter().copied())
            .collect();
        let over = |get: fn(&Got10kSequenceScores) -> Option<f64>| {
            mean(&sequences.iter().filter_map(get).collect::<Vec<_>>())
        };
        Self {
            ao: mean(&all),
            sr_50: rate(&all, 0.5),
            sr_75: rate(&all, 0.75),
            success_curve: (0..=100).filter_map(|k| rate(&all, threshold(k))).collect(),
            mean_of_sequences: [over(|s| s.ao), over(|s| s.sr_50), over(|s| s.sr_75)],
            sequences,
        }
    }
}

/// `numpy.linspace(0, 1, 101)[k]`.
fn threshold(k: usize) -> f64 {
    if k == 100 { 1.0 } else { k as f64 * 0.01 }
}

impl Got10kSequenceScores {
    /// Share of overlaps above 0, 0.01 .. 1; empty where no frame counts.
    pub fn success_curve(&self) -> Vec<f64> {
        (0..=100)
            .filter_map(|k| rate(&self.overlap, threshold(k)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let s = Got10kSequence {
            name: "s".into(),
            truth: vec![[0.0, 0.0, 10.0, 10.0]; 4],
            predicted: vec![
                [50.0, 0.0, 1.0, 1.0],    // the first frame does not count
                [-10.0, 0.0, 20.0, 10.0], // cut: x to 0, then the width to what is left
                [0.0, 0.0, 10.0, 5.0],    // 0.5: not above 0.5
                [90.0, 90.0, 1.0, 1.0],   // not visible: does not count
            ],
            cover: vec![8.0, 8.0, 1.0, 0.0],
            resolution: Some([100.0, 100.0]),
        };
        let r = s.score().unwrap();
        assert_eq!(r.overlap, [0.5, 0.5]);
        assert_eq!((r.ao, r.sr_50, r.sr_75), (Some(0.5), Some(0.0), Some(0.0)));
        let all = Got10kScores::new(vec![r]);
        assert_eq!(
            (all.ao, all.success_curve[49], all.success_curve[50]),
            (Some(0.5), 1.0, 0.0)
        );
        let nan = Got10kSequence {
            predicted: vec![[f64::NAN; 4]; 4],
            ..s.clone()
        };
        assert!(nan.score().is_err());
        let short = Got10kSequence {
            cover: vec![1.0],
            ..s
        };
        assert!(short.score().is_err());
        assert_eq!(Got10kScores::new(vec![]).ao, None);
    }
}
