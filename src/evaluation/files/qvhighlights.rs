//! The QVHighlights standalone evaluator.
//!
//! Equal to the official script in every printed digit, its habits included: at most ten windows
//! per query count, in listed order before they are ranked; recall looks at the first listed
//! window; the splits by length keep the windows of the ground truth whose length is in range and
//! the queries that have one left; the long split ends at 150 s; numbers are per cent with two
//! decimals. The mean over annotators and queries is one mean.

use serde::Serialize;
use serde_json::{Map, Value, json};
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
    let matched = predictions.compare(truth, options.strict)?;
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
    let bad = |why: String, hint| Problem::new(format!("query {} {why}", truth.qid), hint);
    let missing = |what: &str| {
        let need = "highlights need `duration`, `relevant_clip_ids` and `saliency_scores`";
        bad(format!("has no `{what}`"), need)
    };
    let duration = truth.duration.ok_or_else(|| missing("duration"))?;
    let ids = truth.relevant_clip_ids.as_ref();
    let ids = ids.ok_or_else(|| missing("relevant_clip_ids"))?;
    let scores = truth.saliency_scores.as_ref();
    let scores = scores.ok_or_else(|| missing("saliency_scores"))?;
    let clips = (duration / clip_seconds).trunc();
    if !(1.0..=MAX_CLIPS).contains(&clips) {
        let hint = "give the length of the video in seconds";
        return Err(bad(format!("has a duration of {duration} s"), hint));
    }
    if ids.len() != scores.len() {
        let (ids, scores) = (ids.len(), scores.len());
        let hint = "give one list of three ratings per clip";
        return Err(bad(
            format!("rates {ids} clips but has {scores} ratings"),
            hint,
        ));
    }
    let mut all = vec![[0.0; 3]; clips as usize];
    for (id, score) in ids.iter().zip(scores) {
        let Some(place) = all.get_mut(*id) else {
            let why = format!("rates clip {id} of a video of {clips} clips");
            let hint = "clips are numbered from 0 and last two seconds";
            return Err(bad(why, hint));
        };
        *place = *score;
    }
    Ok(all)
}

impl QvHighlightsReport {
    /// The scores under the names of the script's own JSON: `brief` and the full ones. A split
    /// without queries is `null`.
    pub fn official(&self) -> Value {
        let at = |list: &[(f64, f64)], t: f64| list.iter().find(|(at, _)| *at == t).map(|p| p.1);
        let split = |name: &str| self.moments.iter().find(|s| s.split == name);
        let (mut all, mut brief) = (Map::new(), Map::new());
        if let Some(full) = split("full") {
            brief.insert("MR-full-R1@0.5".into(), at(&full.r1, 0.5).into());
            brief.insert("MR-full-R1@0.7".into(), at(&full.r1, 0.7).into());
            brief.insert("MR-full-mAP@0.5".into(), at(&full.map, 0.5).into());
            brief.insert("MR-full-mAP@0.75".into(), at(&full.map, 0.75).into());
        }
        for s in &self.moments {
            brief.insert(format!("MR-{}-mAP", s.split), s.map_average.into());
            let list = |values: &[(f64, f64)]| -> Map<String, Value> {
                let official = values.iter().filter(|(t, _)| *t >= 0.5);
                official
                    .map(|(t, v)| (t.to_string(), (*v).into()))
                    .collect()
            };
            let mut map = list(&s.map);
            map.insert("average".into(), s.map_average.into());
            let scores = (s.queries > 0).then(|| json!({"MR-mAP": map, "MR-R1": list(&s.r1)}));
            all.insert(s.split.into(), scores.into());
        }
        for h in &self.highlights {
            brief.insert(format!("HL-min-{}-mAP", h.rating), h.map.into());
            brief.insert(format!("HL-min-{}-Hit1", h.rating), h.hit1.into());
            let scores = json!({"HL-mAP": h.map, "HL-Hit1": h.hit1});
            all.insert(format!("HL-min-{}", h.rating), scores);
        }
        all.insert("brief".into(), brief.into());
        all.into()
    }
}
