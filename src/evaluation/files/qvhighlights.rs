//! The QVHighlights standalone evaluator.
//!
//! Equal to the official script in every printed digit, its habits included: at most ten windows
//! per query count, in listed order before they are ranked; recall looks at the first listed
//! window; the splits by length keep the windows of the ground truth whose length is in range and
//! the queries that have one left; the long split ends at 150 s; numbers are per cent with two
//! decimals. The mean over annotators and queries is one mean.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tpo_heads::temporal::metric::qvhighlights::{self, Query};
pub use tpo_heads::temporal::metric::qvhighlights::{HighlightScores, SplitScores};

use super::windows::{predicted_windows, truth_windows};
use super::{
    Matched, Problem, SAME_SPLIT, Table, Unusable, WindowPrediction, WindowTruth, nothing_shared,
};
use crate::error::Result;

/// Version of this metric, for reports.
pub const PROTOCOL: &str = "qvhighlights standalone_eval (moment_detr)";

/// No video has more clips than this (a week of them): larger durations are refused.
const MAX_CLIPS: f64 = 302_400.0;

/// What the evaluator leaves open, and its few numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QvHighlightsOptions {
    /// Windows per query that count, in listed order.
    pub max_windows: usize,
    /// Length of a clip in seconds.
    pub clip_seconds: f64,
    /// Every query must be on both sides, as in the script; otherwise those that are on both are
    /// scored and the others reported.
    pub strict: bool,
    /// Empty lists and reversed windows.
    pub unusable: Unusable,
}

impl Default for QvHighlightsOptions {
    fn default() -> Self {
        Self {
            max_windows: 10,
            clip_seconds: 2.0,
            strict: false,
            unusable: Unusable::Refuse,
        }
    }
}

/// What the evaluator found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QvHighlightsReport {
    /// Which queries were scored, and which only one side has.
    pub matched: Matched,
    /// Splits `short`, `middle`, `long`, `full`; empty if nobody predicted windows.
    pub moments: Vec<SplitScores>,
    /// Ratings `Fair`, `Good`, `VeryGood`; empty if nobody predicted clip scores.
    pub highlights: Vec<HighlightScores>,
}

/// Scores a submission against the ground truth.
///
/// # Errors
/// No common query, a query with unusable windows (see [`Unusable`]) or without what the first row
/// has, ratings that do not fit the video, queries on one side only under `strict`.
pub fn evaluate(
    predictions: &Table<WindowPrediction>,
    truth: &Table<WindowTruth>,
    options: &QvHighlightsOptions,
) -> Result<QvHighlightsReport> {
    let matched = predictions.compare(truth);
    if options.strict {
        matched.require_complete(&predictions.file, &truth.file)?;
    }
    let pairs: Vec<_> = predictions
        .iter()
        .filter_map(|p| Some((p, truth.get(&p.qid)?)))
        .collect();
    let Some((first, _)) = pairs.first() else {
        return Err(nothing_shared("QVHighlights", "qid", SAME_SPLIT));
    };
    // The first row decides which tasks are scored, as in the script.
    let with_windows = first.pred_relevant_windows.is_some();
    let with_scores = first.pred_saliency_scores.is_some();
    let mut report = QvHighlightsReport {
        matched,
        moments: Vec::new(),
        highlights: Vec::new(),
    };
    if with_windows {
        let mut queries = Vec::with_capacity(pairs.len());
        for (p, t) in &pairs {
            queries.push(Query {
                predicted: scored_windows(predictions, p, options.unusable)?,
                truth: truth_windows(truth, t)?.to_vec(),
            });
        }
        report.moments = qvhighlights::moments(&queries, options.max_windows);
    }
    if with_scores {
        report.highlights = highlights(&pairs, predictions, truth, options)?;
    }
    Ok(report)
}

