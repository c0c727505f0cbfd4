//! Time spans, highlights and grounded questions.

use serde_json::{Map, Value, json};
use tpo_data::readers::Format;
use tpo_heads::temporal::metric::highlight;

use super::super::answer::{AnswerForm, Predicted};
use super::super::files::charades::{self, CharadesOptions};
use super::super::files::nextgqa::{self, NextGqaOptions};
use super::super::files::qvhighlights::{self, QvHighlightsOptions};
use super::super::files::{Table, Unusable, WindowPrediction, WindowTruth};
use super::super::item::{Expected, ItemKind};
use super::super::submission::{Answered, Folder, ratings, resample, windows};
use super::{GroupScores, Rules, Score, Scored, TaskScores, grouped, percent};
use crate::error::Result;

/// Lowest rating of a highlight (QVHighlights).
const RATINGS: [(&str, f32); 3] = [("Fair", 2.0), ("Good", 3.0), ("VeryGood", 4.0)];

pub(super) fn moments(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    rules: &Rules,
    form: AnswerForm,
    folder: &Folder<'_>,
) -> Result<Scored> {
    // In words there is no highlight curve.
    let rated = rules.are_of(Format::QvHighlights) && form == AnswerForm::Heads;
    let rows = |of: &[Answered<'_>]| -> (Vec<WindowPrediction>, Vec<WindowTruth>) {
        let (p, t): (Vec<_>, Vec<_>) = of.iter().map(|a| windows(a, rated)).unzip();
        (p, t.into_iter().flatten().collect())
    };
    let (predicted, truth) = rows(all);
    folder.lines("windows.jsonl", &predicted)?;
    if known.is_empty() {
        return Ok(Default::default());
    }
    folder.lines("windows_truth.jsonl", &truth)?;
    if rules.are_of(Format::QvHighlights) {
        let (mut predicted, truth) = rows(known);
        if truth.iter().any(|t| t.saliency_scores.is_none()) {
            let curves = predicted.iter_mut().map(|p| &mut p.pred_saliency_scores);
            curves.for_each(|curve| *curve = None);
        }
        let options = QvHighlightsOptions {
            unusable: Unusable::Score,
            ..Default::default()
        };
        let predicted = Table::from_rows("predictions", predicted)?;
        let truth = Table::from_rows("truth", truth)?;
        let report = qvhighlights::evaluate(&predicted, &truth, &options)?;
        return Ok(qvhighlights_scores(&report));
    }
    let plain = |of: &[Answered<'_>]| -> Result<Vec<Score>> {
        let (predicted, truth) = rows(of);
        let options = CharadesOptions {
            unusable: Unusable::Score,
            ..Default::default()
        };
        let predicted = Table::from_rows("predictions", predicted)?;
        let truth = Table::from_rows("truth", truth)?;
        Ok(charades::evaluate(&predicted, &truth, &options)?.scores)
    };
    let mut scores = plain(known)?;
    if form == AnswerForm::Heads {
        scores.extend(highlights(known));
    }
    Ok((scores, grouped(known, plain)?))
}

fn qvhighlights_scores(report: &qvhighlights::QvHighlightsReport) -> Scored {
    let of_split = |s: &qvhighlights::SplitScores| {
        let mut scores: Vec<Score> =
            s.r1.iter()
                .filter(|(t, _)| [0.3, 0.5, 0.7].contains(t))
                .map(|(t, v)| Score::new(format!("R1@{t}"), *v))
                .collect();
        scores.push(Score::new("mIoU", s.miou));
        for (t, v) in s.map.iter().filter(|(t, _)| [0.5, 0.75].contains(t)) {
            scores.push(Score::new(format!("mAP@{t}"), *v));
        }
        scores.push(Score::new("mAP", s.map_average));
        scores
    };
    let full = report.moments.iter().find(|s| s.split == "full");
    let mut scores = full.map(of_split).unwrap_or_default();
    for h in &report.highlights {
        scores.push(Score::new(format!("HL mAP {}", h.rating), h.map));
        scores.push(Score::new(format!("HIT@1 {}", h.rating), h.hit1));
    }
    let groups = report
        .moments
        .iter()
        .filter(|s| s.split != "full")
        .map(|s| GroupScores {
            group: s.split.into(),
            questions: s.queries,
            scores: of_split(s),
        })
        .collect();
    (scores, groups)
}

