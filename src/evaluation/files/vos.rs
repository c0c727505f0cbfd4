//! Video object segmentation from files: masks in run-length form, means over all objects.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::Rle;
use tpo_heads::mask::metric::BitMask;
use tpo_heads::mask::metric::vos::{ObjectScores, VosOptions};
use tpo_heads::numeric::mean;

use super::{Matched, Problem, Record, SampleId, Score, Table, nothing_shared};
use crate::error::{Error, Result};

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "davis2017-evaluation J&F";

/// Scores of a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VosScores {
    /// Which objects were scored, and which only one side has.
    pub matched: Matched,
    /// Plain means over the objects, 0–1, without a value where an object has none: of J and F
    /// (`J&F-Mean`), and mean, recall (the share of frames above 0.5) and decay (the loss over time)
    /// of region similarity J and contour accuracy F (`J-Mean`, ..).
    pub scores: Vec<Score>,
    /// Each object.
    pub objects: Vec<ObjectScores>,
}

impl VosScores {
    /// Means over objects.
    pub fn new(objects: Vec<ObjectScores>, matched: Matched) -> Self {
        let over = |get: fn(&ObjectScores) -> Option<f64>| -> Option<f64> {
            mean(&objects.iter().map(get).collect::<Option<Vec<_>>>()?)
        };
        let (j_mean, f_mean) = (over(|o| o.j.mean), over(|o| o.f.mean));
        let scores = vec![
            Score::new("J&F-Mean", j_mean.zip(f_mean).map(|(j, f)| (j + f) / 2.0)),
            Score::new("J-Mean", j_mean),
            Score::new("J-Recall", over(|o| o.j.recall)),
            Score::new("J-Decay", over(|o| o.j.decay)),
            Score::new("F-Mean", f_mean),
            Score::new("F-Recall", over(|o| o.f.recall)),
            Score::new("F-Decay", over(|o| o.f.decay)),
        ];
        Self {
            matched,
            scores,
            objects,
        }
    }
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
) -> Result<VosScores> {
    let matched = predictions.compare(truth, options.strict)?;
    let pairs: Vec<_> = truth
        .iter()
        .filter_map(|t| Some((predictions.get(&t.id())?, t)))
        .collect();
    if pairs.is_empty() {
        let hint = "check that both files name videos and objects alike";
        return Err(nothing_shared("J&F", "object", hint));
    }
    let objects = pairs
        .par_iter()
        .map(|(p, t)| {
            let of_prediction = |problem| predictions.problem(&p.id(), problem);
            let of_truth = |problem| truth.problem(&t.id(), problem);
            let frames = frames(p, t, options, of_prediction, of_truth)?;
            done();
            Ok(ObjectScores::new(p.id(), frames, options)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(VosScores::new(objects, matched))
}

/// Masks of the scored frames, truth and prediction.
fn frames(
    p: &MaskTrack,
    t: &MaskTrack,
    options: &VosOptions,
    of_prediction: impl Fn(Problem) -> Error,
    of_truth: impl Fn(Problem) -> Error,
) -> Result<Vec<(BitMask, BitMask)>> {
    let id = p.id();
    let differs = |why: String| {
        let hint = "give one mask (or null) per frame of the ground truth, of the same size";
        of_prediction(Problem::new(format!("{id} {why}"), hint))
    };
    let (found, expected) = (p.masks.len(), t.masks.len());
    if found != expected {
        let why = format!("has {found} frames, the ground truth {expected}");
        return Err(differs(why));
    }
    let decode = |rle: &Rle| {
        BitMask::try_from(rle)
            .map_err(|e| Problem::new(e.to_string(), "write the run lengths as pycocotools does"))
    };
    let scored = options.protocol.scored(expected);
    let mut frames = Vec::new();
    for (p_mask, t_mask) in p.masks[scored.clone()].iter().zip(&t.masks[scored]) {
        let Some(t_mask) = t_mask else { continue };
        let truth = decode(t_mask).map_err(&of_truth)?;
        let (h, w) = truth.size();
        let result = match p_mask {
            Some(rle) if rle.size != [h, w] => {
                let (found, expected) = (rle.size, [h, w]);
                let why = format!("is {found:?} large, the ground truth {expected:?}");
                return Err(differs(why));
            }
            Some(rle) => decode(rle).map_err(&of_prediction)?,
            None => BitMask::empty(h, w),
        };
        frames.push((truth, result));
    }
    if frames.is_empty() {
        let why = format!("{} has no annotated frame that is scored", t.id());
        return Err(of_truth(Problem::new(
            why,
            "DAVIS drops the first and the last frame; annotate more, or use ref-youtube-vos",
        )));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use tpo_heads::mask::metric::vos::VosProtocol;

    use super::*;

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
