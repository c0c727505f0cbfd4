//! Prompts as a model reads them: ids, and which positions are visual slots. How a conversation is laid
//! out is the business of its base model.

use crate::error::Result;

/// Id that stands in visual slots; its embedding is always overwritten.
pub const VISUAL_ID: u32 = 0;
/// Text to ids, as a prompt needs it.
pub trait TextEncoder {
    /// Ids of `text` with the BOS token in front. Empty text gives just BOS.
    fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>>;
}

impl<T: TextEncoder + ?Sized> TextEncoder for std::sync::Arc<T> {
    fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>> {
        (**self).encode_with_bos(text)
    }
}

/// Ids of a prompt and which of them are visual slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptIds {
    /// Token ids; [`VISUAL_ID`] in visual slots.
    pub ids: Vec<u32>,
    /// Whether the position is a visual slot.
    pub visual: Vec<bool>,
}

impl PromptIds {
    /// Number of positions.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Appends text ids.
    pub fn push_text(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.visual.resize(self.ids.len(), false);
    }

    /// Appends `n` visual slots.
    pub fn push_visual(&mut self, n: usize) {
        self.ids.resize(self.ids.len() + n, VISUAL_ID);
        self.visual.resize(self.ids.len(), true);
    }

    /// Appends another prompt.
    pub fn extend(&mut self, other: &Self) {
        self.ids.extend_from_slice(&other.ids);
        self.visual.extend_from_slice(&other.visual);
    }

    /// Cuts to at most `max` positions. Returns how many were cut.
    pub fn truncate(&mut self, max: usize) -> usize {
        let cut = self.len().saturating_sub(max);
        self.ids.truncate(max);
        self.visual.truncate(max);
        cut
    }

    /// Number of visual slots.
    pub fn visual_slots(&self) -> usize {
        self.visual.iter().filter(|v| **v).count()
    }
}

/// Ids of `text` without the BOS in front.
///
/// # Errors
/// Those of the encoder.
pub fn encode_without_bos(text: &str, encoder: &(impl TextEncoder + ?Sized)) -> Result<Vec<u32>> {
    let bos = encoder.encode_with_bos("")?;
    let mut ids = encoder.encode_with_bos(text)?;
    if ids.starts_with(&bos) {
        ids.drain(..bos.len());
    }
    Ok(ids)
}

/// What the question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visual {
    /// A video.
    Video,
    /// An image.
    Image,
    /// Text only.
    None,
}

/// A finished exchange before the present question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Turn {
    /// The user's question.
    pub question: String,
    /// The answer, without the end token.
    pub answer: String,
}