fn scored_windows(
    table: &Table<WindowPrediction>,
    row: &WindowPrediction,
    unusable: Unusable,
) -> Result<Vec<([f64; 2], f64)>> {
    let windows = predicted_windows(table, row, unusable)?;
    windows
        .iter()
        .map(|w| Some((w.span, w.score?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            let problem = Problem::new(
                format!("query {}: a window has no score", row.qid),
                "mAP needs [start, end, score]; score windows without one as charades-sta",
            );
            table.problem(&row.qid, problem)
        })
}

fn highlights(
    pairs: &[(&WindowPrediction, &WindowTruth)],
    predictions: &Table<WindowPrediction>,
    truth: &Table<WindowTruth>,
    options: &QvHighlightsOptions,
) -> Result<Vec<HighlightScores>> {
    let mut rated = Vec::with_capacity(pairs.len());
    for (p, t) in pairs {
        let scores = p.pred_saliency_scores.as_deref().unwrap_or_default();
        if scores.is_empty() {
            let problem = Problem::new(
                format!("query {} has no clip scores, the first row has", p.qid),
                "give `pred_saliency_scores` in all rows or in none",
            );
            return Err(predictions.problem(&p.qid, problem));
        }
        let ratings =
            ratings(t, options.clip_seconds).map_err(|problem| truth.problem(&t.qid, problem))?;
        rated.push((scores, ratings));
    }
    Ok(qvhighlights::highlights(&rated))
}

/// Ratings of all clips of the video: 0 where nobody rated.
fn ratings(truth: &WindowTruth, clip_seconds: f64) -> Result<Vec<[f64; 3]>, Problem> {
    let need = "highlights need `duration`, `relevant_clip_ids` and `saliency_scores`";
    let missing = |what| Problem::new(format!("query {} has no {what}", truth.qid), need);
    let duration = truth.duration.ok_or_else(|| missing("`duration`"))?;
    let ids = truth.relevant_clip_ids.as_ref();
    let ids = ids.ok_or_else(|| missing("`relevant_clip_ids`"))?;
    let scores = truth.saliency_scores.as_ref();
    let scores = scores.ok_or_else(|| missing("`saliency_scores`"))?;
    let clips = (duration / clip_seconds).trunc();
    if !(1.0..=MAX_CLIPS).contains(&clips) {
        return Err(Problem::new(
            format!("query {} has a duration of {duration} s", truth.qid),
            "give the length of the video in seconds",
        ));
    }
    if ids.len() != scores.len() {
        return Err(Problem::new(
            format!(
                "query {} rates {} clips but has {} ratings",
                truth.qid,
                ids.len(),
                scores.len()
            ),
            "give one list of three ratings per clip",
        ));
    }
    let mut all = vec![[0.0; 3]; clips as usize];
    for (id, score) in ids.iter().zip(scores) {
        let Some(place) = all.get_mut(*id) else {
            return Err(Problem::new(
                format!(
                    "query {} rates clip {id} of a video of {clips} clips",
                    truth.qid
                ),
                "clips are numbered from 0 and last two seconds",
            ));
        };
        *place = *score;
    }
    Ok(all)
}

impl QvHighlightsReport {
    /// The script's own JSON: `brief` and the full scores, its keys in its order, so that
    /// serialising with an indent of four gives its file. A split without queries is `null`.
    pub fn official(&self) -> impl Serialize + '_ {
        Official(self)
    }

    fn split(&self, name: &str) -> Option<&SplitScores> {
        self.moments.iter().find(|s| s.split == name)
    }
}

struct Official<'a>(&'a QvHighlightsReport);

/// A JSON object that keeps its order.
struct Ordered(Vec<(String, Node)>);
enum Node {
    Number(Option<f64>),
    Object(Ordered),
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, node) in &self.0 {
            match node {
                Node::Number(n) => map.serialize_entry(key, n)?,
                Node::Object(o) => map.serialize_entry(key, o)?,
            }
        }
        map.end()
    }
}

impl Serialize for Official<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let at = |list: &[(f64, f64)], t: f64| list.iter().find(|(at, _)| *at == t).map(|p| p.1);
        let number = |name: &str, v| (name.to_string(), Node::Number(v));
        let mut brief = Vec::new();
        if let Some(full) = report.split("full") {
            brief.push(number("MR-full-R1@0.5", at(&full.r1, 0.5)));
            brief.push(number("MR-full-R1@0.7", at(&full.r1, 0.7)));
            brief.push(number("MR-full-mAP", full.map_average));
            brief.push(number("MR-full-mAP@0.5", at(&full.map, 0.5)));
            brief.push(number("MR-full-mAP@0.75", at(&full.map, 0.75)));
            for name in ["long", "middle", "short"] {
                let average = report.split(name).and_then(|s| s.map_average);
                brief.push(number(&format!("MR-{name}-mAP"), average));
            }
        }
        for h in &report.highlights {
            brief.push(number(&format!("HL-min-{}-mAP", h.rating), Some(h.map)));
            brief.push(number(&format!("HL-min-{}-Hit1", h.rating), Some(h.hit1)));
        }
        let mut all = vec![("brief".to_string(), Node::Object(Ordered(brief)))];
        for h in &report.highlights {
            let scores = vec![
                number("HL-mAP", Some(h.map)),
                number("HL-Hit1", Some(h.hit1)),
            ];
            all.push((
                format!("HL-min-{}", h.rating),
                Node::Object(Ordered(scores)),
            ));
        }
        for name in ["full", "long", "middle", "short"] {
            let Some(split) = report.split(name) else {
                continue;
            };
            if split.queries == 0 {
                all.push(number(name, None));
                continue;
            }
            let list = |values: &[(f64, f64)]| -> Vec<(String, Node)> {
                let official = values.iter().filter(|(t, _)| *t >= 0.5);
                official
                    .map(|(t, v)| number(&t.to_string(), Some(*v)))
                    .collect()
            };
            let mut map = list(&split.map);
            map.push(number("average", split.map_average));
            let scores = vec![
                ("MR-mAP".to_string(), Node::Object(Ordered(map))),
                ("MR-R1".to_string(), Node::Object(Ordered(list(&split.r1)))),
            ];
            all.push((name.to_string(), Node::Object(Ordered(scores))));
        }
        Ordered(all).serialize(serializer)
    }
}
