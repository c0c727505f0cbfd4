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
use super::files::{Score, boxes::BOX_PROTOCOL, charades, nextgqa, qvhighlights, vos};
use super::item::{Item, ItemKind};
use super::log::PredictionRow;
use super::multiple_choice::ChoiceRule;
use super::submission::{Answered, Folder};
use crate::error::Result;
use moments::{grounded, moments};
use objects::{objects, regions, tracks};
use words::{choices, texts};

/// How answers are scored where benchmarks differ: as the format's evaluator does, by this
/// project's own rules without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(pub Option<Format>);

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
    /// Name of the kind, of the task of a head that scores itself, or `grounded` for answers with
    /// their spans.
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
    fn are_of(&self, format: Format) -> bool {
        self.0 == Some(format)
    }

    /// How options are read out of answers.
    fn choice(&self) -> ChoiceRule {
        match self.0 {
            Some(Format::MvBench | Format::NextGqa) => ChoiceRule::MvBench,
            Some(Format::VideoMme) => ChoiceRule::VideoMme,
            Some(Format::Mlvu) => ChoiceRule::Mlvu,
            _ => ChoiceRule::Letter,
        }
    }

    fn metric(&self, kind: ItemKind) -> String {
        match kind {
            ItemKind::MultipleChoice => match self.choice() {
                ChoiceRule::MvBench => "multiple choice, MVBench check_ans".into(),
                ChoiceRule::VideoMme => "multiple choice, Video-MME eval_your_results".into(),
                ChoiceRule::Mlvu => "multiple choice, MLVU check_ans".into(),
                ChoiceRule::Letter => "multiple choice, leading option letter".into(),
            },
            ItemKind::Text => {
                "exact match: lower case, without article and outer punctuation".into()
            }
            ItemKind::Region => BOX_PROTOCOL.into(),
            ItemKind::Temporal if self.are_of(Format::QvHighlights) => {
                qvhighlights::PROTOCOL.into()
            }
            ItemKind::Temporal => format!(
                "{}; highlights as QVHighlights over all raters, unanswered 0",
                charades::PROTOCOL
            ),
            ItemKind::Mask => format!("{}, all annotated frames", vos::PROTOCOL),
            ItemKind::Track if self.are_of(Format::LaSot) => lasot::PROTOCOL.into(),
            ItemKind::Track => format!("{}, mean over frames", got10k::PROTOCOL),
            ItemKind::Own => "means of what the task's head scores".into(),
        }
    }

    /// The metrics of `items`, of which heads score themselves those that are `own`.
    pub(super) fn describe(&self, items: &[Item], own: impl Fn(&Item) -> bool) -> Vec<String> {
        let kinds: Vec<ItemKind> = items
            .iter()
            .map(|i| if own(i) { ItemKind::Own } else { i.kind() })
            .collect();
        let mut all: Vec<String> = ItemKind::ALL
            .iter()
            .filter(|k| kinds.contains(k))
            .map(|k| format!("{}: {}", k.name(), self.metric(*k)))
            .collect();
        if self.are_of(Format::NextGqa) {
            all.push(format!("grounded: {}", nextgqa::PROTOCOL));
        }
        all
    }
}

fn percent(share: f64) -> f64 {
    100.0 * share
}

/// Scores all kinds of questions; what benchmarks score is also written below `dir` in the formats
/// of the official evaluators.
pub(super) fn score(
    items: &[Item],
    rows: &[PredictionRow],
    rules: &Rules,
    form: AnswerForm,
    dir: &Path,
) -> Result<Vec<TaskScores>> {
    let answered = items
        .iter()
        .zip(rows)
        .filter(|(_, row)| row.error.is_none())
        .map(|(item, row)| Answered { item, row });
    let (own, answered): (Vec<_>, Vec<_>) = answered.partition(Answered::is_own);
    let folder = Folder(dir);
    let mut found = Vec::new();
    for kind in ItemKind::ALL {
        let of_kind = answered.iter().filter(|a| a.item.kind() == kind);
        let of_kind: Vec<Answered<'_>> = of_kind.copied().collect();
        let known = of_kind.iter().filter(|a| a.item.expected.is_known());
        let known: Vec<Answered<'_>> = known.copied().collect();
        if of_kind.is_empty() {
            continue;
        }
        let (scores, groups) = match kind {
            ItemKind::MultipleChoice => choices(&of_kind, &known, rules, &folder)?,
            ItemKind::Text => texts(&of_kind, &known, &folder)?,
            ItemKind::Region => regions(&of_kind, &folder)?,
            ItemKind::Temporal => moments(&of_kind, &known, rules, form, &folder)?,
            ItemKind::Mask => objects(&of_kind, &folder)?,
            ItemKind::Track => tracks(&of_kind, rules, &folder)?,
            ItemKind::Own => continue,
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
    found.extend(own::own_tasks(&own)?);
    if rules.are_of(Format::NextGqa) {
        found.extend(grounded(&answered, rules, &folder)?);
    }
    Ok(found)
}

type Scored = (Vec<Score>, Vec<GroupScores>);

/// Scores of the groups in order of appearance; none when there is only one.
fn grouped<'a>(
    known: &[Answered<'a>],
    mut scores: impl FnMut(&[Answered<'a>]) -> Result<Vec<Score>>,
) -> Result<Vec<GroupScores>> {
    let groups = by(known, |a| &a.item.group);
    if groups.len() < 2 {
        return Ok(Vec::new());
    }
    groups
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

/// Answers by a name of theirs, in order of appearance.
fn by<'a>(
    all: &[Answered<'a>],
    name: impl Fn(&Answered<'a>) -> &'a str,
) -> Vec<(&'a str, Vec<Answered<'a>>)> {
    let mut found: Vec<(&str, Vec<Answered<'a>>)> = Vec::new();
    for a in all {
        match found.iter_mut().find(|g| g.0 == name(a)) {
            Some((_, members)) => members.push(*a),
            None => found.push((name(a), vec![*a])),
        }
    }
    found
}
