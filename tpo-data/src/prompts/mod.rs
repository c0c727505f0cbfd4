//! From annotations to questions and answers.
//!
//! [`PromptBook`] holds the wordings, [`Vocabulary`] the tokens of the model, [`PromptWriter`]
//! puts both together: a [`Dialogue`] in which an answer calls heads by their tokens, or, in the
//! paper's ablation, has coordinates and times as text.

mod book;
mod encode;
mod layout;
mod textual;
pub mod videochat;
mod writer;

pub use book::{Family, PromptBook, fill};
pub use encode::{DialogueEncoder, EncodedDialogue, LayoutEncoder, SharedEncoder, SlotCount};
pub use layout::{Opening, PromptLayout};
pub use textual::{box_text, read_box, read_spans, read_track};
pub use writer::{AnswerStyle, Call, Dialogue, PromptConfig, PromptWriter, TaskWords, Vocabulary};
