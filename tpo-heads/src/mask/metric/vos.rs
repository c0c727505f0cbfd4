//! Video object segmentation: J and F of objects over frames, DAVIS and Ref-YouTube-VOS.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::geometry::LabelMap;

use super::{
    BitMask, BoundaryTolerance, DecayBins, MetricStatistics, contour_accuracy, region_similarity,
};
use crate::error::HeadsError;

/// The label of pixels nobody decided on (DAVIS).
pub const VOID: u8 = 255;

/// Which frames are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VosProtocol {
    /// Semi-supervised DAVIS: the first frame is given and the last one dropped.
    #[default]
    Davis,
    /// Ref-YouTube-VOS and MeViS: all annotated frames.
    RefYoutubeVos,
}

/// What is scored, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VosOptions {
    /// Which frames.
    pub protocol: VosProtocol,
    /// How far contours may lie apart.
    pub tolerance: BoundaryTolerance,
    /// How quarters are cut in long sequences.
    pub decay: DecayBins,
    /// Every object must be on both sides.
    pub strict: bool,
}

/// Scores of one object of one video, 0–1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectScores {
    /// Video and object.
    pub name: String,
    /// Statistics of J.
    pub j: MetricStatistics,
    /// Statistics of F.
    pub f: MetricStatistics,
    /// J of each scored frame.
    pub j_frames: Vec<f64>,
    /// F of each scored frame.
    pub f_frames: Vec<f64>,
}

impl ObjectScores {
    /// Scores all given frames; the protocol has been applied by the caller.
    pub fn new(
        name: impl Into<String>,
        frames: impl IntoIterator<Item = (BitMask, BitMask)>,
        options: &VosOptions,
    ) -> Result<Self, HeadsError> {
        let (mut j_frames, mut f_frames) = (Vec::new(), Vec::new());
        for (truth, result) in frames {
            j_frames.push(region_similarity(&truth, &result)?);
            f_frames.push(contour_accuracy(&truth, &result, options.tolerance)?.f);
        }
        Ok(Self {
            name: name.into(),
            j: MetricStatistics::new(&j_frames, options.decay),
            f: MetricStatistics::new(&f_frames, options.decay),
            j_frames,
            f_frames,
        })
    }
}

impl VosProtocol {
    /// The part of a sequence of `frames` that is scored.
    pub fn scored(self, frames: usize) -> std::ops::Range<usize> {
        match self {
            Self::Davis => 1.min(frames)..frames.saturating_sub(1).max(1.min(frames)),
            Self::RefYoutubeVos => 0..frames,
        }
    }
}

/// Scores the objects of one sequence of label images: the labels 1.. of the *first* frame of the
/// ground truth, as DAVIS. `results` are the frames that are scored; see [`VosProtocol::scored`].
///
/// # Errors
/// Another size or number of frames, a label above the number of objects.
pub fn score_labels(
    video: &str,
    truth: &[LabelMap],
    results: &[LabelMap],
    options: &VosOptions,
) -> Result<Vec<ObjectScores>, HeadsError> {
    let scored = options.protocol.scored(truth.len());
    let fail = |why, hint| {
        HeadsError::from(CoreError::Metric {
            metric: "J&F",
            why,
            hint,
        })
    };
    if scored.is_empty() || scored.len() != results.len() {
        return Err(fail(
            format!(
                "sequence {video} has {} frames of ground truth, of which {} are scored, and {} results",
                truth.len(),
                scored.len(),
                results.len()
            ),
            "give one result for every scored frame, and at least one scored frame",
        ));
    }
    let label = |map: &LabelMap| map.labels.iter().copied().filter(|l| *l != VOID).max();
    let objects = truth.first().and_then(label).unwrap_or(0);
    let highest = results
        .iter()
        .filter_map(|m| m.labels.iter().copied().max())
        .max();
    if highest.unwrap_or(0) > objects {
        return Err(fail(
            format!(
                "a result of sequence {video} has the label {}, its first frame has {objects} objects",
                highest.unwrap_or(0)
            ),
            "labels must be those of the first annotated frame",
        ));
    }
    (1..=objects)
        .into_par_iter()
        .map(|object| {
            let bits = |m: &LabelMap| BitMask::from_labels(m.height, m.width, &m.labels, object);
            let frames = truth[scored.clone()].iter().zip(results);
            ObjectScores::new(
                format!("{video}_{object}"),
                frames.map(|(t, r)| (bits(t), bits(r))),
                options,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(rows: &[&str]) -> LabelMap {
        LabelMap {
            height: rows.len(),
            width: rows[0].len(),
            labels: rows
                .iter()
                .flat_map(|r| r.bytes().map(|b| b - b'0'))
                .collect(),
        }
    }

    #[test]
    fn davis_drops_both_ends() {
        let scored = |n| VosProtocol::Davis.scored(n);
        assert_eq!(
            (
                scored(5),
                scored(3),
                scored(2).len(),
                scored(1).len(),
                scored(0).len()
            ),
            (1..4, 1..2, 0, 0, 0)
        );
        assert_eq!(VosProtocol::RefYoutubeVos.scored(2), 0..2);
    }

    #[test]
    fn objects_are_those_of_the_first_frame() {
        let truth = [labels(&["1122"]), labels(&["1102"]), labels(&["3333"])];
        let result = [labels(&["1112"])];
        let scores = score_labels("v", &truth, &result, &VosOptions::default()).unwrap();
        assert_eq!(scores.len(), 2);
        assert_eq!(
            (scores[0].name.as_str(), scores[0].j_frames[0]),
            ("v_1", 2.0 / 3.0)
        );
        assert_eq!(scores[1].j_frames, [1.0]);
        // A label the first frame does not have, and a missing frame.
        assert!(score_labels("v", &truth, &[labels(&["1113"])], &VosOptions::default()).is_err());
        assert!(score_labels("v", &truth, &[], &VosOptions::default()).is_err());
        assert!(score_labels("v", &truth, &[labels(&["11"])], &VosOptions::default()).is_err());
    }
}
