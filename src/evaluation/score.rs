//! Scores of a run, by kind of question.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tpo_core::choice::{ChoiceRule, ChoiceTally};
use tpo_data::readers::Format;
use tpo_heads::mask::metric::track::{
    Got10kScores, Got10kSequence, LasotScores, LasotSequence, got10k, lasot,
};
use tpo_heads::mask::metric::vos::{self, VosOptions, VosProtocol};
use tpo_heads::region::{BOX_PROTOCOL, BoxOptions, evaluate_boxes};
use tpo_heads::temporal::metric::charades::{self, CharadesOptions};
use tpo_heads::temporal::metric::highlight;
use tpo_heads::temporal::metric::nextgqa::{self, NextGqaOptions};
use tpo_heads::temporal::metric::qvhighlights::{self, QvHighlightsOptions};
use tpo_heads::temporal::metric::{Unusable, WindowPrediction, WindowTruth};

use super::answer::{AnswerForm, Predicted, normalise_text};
use super::item::{Expected, Item, ItemKind};
use super::log::PredictionRow;
use super::submission::{
    Answered, BoxTrack, Folder, boxes, masks, memory_table, ratings, resample, windows,
};
use crate::error::Result;

/// Lowest rating of a highlight (QVHighlights).
const RATINGS: [(&str, f32); 3] = [("Fair", 2.0), ("Good", 3.0), ("VeryGood", 4.0)];

/// How answers are scored where benchmarks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// How choices are read.
    pub choice: ChoiceRule,
    /// Whether the QVHighlights evaluator scores time spans.
    pub qvhighlights: bool,
    /// Whether answers and spans are joined as NExT-GQA does.
    pub next_gqa: bool,
    /// Whether tracks are scored as LaSOT does; otherwise as GOT-10k.
    pub lasot: bool,
}

/// A number with its name; per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Its name in tables.
    pub name: String,
    /// Its value; `None` where it is not defined.
    pub value: Option<f64>,
}

/// Scores of a part of the questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupScores {
    /// Task, kind of question, split or duration.
    pub group: String,
    /// Questions in it.
    pub questions: usize,
    /// The scores.
    pub scores: Vec<Score>,
}

/// Scores of one kind of question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScores {
    /// Name of the kind, or `grounded` for answers with their spans.
    pub task: String,
    /// Name and version of the metric.
    pub metric: String,
    /// Questions that are scored.
    pub questions: usize,
    /// Of these, how many nothing could be read from: the head was not called, or the text says
    /// nothing. They are misses.
    pub unanswered: usize,
    /// The scores.
    pub scores: Vec<Score>,
    /// The same for parts of the questions.
    pub groups: Vec<GroupScores>,
}

impl Rules {
    /// The rules of a format; of this project's own for `None`.
    pub fn of(format: Option<Format>) -> Self {
        Self {
            choice: match format {
                Some(Format::MvBench | Format::NextGqa) => ChoiceRule::MvBench,
                Some(Format::VideoMme) => ChoiceRule::VideoMme,
                _ => ChoiceRule::Letter,
            },
            qvhighlights: format == Some(Format::QvHighlights),
            next_gqa: format == Some(Format::NextGqa),
            lasot: format == Some(Format::LaSot),
        }
    }

    fn metric(&self, kind: ItemKind) -> String {
        match kind {
            ItemKind::Choice => match self.choice {
                ChoiceRule::MvBench => "multiple choice, MVBench check_ans".into(),
                ChoiceRule::VideoMme => "multiple choice, Video-MME eval_your_results".into(),
                ChoiceRule::Letter => "multiple choice, leading option letter".into(),
            },
            ItemKind::Text => {
                "exact match: lower case, without article and outer punctuation".into()
            }
            ItemKind::Region => BOX_PROTOCOL.into(),
            ItemKind::Temporal if self.qvhighlights => qvhighlights::PROTOCOL.into(),
            ItemKind::Temporal => format!(
                "{}; highlights as QVHighlights over all raters, unanswered 0",
                charades::PROTOCOL
            ),
            ItemKind::Mask => format!("{}, all annotated frames", vos::PROTOCOL),
            ItemKind::Track if self.lasot => lasot::PROTOCOL.into(),
            ItemKind::Track => format!("{}, mean over frames", got10k::PROTOCOL),
        }
    }

