//! Video object segmentation: J and F of objects over frames, DAVIS and Ref-YouTube-VOS.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::geometry::{LabelMap, Rle};
use tpo_core::rows::{Matched, Problem, Record, SampleId, Table};

use super::{
    BitMask, BoundaryTolerance, DecayBins, MetricStatistics, contour_accuracy, region_similarity,
};
use crate::error::HeadsError;
use crate::numeric::mean;

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "davis2017-evaluation J&F";

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

/// Scores of a data set, 0–1: plain means over the objects. `None` where an object has none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VosScores {
    /// Which objects were scored, and which only one side has.
    pub matched: Matched,
    /// Mean of J and F.
    pub jf_mean: Option<f64>,
    /// Region similarity.
    pub j_mean: Option<f64>,
    /// Share of frames with J above 0.5.
    pub j_recall: Option<f64>,
    /// Loss of J over time.
    pub j_decay: Option<f64>,
    /// Contour accuracy.
    pub f_mean: Option<f64>,
    /// Share of frames with F above 0.5.
    pub f_recall: Option<f64>,
    /// Loss of F over time.
    pub f_decay: Option<f64>,
    /// Each object.
    pub objects: Vec<ObjectScores>,
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

impl VosScores {
    /// Means over objects.
    pub fn new(objects: Vec<ObjectScores>, matched: Matched) -> Self {
        let over = |get: fn(&ObjectScores) -> Option<f64>| -> Option<f64> {
            mean(&objects.iter().map(get).collect::<Option<Vec<_>>>()?)
        };
        let (j_mean, f_mean) = (over(|o| o.j.mean), over(|o| o.f.mean));
        Self {
            matched,
            jf_mean: j_mean.zip(f_mean).map(|(j, f)| (j + f) / 2.0),
            j_mean,
            j_recall: over(|o| o.j.recall),
            j_decay: over(|o| o.j.decay),
            f_mean,
            f_recall: over(|o| o.f.recall),
            f_decay: over(|o| o.f.decay),
            objects,
        }
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

/// Masks of one object through one video, one JSON line: `{"video": "v", "object": 1, "masks":
/// [{"size": [h, w], "counts": ".."}, null, ..]}`.
///
/// `null` is an empty mask in a prediction, and a frame that is not annotated in the ground truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskTrack {
    /// The video.
    pub video: SampleId,
    /// The object, or the referring expression.
    #[serde(alias = "expression")]
    pub object: SampleId,
    /// A mask per frame.
    pub masks: Vec<Option<Rle>>,
}

impl Record for MaskTrack {
    type Id = String;

    fn id(&self) -> String {
        let plain = |id: &SampleId| match id {
            SampleId::Number(n) => n.to_string(),
            SampleId::Name(name) => name.clone(),
        };
        format!("{}/{}", plain(&self.video), plain(&self.object))
    }

