//! Writes the dialogue of a row.

use std::collections::BTreeMap;

use tpo_core::geometry::BoxXyxy;
use tpo_core::token::TaskRegistry;
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};

use super::book::{self, fill};
use super::textual::{box_text, truth_text};
use crate::DataError;
use crate::feed::Draw;
use crate::schema::{Mark, Turn, marks};

/// How ground truth enters an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerStyle {
    /// Heads are called by their tokens; boxes of questions are embedded.
    Heads,
    /// Coordinates and times as text, no tokens at all.
    Text,
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
#[derive(Debug, Clone, Copy)]
pub struct PromptWriter<'m> {
    /// Tasks of the model.
    pub tasks: &'m TaskRegistry,
    /// Heads or text.
    pub style: AnswerStyle,
}

impl PromptWriter<'_> {
    /// Writes the dialogue of a row. When no answer calls a head, each annotation becomes a turn
    /// from a template before the conversation. `turn_boxes` are the boxes of each turn in
    /// the clip.
    ///
    /// # Errors
    /// [`DataError::Core`] for a task the model does not have; [`DataError::Prepare`] for a text that
    /// contains one of its tokens, an annotation that cannot be asked for, or nothing to answer.
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
        let family = match (&truth.target, &truth.prompt_box) {
            (TruthTarget::Box(_), _) => &book::BOX,
            (TruthTarget::Moments { .. }, _) => &book::MOMENT,
            (TruthTarget::Track(_), Some(_)) => &book::TRACKING,
            (TruthTarget::Track(_), None) => &book::SEGMENTATION,
            (TruthTarget::Value(_), _) => &book::OTHER,
        };
        let query = truth.query.as_deref().map(str::trim);
        if let Some(q) = query {
            self.check_text(q)?;
        }
        // Only questions whose slots can be filled.
        let fits = |q: &&&str| {
            (query.is_some() || !q.contains("{query}"))
                && (truth.prompt_box.is_some() || !q.contains("{box}"))
        };
        let questions: Vec<&&str> = family.questions.iter().filter(fits).collect();
        let (Some(question), Some(answer)) = (draw.pick(&questions), draw.pick(family.answers))
        else {
            return Err(prepare(format!(
                "annotation {index} of `{}` has no query that a question of its family can ask",
                truth.task
            )));
        };
        let turn = out.turns.len();
        let shown = match &truth.prompt_box {
            Some(b) if question.contains("{box}") => self.box_words(b, turn, out),
            _ => String::new(),
        };
        let question = fill(question, &[("query", query.unwrap_or("")), ("box", &shown)]);
        let call = self.call(index, turn, truth, out)?;
        let answer = fill(answer, &[("call", &call)]);
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
        let mut question = with_marks(&turn.question, |mark| match (mark, boxes.next()) {
            (Mark::Box, Some(b)) => Ok(self.box_words(b, number, out)),
            _ => Err(prepare("a `<box>` of a question has no box")),
        })?;
        let mut answer = with_marks(&turn.answer, |mark| {
            let Mark::Task(task) = mark else {
                return Err(prepare("an answer holds `<box>`"));
            };
            let seen = next.entry(task).or_default();
            let mut own = truths.iter().enumerate().filter(|(_, t)| t.task == task);
            let found = own.nth(*seen);
            *seen += 1;
            let (index, truth) = found.ok_or_else(|| {
                prepare(format!("`<task:{task}>` number {seen} has no annotation"))
            })?;
            self.call(index, number, truth, out)
        })?;
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
        match (&self.tasks.box_prompt, self.style) {
            (Some(token), AnswerStyle::Heads) => {
                out.boxes.push((turn, *b));
                token.token.clone()
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
        if self.style == AnswerStyle::Text {
            return Ok(truth_text(truth));
        }
        let task = self.tasks.require(&truth.task)?;
        if let TruthTarget::Track(frames) = &truth.target
            && frames.iter().all(|f| f.place == TruthPlace::Absent)
        {
            return Err(prepare("the object of the track is never visible"));
        }
        out.calls.push(Call { annotation, turn });
        Ok(format!("{}{}", task.routing.token, task.placeholder.token))
    }

    /// A token inside a text would be taken for a slot of the model.
    fn check_text(&self, text: &str) -> Result<(), DataError> {
        let mut tokens = self.tasks.tokens().map(|t| t.token.as_str());
        match tokens.find(|t| !t.is_empty() && text.contains(t)) {
            Some(token) => Err(prepare(format!(
                "the text `{}` holds the model's token `{token}`; write `<task:NAME>` or `<box>`",
                text.chars().take(80).collect::<String>()
            ))),
            None => Ok(()),
        }
    }
}

/// A text with words in the place of its marks.
fn with_marks<'a>(
    text: &'a str,
    mut words: impl FnMut(Mark<'a>) -> Result<String, DataError>,
) -> Result<String, DataError> {
    let (mut out, mut at) = (String::new(), 0);
    for (range, mark) in marks(text) {
        out.push_str(&text[at..range.start]);
        out.push_str(&words(mark)?);
        at = range.end;
    }
    out.push_str(&text[at..]);
    Ok(out)
}

pub(super) fn prepare(reason: impl Into<String>) -> DataError {
    DataError::Prepare {
        reason: reason.into(),
    }
}
