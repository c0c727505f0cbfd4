//! How a base model's conversations are laid out, in training as in a chat.

use tpo_core::Result;
use tpo_core::prompt::{PromptIds, TextEncoder, Turn, Visual};

/// A visual in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisualSlots {
    /// Video or image.
    pub kind: Visual,
    /// Embeddings that the connector makes of it.
    pub count: usize,
}

/// What stands before the first answer of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// What the model is told before the conversation; empty for what the layout says by itself.
    pub system: &'a str,
    /// What is looked at, in order.
    pub visuals: &'a [VisualSlots],
    /// A sentence about it, such as [`PromptLayout::times`]; may be empty.
    pub message: &'a str,
    /// The first question.
    pub question: &'a str,
    /// How its answer begins.
    pub answer: AnswerStart<'a>,
}

/// How an answer begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerStart<'a> {
    /// Words of it that are given to the model.
    pub prefix: &'a str,
    /// It follows the question without the space after which VideoChat's answers begin in training: what
    /// the reference's `generate_answer` does, and `process_qa` does not. Other layouts have no such space.
    pub joined: bool,
}

impl<'a> Opening<'a> {
    /// A question about nothing.
    pub fn text(question: &'a str) -> Self {
        Self {
            system: "",
            visuals: &[],
            message: "",
            question,
            answer: AnswerStart::default(),
        }
    }
}

/// The layout of a base model. An answer, with its end token ([`PromptLayout::ends`]), stands after what
/// opens a conversation, and after every further question.
pub trait PromptLayout: Send + Sync {
    /// Longest prompt in tokens that the base was trained on.
    fn max_tokens(&self) -> usize;

    /// Tokens that end an answer: training writes the first, generation stops at all. None where it is the
    /// tokenizer's own end of a text.
    fn ends(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether a conversation can be about so many visuals.
    ///
    /// # Errors
    /// [`CoreError::Prompt`](tpo_core::CoreError::Prompt) for more than the base reads.
    fn check_visuals(&self, count: usize) -> Result<()>;

    /// Refuses a text with what only the layout may write: it would be taken for a turn or a visual.
    ///
    /// # Errors
    /// [`CoreError::Prompt`](tpo_core::CoreError::Prompt).
    fn check_text(&self, text: &str) -> Result<()>;

    /// Ids up to the first answer.
    ///
    /// # Errors
    /// [`CoreError::Prompt`](tpo_core::CoreError::Prompt) for a question that cannot be laid out;
    /// those of the encoder.
    fn opening(&self, opening: &Opening<'_>, encoder: &dyn TextEncoder) -> Result<PromptIds>;

    /// Ids of a question after earlier turns, up to its answer.
    ///
    /// # Errors
    /// As [`PromptLayout::opening`].
    fn further(
        &self,
        question: &str,
        answer: AnswerStart<'_>,
        encoder: &dyn TextEncoder,
    ) -> Result<Vec<u32>>;

    /// Ids of a question as one of the packed turns of a row, up to its answer: the end of an opening with
    /// this question, after what all turns share.
    ///
    /// # Errors
    /// As [`PromptLayout::opening`].
    fn packed(&self, question: &str, encoder: &dyn TextEncoder) -> Result<Vec<u32>> {
        Ok(self.opening(&Opening::text(question), encoder)?.ids)
    }

    /// Ids of a question after earlier turns as the base's published generation code lays them out, where
    /// that is not the layout of training.
    ///
    /// # Errors
    /// As [`PromptLayout::opening`].
    fn published(
        &self,
        _opening: &Opening<'_>,
        _history: &[Turn],
        _encoder: &dyn TextEncoder,
    ) -> Result<Option<PromptIds>> {
        Ok(None)
    }

    /// The sentence on frame times, in seconds from the start of the clip (reference implementation: one
    /// decimal).
    fn times(&self, seconds: &[f64]) -> String {
        let times: Vec<String> = seconds.iter().map(|s| format!("{s:.1}")).collect();
        format!(
            " The video contains {} frames sampled at {} seconds. ",
            times.len(),
            times.join(", ")
        )
    }

    /// What the model is told of what it looks at, in chat and training: the times of a video's frames
    /// ([`told_times`](crate::sampling::told_times)) when one of the questions says "timestamp"
    /// (reference implementation), else nothing. `seconds` are those of a lone video, else empty.
    fn message(&self, questions: &[&str], seconds: &[f64]) -> String {
        let asked = questions.iter().any(|q| q.contains("timestamp"));
        if asked && !seconds.is_empty() {
            self.times(seconds)
        } else {
            String::new()
        }
    }
}
