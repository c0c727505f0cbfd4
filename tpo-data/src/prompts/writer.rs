//! Writes the dialogue of a row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tpo_core::geometry::BoxXyxy;
use tpo_core::token::TaskRegistry;
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};

use super::book::{PromptBook, fill};
use super::textual::{box_text, truth_text};
use crate::DataError;
use crate::feed::Draw;
use crate::schema::{Mark, Turn, marks};

/// Tokens of one task, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskWords {
    /// What the model says to call the head.
    pub routing: String,
    /// Placeholder of the task token after it.
    pub placeholder: String,
}

/// Tokens of a model, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// Tokens by task.
    pub tasks: BTreeMap<String, TaskWords>,
    /// Stands for a box in a question; `None` for a model that reads boxes as text.
    pub box_prompt: Option<String>,
}

impl From<&TaskRegistry> for Vocabulary {
    fn from(registry: &TaskRegistry) -> Self {
        Self {
            tasks: registry
                .tasks()
                .iter()
                .map(|t| {
                    let words = TaskWords {
                        routing: t.routing.token.clone(),
                        placeholder: t.placeholder.token.clone(),
                    };
                    (t.name.clone(), words)
                })
                .collect(),
            box_prompt: registry.box_prompt.as_ref().map(|t| t.token.clone()),
        }
    }
}

/// How ground truth enters an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerStyle {
    /// Heads are called by their tokens; boxes of questions are embedded.
    #[default]
    Heads,
    /// Coordinates and times as text, no tokens at all.
    Text,
}

/// How dialogues are written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptConfig {
    /// Heads or text.
    pub style: AnswerStyle,
    /// The wordings.
    pub book: PromptBook,
}

/// A call of a head in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Index of the annotation in the row.
    pub annotation: usize,
    /// Index of the turn.
    pub turn: usize,
}

/// Questions and answers with tokens in place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dialogue {
    /// (question, answer).
    pub turns: Vec<(String, String)>,
    /// Boxes of the questions with the turn each belongs to, in the order of their tokens.
    pub boxes: Vec<(usize, BoxXyxy)>,
    /// Calls in the order of the answers.
    pub calls: Vec<Call>,
    /// Packed turns, which do not attend to each other.
    pub packed_turns: bool,
}

/// Writes dialogues for one model.
#[derive(Debug, Clone)]
pub struct PromptWriter {
    config: PromptConfig,
    vocabulary: Vocabulary,
}

impl PromptWriter {
    /// A writer.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a book that cannot work.
    pub fn new(config: PromptConfig, vocabulary: Vocabulary) -> Result<Self, DataError> {
        config.book.validate()?;
        Ok(Self { config, vocabulary })
    }

