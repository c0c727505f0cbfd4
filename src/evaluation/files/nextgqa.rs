//! Grounded question answering on NExT-GQA.
//!
//! As the official script: per question the best intersection over prediction (IoP) and the best
//! IoU (over the hull) over all annotated segments; a predicted *moment* (start = end) has IoU 0,
//! and IoP 1 inside a segment. Questions without a predicted segment are not counted. Acc@GQA
//! counts right answers with IoP of at least 0.5. The script prints one decimal.

use std::collections::HashMap;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tpo_core::CoreError;
use tpo_heads::temporal::metric::grounding_overlap;

use super::table::read_json;
use super::{Matched, SAME_SPLIT, Score, Unusable, nothing_shared};
use crate::error::{Error, Result};

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "NExT-GQA eval_ground";

/// A JSON object in its own order; a key that comes twice is an error.
#[derive(Debug, Clone, PartialEq)]
pub struct Entries<T>(pub Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("the key {key:?} comes twice")));
                    }
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Read(std::marker::PhantomData))
    }
}

/// Segments of one video, `gsub_*.json`: `{"VIDEO": {"duration": 30, "location": {"QID": [[s, e],
/// ..]}}}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VideoSegments {
    /// Length in seconds; used where predictions are shares of it.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Segments `[start, end]` in seconds by question.
    pub location: Entries<Vec<[f64; 2]>>,
}

/// An answered question, `*-res.json`: `{"VIDEO_QID": {"answer": 3, "prediction": 3}}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Answer {
    /// The right option.
    pub answer: Value,
    /// The chosen option.
    pub prediction: Value,
}

impl Answer {
    fn is_right(&self) -> bool {
        match (self.answer.as_f64(), self.prediction.as_f64()) {
            (Some(a), Some(p)) => a == p,
            _ => self.answer == self.prediction,
        }
    }
}

/// Ground truth by video.
pub type Truth = Entries<VideoSegments>;
/// Predicted segments `[start, end]` by `VIDEO_QID`.
pub type Segments = Entries<[f64; 2]>;
/// Answers by `VIDEO_QID`.
pub type Answers = Entries<Answer>;

/// Reads one of the three JSON files.
pub fn read<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let hint = "ground truth is {video: {duration, location: {qid: [[s, e]]}}}, predictions \
                {video_qid: [s, e]}, answers {video_qid: {answer, prediction}}";
    read_json(path.as_ref(), hint)
}

/// What the script leaves open.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NextGqaOptions {
    /// Predictions are shares of the video's length: multiplied by it and rounded to 0.1 s, as
    /// the script does for its Gaussian masks.
    pub relative: bool,
    /// Every question must be on both sides.
    pub strict: bool,
    /// Reversed segments: an error, or scored as the script does.
    pub unusable: Unusable,
}

/// What was found; per cent, not rounded (the script prints one decimal).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NextGqaReport {
    /// Which questions were scored, and which only one side has.
    pub matched: Matched,
    /// Acc@GQA (right answers with IoP of at least 0.5) and Acc@QA (right answers among the scored
    /// questions; not in this script), both without a value where no answers are given; means of
    /// the best intersection over prediction and of the best IoU, and the shares of questions that
    /// reach 0.3 and 0.5.
    pub scores: Vec<Score>,
}