    /// The metrics of the kinds of question among `items`.
    pub(super) fn describe(&self, items: &[Item]) -> Vec<String> {
        let present = |k: &&ItemKind| items.iter().any(|i| i.kind() == **k);
        let mut all: Vec<String> = ItemKind::ALL
            .iter()
            .filter(present)
            .map(|k| format!("{}: {}", k.name(), self.metric(*k)))
            .collect();
        if self.next_gqa {
            all.push(format!("grounded: {}", nextgqa::PROTOCOL));
        }
        all
    }
}

fn one(name: impl Into<String>, value: Option<f64>) -> Score {
    Score {
        name: name.into(),
        value,
    }
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

/// Scores all kinds of questions; what is scored is also written below `dir` in the formats of the
/// official evaluators.
pub(super) fn score(
    items: &[Item],
    rows: &[PredictionRow],
    rules: &Rules,
    form: AnswerForm,
    dir: &Path,
) -> Result<Vec<TaskScores>> {
    let answered: Vec<Answered<'_>> = items
        .iter()
        .zip(rows)
        .filter(|(_, row)| row.error.is_none())
        .map(|(item, row)| Answered { item, row })
        .collect();
    let folder = Folder(dir);
    let mut found = Vec::new();
    for kind in ItemKind::ALL {
        let of_kind: Vec<Answered<'_>> = answered
            .iter()
            .filter(|a| a.item.kind() == kind)
            .copied()
            .collect();
        if of_kind.is_empty() {
            continue;
        }
        let known: Vec<Answered<'_>> = of_kind
            .iter()
            .filter(|a| a.item.expected.is_known())
            .copied()
            .collect();
        let (scores, groups) = match kind {
            ItemKind::Choice => choices(&of_kind, &known, rules, &folder)?,
            ItemKind::Text => texts(&known),
            ItemKind::Region => regions(&of_kind, &folder)?,
            ItemKind::Temporal => moments(&of_kind, &known, rules, form, &folder)?,
            ItemKind::Mask => objects(&of_kind, &folder)?,
            ItemKind::Track => tracks(&of_kind, rules, &folder)?,
        };
        found.push(TaskScores {
            task: kind.name().into(),
            metric: rules.metric(kind),
            questions: known.len(),
            unanswered: known.iter().filter(|a| a.row.predicted.is_none()).count(),
            scores,
            groups,
        });
    }
    if rules.next_gqa {
        found.extend(grounded(&answered, rules, &folder)?);
    }
    Ok(found)
}

type Scored = (Vec<Score>, Vec<GroupScores>);

/// The groups in order of appearance; none when there is only one.
fn groups<'a, 'b>(known: &'b [Answered<'a>]) -> Vec<(&'a str, Vec<Answered<'a>>)> {
    let mut found: Vec<(&'a str, Vec<Answered<'a>>)> = Vec::new();
    for a in known {
        match found.iter_mut().find(|g| g.0 == a.item.group) {
            Some((_, members)) => members.push(*a),
            None => found.push((&a.item.group, vec![*a])),
        }
    }
    if found.len() < 2 {
        found.clear();
    }
    found
}