    fn check(&self) -> Result<(), Problem> {
        let sizes: Vec<_> = self.masks.iter().flatten().map(|m| m.size).collect();
        if let Some(other) = sizes.iter().find(|s| **s != sizes[0]) {
            return Err(Problem::new(
                format!("masks of the sizes {:?} and {other:?}", sizes[0]),
                "all frames of a video have one size [height, width]",
            ));
        }
        Ok(())
    }
}

/// Scores masks in run-length form. `done` is called after every object.
///
/// # Errors
/// No common object, another number or size of frames, broken run lengths, objects on one side
/// only under `strict`.
pub fn evaluate(
    predictions: &Table<MaskTrack>,
    truth: &Table<MaskTrack>,
    options: &VosOptions,
    done: impl Fn() + Sync,
) -> Result<VosScores, HeadsError> {
    let matched = predictions.compare(truth);
    if options.strict {
        matched.require_complete(&predictions.file, &truth.file)?;
    }
    let pairs: Vec<_> = truth
        .iter()
        .filter_map(|t| Some((predictions.get(&t.id())?, t)))
        .collect();
    if pairs.is_empty() {
        return Err(CoreError::Metric {
            metric: "J&F",
            why: "predictions and ground truth share no object".into(),
            hint: "check that both files name videos and objects alike",
        }
        .into());
    }
    let objects = pairs
        .par_iter()
        .map(|(p, t)| {
            let scores = track(p, t, options).map_err(|e| match e {
                TrackError::Prediction(problem) => predictions.problem(&p.id(), problem).into(),
                TrackError::Truth(problem) => truth.problem(&t.id(), problem).into(),
                TrackError::Other(e) => e,
            });
            done();
            scores
        })
        .collect::<Result<Vec<_>, HeadsError>>()?;
    Ok(VosScores::new(objects, matched))
}

enum TrackError {
    Prediction(Problem),
    Truth(Problem),
    Other(HeadsError),
}

fn track(p: &MaskTrack, t: &MaskTrack, options: &VosOptions) -> Result<ObjectScores, TrackError> {
    let hint = "give one mask (or null) per frame of the ground truth, of the same size";
    if p.masks.len() != t.masks.len() {
        let why = format!(
            "{} has {} frames, the ground truth {}",
            p.id(),
            p.masks.len(),
            t.masks.len()
        );
        return Err(TrackError::Prediction(Problem::new(why, hint)));
    }
    let annotated: Vec<_> = p.masks.iter().zip(&t.masks).collect();
    let scored = options.protocol.scored(annotated.len());
    let decode = |rle: &Rle| {
        BitMask::try_from(rle)
            .map_err(|e| Problem::new(e.to_string(), "write the run lengths as pycocotools does"))
    };
    let mut frames = Vec::new();
    for (p_mask, t_mask) in &annotated[scored] {
        let Some(t_mask) = t_mask else { continue };
        let truth = decode(t_mask).map_err(TrackError::Truth)?;
        let (h, w) = truth.size();
        let result = match p_mask {
            Some(rle) if rle.size != [h, w] => {
                let why = format!(
                    "{} is {:?} large, the ground truth {:?}",
                    p.id(),
                    rle.size,
                    [h, w]
                );
                return Err(TrackError::Prediction(Problem::new(why, hint)));
            }
            Some(rle) => decode(rle).map_err(TrackError::Prediction)?,
            None => BitMask::empty(h, w),
        };
        frames.push((truth, result));
    }
    if frames.is_empty() {
        let why = format!("{} has no annotated frame that is scored", t.id());
        return Err(TrackError::Truth(Problem::new(
            why,
            "DAVIS drops the first and the last frame; annotate more, or use ref-youtube-vos",
        )));
    }
    ObjectScores::new(p.id(), frames, options).map_err(TrackError::Other)
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
        let all = VosScores::new(scores, Matched::default());
        assert_eq!(all.j_mean, Some((2.0 / 3.0 + 1.0) / 2.0));
        // A label the first frame does not have, and a missing frame.
        assert!(score_labels("v", &truth, &[labels(&["1113"])], &VosOptions::default()).is_err());
        assert!(score_labels("v", &truth, &[], &VosOptions::default()).is_err());
        assert!(score_labels("v", &truth, &[labels(&["11"])], &VosOptions::default()).is_err());
    }

    #[test]
    fn run_lengths_with_frames_nobody_annotated() {
        let read = |text: &str| {
            Table::<MaskTrack>::from_reader(text.as_bytes(), "f", &Default::default()).unwrap()
        };
        let mask = r#"{"size":[2,2],"counts":[0,2,2]}"#;
        let row = |masks: &str| format!("{{\"video\":\"v\",\"expression\":0,\"masks\":[{masks}]}}");
        let options = VosOptions {
            protocol: VosProtocol::RefYoutubeVos,
            ..Default::default()
        };
        let truth = read(&row(&format!("{mask},null,{mask}")));
        let scores = evaluate(
            &read(&row(&format!("{mask},{mask},null"))),
            &truth,
            &options,
            || {},
        )
        .unwrap();
        assert_eq!(
            (
                scores.objects[0].name.as_str(),
                &scores.objects[0].j_frames[..]
            ),
            ("v/0", &[1.0, 0.0][..])
        );
        for bad in [
            mask.to_string(),
            format!("{mask},{mask},{}", r#"{"size":[4,1],"counts":[4]}"#),
        ] {
            let table =
                Table::<MaskTrack>::from_reader(row(&bad).as_bytes(), "f", &Default::default());
            assert!(table.is_err() || evaluate(&table.unwrap(), &truth, &options, || {}).is_err());
        }
        let davis = VosOptions::default();
        assert!(
            evaluate(&truth, &truth, &davis, || {}).is_err(),
            "the middle is not annotated"
        );
    }
}