    /// Tokens of the model.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Writes the dialogue of a row. When no answer calls a head, each annotation becomes a turn
    /// from a template before the conversation. `turn_boxes` are the boxes of each turn in
    /// the clip.
    ///
    /// # Errors
    /// [`DataError::Prepare`] for a task the model does not have, a text that contains one of its
    /// tokens, an annotation that cannot be asked for, or nothing to answer.
    pub fn write(
        &self,
        turns: &[Turn],
        turn_boxes: &[Vec<BoxXyxy>],
        truths: &[Truth],
        draw: &mut Draw,
    ) -> Result<Dialogue, DataError> {
        let mut out = Dialogue::default();
        let called = turns
            .iter()
            .flat_map(|t| marks(&t.answer))
            .any(|(_, m)| matches!(m, Mark::Task(_)));
        if !called {
            for (i, truth) in truths.iter().enumerate() {
                self.template(i, truth, draw, &mut out)?;
            }
        }
        let mut next: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, turn) in turns.iter().enumerate() {
            let boxes = turn_boxes.get(i).map_or(&[][..], Vec::as_slice);
            self.turn(turn, boxes, truths, &mut next, &mut out)?;
        }
        if out.turns.is_empty() {
            return Err(prepare("the row has nothing to ask"));
        }
        Ok(out)
    }

    fn template(
        &self,
        index: usize,
        truth: &Truth,
        draw: &mut Draw,
        out: &mut Dialogue,
    ) -> Result<(), DataError> {
        let kind = match (&truth.target, &truth.prompt_box) {
            (TruthTarget::Box(_), _) => "box",
            (TruthTarget::Moments { .. }, _) => "moment",
            (TruthTarget::Track(_), Some(_)) => "tracking",
            (TruthTarget::Track(_), None) => "segmentation",
            (TruthTarget::Value(_), _) => "other",
        };
        let families = &self.config.book.families;
        let family = families
            .get(&truth.task)
            .or_else(|| families.get(kind))
            .ok_or_else(|| {
                prepare(format!(
                    "the prompt book has neither a family `{}` nor `{kind}`",
                    truth.task
                ))
            })?;
        let query = truth.query.as_deref().map(str::trim);
        if let Some(q) = query {
            self.check_text(q)?;
        }
        // Only questions whose slots can be filled.
        let fits = |q: &&String| {
            (query.is_some() || !q.contains("{query}"))
                && (truth.prompt_box.is_some() || !q.contains("{box}"))
        };
        let questions: Vec<&String> = family.questions.iter().filter(fits).collect();
        let question = draw.pick(&questions).ok_or_else(|| {
            prepare(format!(
                "annotation {index} of `{}` has no query that a question of its family can ask",
                truth.task
            ))
        })?;
        let answers: Vec<&String> = family
            .answers
            .iter()
            .filter(|a| query.is_some() || !a.contains("{query}"))
            .collect();
        let answer = draw
            .pick(&answers)
            .ok_or_else(|| prepare("no answer of its family does without a query"))?;
        let turn = out.turns.len();
        let shown = match &truth.prompt_box {
            Some(b) if question.contains("{box}") => self.box_words(b, turn, out),
            _ => String::new(),
        };
        let question = fill(question, &[("query", query.unwrap_or("")), ("box", &shown)]);
        let call = self.call(index, turn, truth, out)?;
        let answer = fill(answer, &[("query", query.unwrap_or("")), ("call", &call)]);
        out.turns.push((question, answer));
        Ok(())
    }

    fn turn<'a>(
        &self,
        turn: &'a Turn,
        boxes: &[BoxXyxy],
        truths: &[Truth],
        next: &mut BTreeMap<&'a str, usize>,
        out: &mut Dialogue,
    ) -> Result<(), DataError> {
        self.check_text(&turn.question)?;
        self.check_text(&turn.answer)?;
        let number = out.turns.len();
        let mut boxes = boxes.iter();
        let mut question = String::new();
        let mut at = 0;
        for (range, mark) in marks(&turn.question) {
            question.push_str(&turn.question[at..range.start]);
            match (mark, boxes.next()) {
                (Mark::Box, Some(b)) => question.push_str(&self.box_words(b, number, out)),
                _ => return Err(prepare("a `<box>` of a question has no box")),
            }
            at = range.end;
        }
        question.push_str(&turn.question[at..]);
        let mut answer = String::new();
        at = 0;
        for (range, mark) in marks(&turn.answer) {
            answer.push_str(&turn.answer[at..range.start]);
            let Mark::Task(task) = mark else {
                return Err(prepare("an answer holds `<box>`"));
            };
            let seen = next.entry(task).or_default();
            let found = truths
                .iter()
                .enumerate()
                .filter(|(_, t)| t.task == task)
                .nth(*seen);
            *seen += 1;
            let (index, truth) = found.ok_or_else(|| {
                prepare(format!("`<task:{task}>` number {seen} has no annotation"))
            })?;
            answer.push_str(&self.call(index, number, truth, out)?);
            at = range.end;
        }
        answer.push_str(&turn.answer[at..]);
        if !turn.options.is_empty() {
            question.push_str("\nOptions:");
            for (letter, option) in ('A'..='Z').zip(&turn.options) {
                self.check_text(option)?;
                question.push_str(&format!("\n({letter}) {option}"));
            }
            if let (true, Some(i)) = (answer.is_empty(), turn.correct) {
                let letter = ('A'..='Z').nth(i).unwrap_or('?');
                let text = turn.options.get(i).map_or("", String::as_str);
                answer = format!("({letter}) {text}");
            }
        }
        out.turns.push((question, answer));
        Ok(())
    }

    fn box_words(&self, b: &BoxXyxy, turn: usize, out: &mut Dialogue) -> String {
        match (&self.vocabulary.box_prompt, self.config.style) {
            (Some(token), AnswerStyle::Heads) => {
                out.boxes.push((turn, *b));
                token.clone()
            }
            _ => box_text(b),
        }
    }

    fn call(
        &self,
        annotation: usize,
        turn: usize,
        truth: &Truth,
        out: &mut Dialogue,
    ) -> Result<String, DataError> {
        if self.config.style == AnswerStyle::Text {
            return Ok(truth_text(truth));
        }
        let words = self.vocabulary.tasks.get(&truth.task).ok_or_else(|| {
            let known: Vec<_> = self.vocabulary.tasks.keys().map(String::as_str).collect();
            prepare(format!(
                "the model has no task `{}`; it has {}",
                truth.task,
                if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                }
            ))
        })?;
        if let TruthTarget::Track(frames) = &truth.target
            && frames.iter().all(|f| f.place == TruthPlace::Absent)
        {
            return Err(prepare("the object of the track is never visible"));
        }
        out.calls.push(Call { annotation, turn });
        Ok(format!("{}{}", words.routing, words.placeholder))
    }

    /// A token inside a text would be taken for a slot of the model.
    fn check_text(&self, text: &str) -> Result<(), DataError> {
        let words = self.vocabulary.tasks.values();
        let mut tokens = words
            .flat_map(|w| [&w.routing, &w.placeholder])
            .chain(&self.vocabulary.box_prompt);
        match tokens.find(|t| !t.is_empty() && text.contains(t.as_str())) {
            Some(token) => Err(prepare(format!(
                "the text `{}` holds the model's token `{token}`; write `<task:NAME>` or `<box>`",
                text.chars().take(80).collect::<String>()
            ))),
            None => Ok(()),
        }
    }
}

pub(super) fn prepare(reason: impl Into<String>) -> DataError {
    DataError::Prepare {
        reason: reason.into(),
    }
}