fn grouped<'a>(
    known: &[Answered<'a>],
    mut scores: impl FnMut(&[Answered<'a>]) -> Result<Vec<Score>>,
) -> Result<Vec<GroupScores>> {
    groups(known)
        .into_iter()
        .map(|(group, members)| {
            Ok(GroupScores {
                group: group.into(),
                questions: members.len(),
                scores: scores(&members)?,
            })
        })
        .collect()
}

fn option(options: &[String], index: usize) -> Option<String> {
    let letter = ('A'..='Z').nth(index)?;
    Some(format!("({letter}) {}", options.get(index)?))
}

fn choices(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    rules: &Rules,
    folder: &Folder<'_>,
) -> Result<Scored> {
    let truth = |a: &Answered<'_>| match (&a.item.expected, rules.choice) {
        (Expected::Choice { correct, .. }, ChoiceRule::VideoMme) => {
            Some(('A'..='Z').nth((*correct)?)?.to_string())
        }
        (Expected::Choice { options, correct }, _) => option(options, (*correct)?),
        _ => None,
    };
    let mut tally = ChoiceTally::new(rules.choice);
    let mut lines = Vec::new();
    let mut videos: Vec<(String, Value)> = Vec::new();
    for a in all {
        let truth = truth(a);
        let said = a.words();
        if rules.choice == ChoiceRule::VideoMme {
            let question = json!({
                "question_id": a.item.id,
                "answer": truth,
                "response": said,
            });
            let name = a.item.media.name();
            match videos.iter_mut().find(|v| v.0 == name) {
                Some((_, video)) => {
                    if let Some(questions) = video["questions"].as_array_mut() {
                        questions.push(question);
                    }
                }
                None => {
                    let video = json!({
                        "video_id": name,
                        "duration": a.item.group,
                        "questions": [question],
                    });
                    videos.push((name, video));
                }
            }
        } else {
            let row = json!({
                "id": a.item.id,
                "task_type": a.item.group,
                "pred": said,
                "gt": truth,
            });
            lines.extend(row.to_string().into_bytes());
            lines.push(b'\n');
        }
        if let Some(truth) = truth {
            tally.add(&a.item.group, said, &truth);
        }
    }
    if rules.choice == ChoiceRule::VideoMme {
        let all: Vec<Value> = videos.into_iter().map(|v| v.1).collect();
        folder.write("video_mme.json", Value::from(all).to_string().as_bytes())?;
    } else {
        folder.write("choice.jsonl", &lines)?;
    }
    let scores = tally.scores();
    let several = scores.groups.len() > 1;
    let mut list = vec![one("accuracy", scores.overall)];
    if several {
        list.push(one("mean of groups", scores.mean_of_groups));
    }
    let share = |n: usize| percent(n as f64 / known.len().max(1) as f64);
    list.push(one("unreadable", Some(share(scores.unreadable))));
    let groups = scores
        .groups
        .iter()
        .filter(|_| several)
        .map(|g| GroupScores {
            group: g.name.clone(),
            questions: g.questions,
            scores: vec![one("accuracy", g.accuracy)],
        })
        .collect();
    Ok((list, groups))
}

fn texts(known: &[Answered<'_>]) -> Scored {
    let right = |a: &&Answered<'_>| match &a.item.expected {
        Expected::Text(Some(truth)) => normalise_text(a.words()) == normalise_text(truth),
        _ => false,
    };
    let accuracy = |of: &[Answered<'_>]| {
        let hits = of.iter().filter(right).count();
        (!of.is_empty()).then(|| percent(hits as f64 / of.len() as f64))
    };
    let of_groups = groups(known);
    let mut scores = vec![one("exact match", accuracy(known))];
    if !of_groups.is_empty() {
        let each: Vec<f64> = of_groups.iter().filter_map(|g| accuracy(&g.1)).collect();
        let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
        scores.push(one("mean of kinds", Some(mean)));
    }
    let groups = of_groups
        .into_iter()
        .map(|(group, members)| GroupScores {
            group: group.into(),
            questions: members.len(),
            scores: vec![one("exact match", accuracy(&members))],
        })
        .collect();
    (scores, groups)
}

fn regions(all: &[Answered<'_>], folder: &Folder<'_>) -> Result<Scored> {
    let (predicted, truth): (Vec<_>, Vec<_>) = all.iter().map(boxes).unzip();
    let truth: Vec<_> = truth.into_iter().flatten().collect();
    let predicted = folder.table("boxes.jsonl", &predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("boxes_truth.jsonl", &truth)?;
    let report = evaluate_boxes(&predicted, &truth, &BoxOptions::default())?;
    let mut splits = report.splits.iter().map(|s| {
        let mut scores: Vec<Score> = s
            .accuracy
            .iter()
            .map(|(t, v)| one(format!("Acc@{t}"), Some(*v)))
            .collect();
        scores.push(one("mIoU", Some(s.miou)));
        GroupScores {
            group: s.split.clone(),
            questions: s.count,
            scores,
        }
    });
    let scores = splits.next().map(|all| all.scores).unwrap_or_default();
    let groups: Vec<_> = splits.collect();
    Ok((scores, if groups.len() > 1 { groups } else { Vec::new() }))
}

fn moments(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    rules: &Rules,
    form: AnswerForm,
    folder: &Folder<'_>,
) -> Result<Scored> {
    // In words there is no highlight curve.
    let rated = rules.qvhighlights && form == AnswerForm::Heads;
    let rows = |of: &[Answered<'_>]| -> (Vec<WindowPrediction>, Vec<WindowTruth>) {
        let (p, t): (Vec<_>, Vec<_>) = of.iter().map(|a| windows(a, rated)).unzip();
        (p, t.into_iter().flatten().collect())
    };
    let (predicted, truth) = rows(all);
    let predicted = folder.table("windows.jsonl", &predicted)?;
    if known.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("windows_truth.jsonl", &truth)?;
    if rules.qvhighlights {
        let has_ratings = truth.iter().all(|t| t.saliency_scores.is_some());
        let options = QvHighlightsOptions {
            unusable: Unusable::Score,
            ..Default::default()
        };
        let report = match rated && !has_ratings {
            true => {
                let (mut p, t) = rows(known);
                p.iter_mut().for_each(|p| p.pred_saliency_scores = None);
                let p = memory_table("predictions", &p)?;
                qvhighlights::evaluate(&p, &memory_table("truth", &t)?, &options)?
            }
            false => qvhighlights::evaluate(&predicted, &truth, &options)?,
        };
        return Ok(qvhighlights_scores(&report));
    }
    let plain = |of: &[Answered<'_>]| -> Result<Vec<Score>> {
        let (p, t) = rows(of);
        let options = CharadesOptions {
            unusable: Unusable::Score,
            ..Default::default()
        };
        let (p, t) = (memory_table("predictions", &p)?, memory_table("truth", &t)?);
        let report = charades::evaluate(&p, &t, &options)?;
        let mut scores: Vec<Score> = report
            .recalls
            .iter()
            .map(|r| one(format!("R{}@{}", r.n, r.threshold), Some(r.recall)))
            .collect();
        scores.push(one("mIoU", Some(report.miou)));
        Ok(scores)
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
                .map(|(t, v)| one(format!("R1@{t}"), Some(*v)))
                .collect();
        scores.push(one("mIoU", s.miou));
        for (t, v) in s.map.iter().filter(|(t, _)| [0.5, 0.75].contains(t)) {
            scores.push(one(format!("mAP@{t}"), Some(*v)));
        }
        scores.push(one("mAP", s.map_average));
        scores
    };
    let full = report.moments.iter().find(|s| s.split == "full");
    let mut scores = full.map(of_split).unwrap_or_default();
    for h in &report.highlights {
        scores.push(one(format!("HL mAP {}", h.rating), Some(h.map)));
        scores.push(one(format!("HIT@1 {}", h.rating), Some(h.hit1)));
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
                aps.push(match curve.is_empty() {
                    true => 0.0,
                    false => highlight::average_precision(&curve, &of_rater),
                });
            }
        }
        if hits.is_empty() {
            return scores;
        }
        let mean = aps.iter().sum::<f64>() / aps.len().max(1) as f64;
        let hit = hits.iter().filter(|h| **h).count() as f64 / hits.len() as f64;
        scores.push(one(format!("HL mAP {name}"), Some(percent(mean))));
        scores.push(one(format!("HIT@1 {name}"), Some(percent(hit))));
    }
    scores
}

fn objects(all: &[Answered<'_>], folder: &Folder<'_>) -> Result<Scored> {
    let (mut predicted, mut truth) = (Vec::new(), Vec::new());
    for a in all {
        let (p, t) = masks(a)?;
        predicted.push(p);
        truth.extend(t);
    }
    let predicted = folder.table("masks.jsonl", &predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("masks_truth.jsonl", &truth)?;
    let options = VosOptions {
        protocol: VosProtocol::RefYoutubeVos,
        ..VosOptions::default()
    };
    let scores = vos::evaluate(&predicted, &truth, &options, || ())?;
    let list = [
        ("J&F", scores.jf_mean),
        ("J", scores.j_mean),
        ("F", scores.f_mean),
    ];
    let list = list.map(|(n, v)| one(n, v.map(percent))).to_vec();
    Ok((list, Vec::new()))
}

fn tracks(all: &[Answered<'_>], rules: &Rules, folder: &Folder<'_>) -> Result<Scored> {
    let mut lasot_sequences = Vec::new();
    let mut got_sequences = Vec::new();
    for a in all {
        let track = BoxTrack::new(a);
        let name = a.item.id.rsplit('/').next().unwrap_or_default();
        let file = match rules.lasot {
            true => format!("track/{name}.txt"),
            false => format!("track/{0}/{0}_001.txt", track.name),
        };
        folder.write(&file, track.text().as_bytes())?;
        if track.truth.is_empty() {
            continue;
        }
        if rules.lasot {
            lasot_sequences.push(
                LasotSequence {
                    name: track.name,
                    truth: track.truth,
                    predicted: track.predicted,
                    absent: track.absent,
                }
                .score()?,
            );
        } else {
            let cover = track.absent.iter().map(|a| f64::from(u8::from(!a)));
            got_sequences.push(
                Got10kSequence {
                    name: track.name,
                    truth: track.truth,
                    predicted: track.predicted,
                    cover: cover.collect(),
                    resolution: Some(track.size),
                }
                .score()?,
            );
        }
    }
    let list = if !lasot_sequences.is_empty() {
        let s = LasotScores::new(lasot_sequences)?;
        vec![
            ("success", Some(s.success_auc)),
            ("normalised precision", Some(s.normalised_precision)),
            ("precision", Some(s.precision)),
        ]
    } else if !got_sequences.is_empty() {
        let s = Got10kScores::new(got_sequences);
        vec![("AO", s.ao), ("SR0.5", s.sr_50), ("SR0.75", s.sr_75)]
    } else {
        Vec::new()
    };
    let list = list.into_iter().map(|(n, v)| one(n, v.map(percent)));
    Ok((list.collect(), Vec::new()))
}

/// NExT-GQA: answers and spans of one question together.
fn grounded(
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
            .find(|c| c.item.kind() == ItemKind::Choice && c.item.sample == a.item.sample);
        let (Some(choice), Some((video, qid))) = (choice, a.item.sample.rsplit_once(':')) else {
            continue;
        };
        let Expected::Choice {
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
        let letter = rules.choice.letter(choice.words());
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
    let scores = vec![
        one("Acc@GQA", report.acc_gqa),
        one("Acc@QA", report.acc_qa),
        one("mIoP", Some(report.miop)),
        one("IoP@0.3", Some(report.iop_03)),
        one("IoP@0.5", Some(report.iop_05)),
        one("mIoU", Some(report.miou)),
        one("IoU@0.3", Some(report.iou_03)),
        one("IoU@0.5", Some(report.iou_05)),
    ];
    Ok(Some(TaskScores {
        task: "grounded".into(),
        metric: nextgqa::PROTOCOL.into(),
        questions,
        unanswered,
        scores,
        groups: Vec::new(),
    }))
}
