//! How a base model's conversations are laid out, in training as in a chat.

use tpo_core::Result;
use tpo_core::prompt::{PromptIds, TextEncoder, Visual};

/// What stands before the first answer of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// In front of everything.
    pub system: &'a str,
    /// What is looked at.
    pub visual: Visual,
    /// Embeddings that the connector makes of it.
    pub slots: usize,
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
    /// It follows the question without the space after which answers begin in training: what the
    /// reference's `generate_answer` does, and `process_qa` does not.
    pub joined: bool,
}

impl<'a> Opening<'a> {
    /// A question about nothing.
    pub fn text(question: &'a str) -> Self {
        Self {
            system: "",
            visual: Visual::None,
            slots: 0,
            message: "",
            question,
            answer: AnswerStart::default(),
        }
    }
}

/// The layout of a base model. An answer stands between what opens a conversation, or a further
/// question, and the end-of-text token.
pub trait PromptLayout: Send + Sync {
    /// Longest prompt in tokens that the base was trained on.
    fn max_tokens(&self) -> usize;

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

    /// The sentence on frame times, in seconds from the start of the clip.
    fn times(&self, seconds: &[f64]) -> String;

    /// What the model is told of a visual, in chat and training: the times of a video's frames
    /// ([`told_times`](crate::sampling::told_times)) when one of the questions says "timestamp"
    /// (reference implementation), else nothing.
    fn message(&self, visual: Visual, questions: &[&str], seconds: &[f64]) -> String {
        let asked = questions.iter().any(|q| q.contains("timestamp"));
        if asked && visual == Visual::Video {
            self.times(seconds)
        } else {
            String::new()
        }
    }
}
