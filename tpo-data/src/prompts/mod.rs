//! From annotations to questions and answers.
//!
//! [`FAMILIES`] are the wordings; [`PromptWriter`] makes a [`Dialogue`] of them in which an answer
//! calls heads by their tokens or, in the paper's ablation, has coordinates and times as text.

mod book;
mod encode;
mod layout;
pub mod qwen;
mod textual;
pub mod videochat;
mod writer;

pub use book::{FAMILIES, Family, fill};
pub use encode::{EncodedDialogue, LayoutEncoder, SharedEncoder, SlotCount};
pub use layout::{AnswerStart, Opening, PromptLayout, VisualSlots};
pub use textual::{box_text, read_box, read_spans, read_track};
pub use writer::{AnswerStyle, Call, Dialogue, PromptWriter};