/// Scores predicted segments, and answers where given.
///
/// # Errors
/// No common question, a reversed segment (see [`Unusable`]), a scored question without answer
/// where answers are given, a share without duration, questions on one side only under `strict`.
pub fn evaluate(
    segments: &Segments,
    answers: Option<&Answers>,
    truth: &Truth,
    options: &NextGqaOptions,
) -> Result<NextGqaReport> {
    let metric = "NExT-GQA";
    let fail = |why: String, hint: &'static str| -> Error {
        CoreError::Metric { metric, why, hint }.into()
    };
    let by_key: HashMap<&str, [f64; 2]> =
        segments.0.iter().map(|(k, s)| (k.as_str(), *s)).collect();
    let answers: Option<HashMap<&str, &Answer>> =
        answers.map(|a| a.0.iter().map(|(k, a)| (k.as_str(), a)).collect());
    let mut matched = Matched::default();
    let mut known = std::collections::HashSet::new();
    let (mut iops, mut ious) = (Vec::new(), Vec::new());
    let (mut right, mut right_and_grounded) = (0usize, 0usize);
    for (video, anno) in &truth.0 {
        for (qid, locations) in &anno.location.0 {
            let key = format!("{video}_{qid}");
            let Some(mut predicted) = by_key.get(key.as_str()).copied() else {
                matched.without_prediction.push(key);
                continue;
            };
            if options.relative {
                let duration = anno.duration.ok_or_else(|| {
                    let why = format!("video {video} has no duration");
                    fail(why, "add it, or give predictions in seconds")
                })?;
                predicted = predicted.map(|v| (v * duration * 10.0).round_ties_even() / 10.0);
            }
            if options.unusable == Unusable::Refuse && predicted[1] < predicted[0] {
                let why = format!("segment {predicted:?} of {key} ends before it starts");
                return Err(fail(
                    why,
                    "swap its ends, or score it as it is (--unusable score)",
                ));
            }
            let (mut iou, mut iop) = (0.0, 0.0);
            for location in locations {
                let (u, p) = grounding_overlap(*location, predicted);
                iou = f64::max(iou, u);
                iop = f64::max(iop, p);
            }
            if let Some(answers) = &answers {
                let answer = answers.get(key.as_str()).ok_or_else(|| {
                    let why = format!("question {key} has a segment but no answer");
                    fail(why, "answer every question that has a segment")
                })?;
                right += answer.is_right() as usize;
                right_and_grounded += (answer.is_right() && iop >= 0.5) as usize;
            }
            iops.push(iop);
            ious.push(iou);
            known.insert(key);
        }
    }
    matched.matched = iops.len();
    matched.without_truth = segments
        .0
        .iter()
        .filter(|(k, _)| !known.contains(k))
        .map(|(k, _)| k.clone())
        .collect();
    if options.strict {
        matched.require_complete("the predictions", "the ground truth")?;
    }
    if iops.is_empty() {
        return Err(nothing_shared(metric, "question", SAME_SPLIT));
    }
    let n = iops.len() as f64;
    let share = |count: usize| count as f64 / n * 100.0;
    let reach = |values: &[f64], t: f64| share(values.iter().filter(|v| **v >= t).count());
    // One after the other, as the script adds.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n * 100.0;
    let of_answers = |count: usize| answers.as_ref().map(|_| share(count));
    Ok(NextGqaReport {
        scores: vec![
            Score::new("Acc@GQA", of_answers(right_and_grounded)),
            Score::new("Acc@QA", of_answers(right)),
            Score::new("mIoP", mean(&iops)),
            Score::new("IoP@0.3", reach(&iops, 0.3)),
            Score::new("IoP@0.5", reach(&iops, 0.5)),
            Score::new("mIoU", mean(&ious)),
            Score::new("IoU@0.3", reach(&ious, 0.3)),
            Score::new("IoU@0.5", reach(&ious, 0.5)),
        ],
        matched,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: &str = r#"{"v1": {"duration": 20.0, "location": {"0": [[2, 6], [10, 12]], "1": [[0, 4]]}},
                            "v2": {"duration": 10, "location": {"0": [[5, 9]]}}}"#;

    fn score(
        segments: &str,
        answers: Option<&str>,
        options: NextGqaOptions,
    ) -> Result<NextGqaReport> {
        let truth: Truth = serde_json::from_str(TRUTH).unwrap();
        let segments: Segments = serde_json::from_str(segments).unwrap();
        let answers: Option<Answers> = answers.map(|a| serde_json::from_str(a).unwrap());
        evaluate(&segments, answers.as_ref(), &truth, &options)
    }

    fn value(report: &NextGqaReport, name: &str) -> Option<f64> {
        report.scores.iter().find(|s| s.name == name).unwrap().value
    }

    #[test]
    fn by_hand() {
        let answers = r#"{"v1_0": {"answer": 1, "prediction": 1}, "v1_1": {"answer": 2, "prediction": 2}, "v2_0": {"answer": 0, "prediction": 0}}"#;
        // v1_0: [4, 12]: with [2, 6] inter 2, hull 10, length 8; with [10, 12] inter 2, hull 8.
        // v1_1: a moment inside: IoU 0, IoP 1. v2_0: apart.
        let r = score(
            r#"{"v1_0": [4, 12], "v1_1": [3, 3], "v2_0": [0, 1], "v9_9": [0, 1]}"#,
            Some(answers),
            NextGqaOptions::default(),
        )
        .unwrap();
        let third = 1.0 / 3.0 * 100.0;
        assert!((value(&r, "mIoU").unwrap() - 0.25 / 3.0 * 100.0).abs() < 1e-12);
        assert!((value(&r, "mIoP").unwrap() - 1.25 / 3.0 * 100.0).abs() < 1e-12);
        assert_eq!(value(&r, "IoP@0.3"), Some(third));
        assert_eq!(value(&r, "IoP@0.5"), Some(third));
        assert_eq!(value(&r, "IoU@0.3"), Some(0.0));
        assert_eq!(value(&r, "Acc@GQA"), Some(third));
        assert_eq!(value(&r, "Acc@QA"), Some(100.0));
        assert_eq!(r.matched.without_truth, ["v9_9"]);
    }

    #[test]
    fn shares_are_turned_into_tenths_of_seconds() {
        let relative = NextGqaOptions {
            relative: true,
            ..Default::default()
        };
        let r = score(r#"{"v2_0": [0.503, 0.9]}"#, None, relative).unwrap();
        assert_eq!(value(&r, "mIoP"), Some(100.0));
        assert_eq!(value(&r, "Acc@GQA"), None);
        assert_eq!(r.matched.without_prediction.len(), 2);
    }

    #[test]
    fn what_cannot_be_scored_is_an_error() {
        let plain = NextGqaOptions::default;
        assert!(score(r#"{"x_0": [1, 2]}"#, None, plain()).is_err());
        assert!(score(r#"{"v1_0": [5, 2]}"#, None, plain()).is_err());
        assert!(score(r#"{"v1_0": [1, 2]}"#, Some("{}"), plain()).is_err());
        let strict = NextGqaOptions {
            strict: true,
            ..plain()
        };
        assert!(score(r#"{"v1_0": [1, 2]}"#, None, strict).is_err());
        let lenient = NextGqaOptions {
            unusable: Unusable::Score,
            ..plain()
        };
        let r = score(r#"{"v1_0": [5, 2]}"#, None, lenient).unwrap();
        assert_eq!(value(&r, "mIoP"), Some(0.0));
        assert!(serde_json::from_str::<Segments>(r#"{"a": [1, 2], "a": [1, 2]}"#).is_err());
        assert!(serde_json::from_str::<Segments>(r#"{"a": [1]}"#).is_err());
    }
}