/// Highlight mAP and HIT@1 over the questions with ratings; an unanswered one scores 0.
fn highlights(known: &[Answered<'_>]) -> Vec<Score> {
    let mut scores = Vec::new();
    for (name, lowest) in RATINGS {
        let (mut aps, mut hits) = (Vec::new(), Vec::new());
        for a in known {
            let Expected::Temporal {
                saliency: Some(rated),
                ..
            } = &a.item.expected
            else {
                continue;
            };
            let pieces = ratings(rated, a.media().duration);
            let raters = pieces.first().map_or(0, Vec::len);
            let curve = match &a.row.predicted {
                Some(Predicted::Moments {
                    saliency,
                    clip_seconds,
                    ..
                }) => resample(saliency, *clip_seconds, rated.clip_seconds, pieces.len()),
                _ => Vec::new(),
            };
            let positive = |p: &Vec<f32>, r: usize| p[r] >= lowest;
            let any: Vec<_> = pieces
                .iter()
                .map(|p| [(0..raters).any(|r| positive(p, r)); highlight::ANNOTATORS])
                .collect();
            hits.push(highlight::hit_at_one(&curve, &any) == Some(true));
            for r in 0..raters {
                let of_rater: Vec<bool> = pieces.iter().map(|p| positive(p, r)).collect();
                aps.push(if curve.is_empty() {
                    0.0
                } else {
                    highlight::average_precision(&curve, &of_rater)
                });
            }
        }
        if hits.is_empty() {
            return scores;
        }
        let mean = aps.iter().sum::<f64>() / aps.len().max(1) as f64;
        let hit = hits.iter().filter(|h| **h).count() as f64 / hits.len() as f64;
        scores.push(Score::new(format!("HL mAP {name}"), percent(mean)));
        scores.push(Score::new(format!("HIT@1 {name}"), percent(hit)));
    }
    scores
}

/// NExT-GQA: answers and spans of one question together.
pub(super) fn grounded(
    answered: &[Answered<'_>],
    rules: &Rules,
    folder: &Folder<'_>,
) -> Result<Option<TaskScores>> {
    let (mut segments, mut answers) = (Map::new(), Map::new());
    let mut truth: Map<String, Value> = Map::new();
    let mut unanswered = 0;
    for a in answered {
        let Expected::Temporal {
            spans: Some(spans), ..
        } = &a.item.expected
        else {
            continue;
        };
        let choice = answered
            .iter()
            .find(|c| c.item.kind() == ItemKind::MultipleChoice && c.item.sample == a.item.sample);
        let (Some(choice), Some((video, qid))) = (choice, a.item.sample.rsplit_once(':')) else {
            continue;
        };
        let Expected::MultipleChoice {
            correct: Some(correct),
            ..
        } = &choice.item.expected
        else {
            continue;
        };
        let key = format!("{video}_{qid}");
        let duration = a.media().duration;
        let window = match &a.row.predicted {
            Some(Predicted::Moments { windows, .. }) => windows.first().map(|w| [w[0], w[1]]),
            _ => None,
        };
        unanswered += usize::from(window.is_none());
        // The script leaves questions without a segment out; one behind the end is a miss.
        let window = window.unwrap_or([duration + 1.0, duration + 2.0]);
        let letter = rules.choice().letter(choice.words());
        let picked = letter.map_or(-1, |l| i64::from(l as u32) - i64::from(u32::from('A')));
        segments.insert(key.clone(), json!(window));
        answers.insert(key, json!({"answer": correct, "prediction": picked}));
        let entry = truth
            .entry(video)
            .or_insert_with(|| json!({"duration": duration, "location": {}}));
        entry["location"][qid] = json!(spans);
    }
    if segments.is_empty() {
        return Ok(None);
    }
    let questions = segments.len();
    let write = |name: &str, map: Map<String, Value>| {
        folder.write(name, Value::Object(map).to_string().as_bytes())
    };
    let segments = nextgqa::read(write("segments.json", segments)?)?;
    let answers = nextgqa::read(write("answers.json", answers)?)?;
    let truth = nextgqa::read(write("segments_truth.json", truth)?)?;
    let options = NextGqaOptions {
        unusable: Unusable::Score,
        ..NextGqaOptions::default()
    };
    let report = nextgqa::evaluate(&segments, Some(&answers), &truth, &options)?;
    Ok(Some(TaskScores {
        task: "grounded".into(),
        metric: nextgqa::PROTOCOL.into(),
        questions,
        unanswered,
        scores: report.scores,
        groups: Vec::new(),
    }))
}
