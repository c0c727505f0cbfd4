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
    /// The beginning of its answer.
    pub answer_prefix: &'a str,
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
            answer_prefix: "",
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
        answer_prefix: &str,
        encoder: &dyn TextEncoder,
    ) -> Result<Vec<u32>>;

    /// The sentence on frame times, in seconds from the start of the clip.
    fn times(&self, seconds: &[f64]) -> String;

    /// Whether the model is told the frame times: when a question says "timestamp" (reference
    /// implementation).
    fn asks_times(&self, question: &str) -> bool {
        question.contains("timestamp")
    }
}
