//! Scores of a run, by kind of question.

mod moments;
mod objects;
mod own;
mod words;

use std::path::Path;

use serde::Serialize;
use tpo_data::readers::Format;
use tpo_heads::mask::metric::track::{got10k, lasot};

use super::answer::AnswerForm;
use super::files::{boxes::BOX_PROTOCOL, charades, nextgqa, qvhighlights, vos};
use super::item::{Item, ItemKind};
use super::log::PredictionRow;
use super::multiple_choice::ChoiceRule;
use super::submission::{Answered, Folder};
use crate::error::Result;
use moments::{grounded, moments};
use objects::{objects, regions, tracks};
use words::{choices, texts};

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
            ItemKind::Own => "means of what the task's head scores".into(),
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
            ItemKind::Text => texts(&of_kind, &known, &folder)?,
            ItemKind::Region => regions(&of_kind, &folder)?,
            ItemKind::Temporal => moments(&of_kind, &known, rules, form, &folder)?,
            ItemKind::Mask => objects(&of_kind, &folder)?,
            ItemKind::Track => tracks(&of_kind, rules, &folder)?,
            ItemKind::Own => {
                found.extend(own::own_tasks(&of_kind)?);
                continue;
            }
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
