//! Boxes of referring expressions: Acc@IoU and mean IoU.

use serde::{Deserialize, Serialize};
use tpo_heads::numeric::mean;
use tpo_heads::region::box_iou;

use super::{Matched, Problem, Record, SampleId, Score, Table, Unusable, nothing_shared};
use crate::error::Result;

/// Version of this metric, for reports.
pub const BOX_PROTOCOL: &str = "referring expression comprehension, Acc@IoU";

/// A box for one expression, one JSON line: `{"id": 7, "box": [x0, y0, x1, y1], "split":
/// "testA"}`. Predictions and ground truth have the same form; any unit, as long as both use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxRow {
    /// The expression.
    pub id: SampleId,
    /// Left, top, right and bottom edge; `null` where the model gave no box, which is a miss.
    #[serde(rename = "box", alias = "bbox")]
    pub corners: Option<[f64; 4]>,
    /// The split, of the ground truth; optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

impl Record for BoxRow {
    type Id = SampleId;

    fn id(&self) -> SampleId {
        self.id.clone()
    }
}

/// How boxes are scored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoxOptions {
    /// IoU thresholds; reaching one is a hit.
    pub thresholds: Vec<f64>,
    /// Every expression must be on both sides.
    pub strict: bool,
    /// Reversed predicted boxes: an error, or a miss.
    pub unusable: Unusable,
}

impl Default for BoxOptions {
    /// Acc@0.25, 0.5 and 0.75.
    fn default() -> Self {
        Self {
            thresholds: vec![0.25, 0.5, 0.75],
            strict: false,
            unusable: Unusable::Refuse,
        }
    }
}

/// Scores of one split; per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoxScores {
    /// Name of the split; `all` for everything.
    pub split: String,
    /// Expressions in it.
    pub count: usize,
    /// Threshold and accuracy.
    pub accuracy: Vec<(f64, f64)>,
    /// Mean IoU.
    pub miou: f64,
}

impl BoxScores {
    /// All of them under their names.
    pub fn scores(&self) -> Vec<Score> {
        let accuracy = self.accuracy.iter();
        let accuracy = accuracy.map(|(t, v)| Score::new(format!("Acc@{t}"), *v));
        accuracy.chain([Score::new("mIoU", self.miou)]).collect()
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoxReport {
    /// Which expressions were scored, and which only one side has.
    pub matched: Matched,
    /// Expressions for which the model gave no box.
    pub missing_boxes: usize,
    /// `all` first, then the splits in order of appearance.
    pub splits: Vec<BoxScores>,
}

/// Scores predicted boxes against the ground truth.
///
/// # Errors
/// No common expression, a reversed box, ground truth without a box, expressions on one side only
/// under `strict`.
pub fn evaluate_boxes(
    predictions: &Table<BoxRow>,
    truth: &Table<BoxRow>,
    options: &BoxOptions,
) -> Result<BoxReport> {
    let matched = predictions.compare(truth, options.strict)?;
    let mut splits: Vec<(String, Vec<f64>)> = vec![("all".into(), Vec::new())];
    let mut missing_boxes = 0;
    for t in truth.iter() {
        let Some(p) = predictions.get(&t.id) else {
            continue;
        };
        let reversed = |b: &[f64; 4]| b[2] < b[0] || b[3] < b[1];
        let hint = "write [left, top, right, bottom]";
        let target = t.corners.filter(|b| !reversed(b)).ok_or_else(|| {
            let why = format!("sample {} of the ground truth has no usable box", t.id);
            truth.problem(&t.id, Problem::new(why, hint))
        })?;
        missing_boxes += p.corners.is_none() as usize;
        let iou = match p.corners {
            Some(b) if reversed(&b) && options.unusable == Unusable::Refuse => {
                let why = format!("sample {}: the box {b:?} is reversed", p.id);
                return Err(predictions.problem(&p.id, Problem::new(why, hint)));
            }
            Some(b) if !reversed(&b) => box_iou(b, target),
            _ => 0.0,
        };
        splits[0].1.push(iou);
        if let Some(name) = &t.split {
            match splits.iter_mut().skip(1).find(|(n, _)| n == name) {
                Some((_, ious)) => ious.push(iou),
                None => splits.push((name.clone(), vec![iou])),
            }
        }
    }
    let scores = |(split, ious): (String, Vec<f64>)| {
        let reach = |t: &f64| ious.iter().filter(|iou| *iou >= t).count() as f64;
        Some(BoxScores {
            split,
            count: ious.len(),
            accuracy: options
                .thresholds
                .iter()
                .map(|t| (*t, 100.0 * reach(t) / ious.len() as f64))
                .collect(),
            miou: 100.0 * mean(&ious)?,
        })
    };
    let splits: Option<Vec<_>> = splits.into_iter().map(scores).collect();
    Ok(BoxReport {
        matched,
        missing_boxes,
        splits: splits.ok_or_else(|| {
            let hint = "check that both files number their samples alike";
            nothing_shared("Acc@IoU", "sample", hint)
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Table<BoxRow> {
        Table::from_reader(text.as_bytes(), "f", &Default::default()).unwrap()
    }

    #[test]
    fn splits_and_thresholds_by_hand() {
        let truth = rows(
            "{\"id\":1,\"box\":[0,0,10,10],\"split\":\"val\"}\n\
             {\"id\":2,\"box\":[0,0,10,10],\"split\":\"testA\"}\n\
             {\"id\":3,\"box\":[0,0,10,10],\"split\":\"val\"}\n\
             {\"id\":4,\"box\":[0,0,10,10]}",
        );
        let predicted = rows(
            "{\"id\":3,\"box\":null}\n{\"id\":2,\"bbox\":[0,0,10,5]}\n{\"id\":1,\"box\":[0,0,10,7.5]}",
        );
        let report = evaluate_boxes(&predicted, &truth, &BoxOptions::default()).unwrap();
        let [all, val, test] = &report.splits[..] else {
            panic!()
        };
        assert_eq!((all.count, report.missing_boxes), (3, 1));
        let third = 100.0 / 3.0;
        assert_eq!(
            all.accuracy,
            [(0.25, 2.0 * third), (0.5, 2.0 * third), (0.75, third)]
        );
        assert!((all.miou - 100.0 * 1.25 / 3.0).abs() < 1e-12);
        assert_eq!((val.split.as_str(), val.miou), ("val", 37.5));
        assert_eq!(test.accuracy, [(0.25, 100.0), (0.5, 100.0), (0.75, 0.0)]);
        assert_eq!(report.matched.without_prediction, ["4"]);
        let strict = BoxOptions {
            strict: true,
            ..Default::default()
        };
        assert!(evaluate_boxes(&predicted, &truth, &strict).is_err());
    }

    #[test]
    fn boxes_without_sense_are_errors() {
        let truth = rows("{\"id\":1,\"box\":[0,0,10,10]}");
        let reversed = rows("{\"id\":1,\"box\":[5,0,1,10]}");
        let options = BoxOptions::default();
        assert!(evaluate_boxes(&reversed, &truth, &options).is_err());
        assert!(evaluate_boxes(&truth, &reversed, &options).is_err());
        assert!(evaluate_boxes(&rows("{\"id\":2,\"box\":null}"), &truth, &options).is_err());
        let miss = BoxOptions {
            unusable: Unusable::Score,
            ..options
        };
        assert_eq!(
            evaluate_boxes(&reversed, &truth, &miss).unwrap().splits[0].miou,
            0.0
        );
    }
}
