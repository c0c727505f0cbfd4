//! From a dialogue to ids and labels.

use std::sync::Arc;

use tpo_core::model::IGNORE_LABEL;
use tpo_core::prompt::{
    PromptIds, QuestionPrompt, TextEncoder, Visual, encode_further_question, encode_without_bos,
    timestamps_message,
};
use tpo_core::traits::VisualShape;

use super::writer::{Dialogue, prepare};
use crate::DataError;

/// A tokenizer that threads share.
pub type SharedEncoder = Arc<dyn TextEncoder + Send + Sync>;
/// How many embeddings the connector makes of a visual.
pub type SlotCount = Arc<dyn Fn(&VisualShape) -> usize + Send + Sync>;

/// Ids of a dialogue and their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedDialogue {
    /// Ids and visual slots.
    pub prompt: PromptIds,
    /// One label per position, [`IGNORE_LABEL`] where nothing is learned.
    pub labels: Vec<i64>,
    /// Turns that fitted; later ones were left out.
    pub turns: usize,
    /// With packed turns: the turn of every position, from 1, and 0 for the part they share
    /// ([`TurnMap`](tpo_core::traits::TurnMap)). Else empty.
    pub apart: Vec<u32>,
}

/// Lays a dialogue out as a model reads it.
pub trait DialogueEncoder: Send + Sync {
    /// Encodes as many turns as fit. `times` are those of the sampled frames in seconds from the
    /// start of the clip.
    ///
    /// # Errors
    /// [`DataError::Prepare`] when the first turn does not fit, [`DataError::Core`] from the
    /// tokenizer.
    fn encode(
        &self,
        visual: Option<&VisualShape>,
        times: &[f64],
        dialogue: &Dialogue,
    ) -> Result<EncodedDialogue, DataError>;
}

/// The layout of VideoChat-TPO: `[INST] <Video>..</Video>[/INST] [INST] question [/INST] answer`.
///
/// The question is encoded exactly as for generation and the answer separately after it, so what the
/// model reads before its answer is the same in training and in use. Later turns follow without a
/// further BOS; packed turns all begin as the first does. Labels are the answers with their end
/// token, placeholders included, as in the reference; everything else is [`IGNORE_LABEL`].
#[derive(Clone)]
pub struct VideoChatEncoder {
    /// The tokenizer.
    pub tokenizer: SharedEncoder,
    /// Id of `</s>`.
    pub eos_id: u32,
    /// Visual slots of a visual. Reference: 96 for any.
    pub slots: SlotCount,
    /// Most positions; the reference cuts at 1024.
    pub max_tokens: usize,
}

impl VideoChatEncoder {
    /// The reference's 96 slots and 1024 positions.
    pub fn new(tokenizer: SharedEncoder, eos_id: u32) -> Self {
        Self {
            tokenizer,
            eos_id,
            slots: Arc::new(|_| 96),
            max_tokens: tpo_core::prompt::MAX_TOKENS,
        }
    }
}

impl VideoChatEncoder {
    /// A question without what stands before it, as the first of a dialogue is encoded.
    fn alone(&self, question: &str) -> Result<PromptIds, DataError> {
        Ok(QuestionPrompt::new(Visual::None, "", question).encode(0, &*self.tokenizer)?)
    }
}

impl DialogueEncoder for VideoChatEncoder {
    fn encode(
        &self,
        visual: Option<&VisualShape>,
        times: &[f64],
        dialogue: &Dialogue,
    ) -> Result<EncodedDialogue, DataError> {
        let slots = visual.map_or(0, |v| (self.slots)(v));
        let visual = visual.map_or(Visual::None, |v| v.kind);
        let asks_times = dialogue
            .turns
            .iter()
            .any(|(q, _)| q.to_lowercase().contains("timestamp"));
        let message = if visual == Visual::Video && asks_times {
            timestamps_message(times)
        } else {
            String::new()
        };
        let mut out = EncodedDialogue {
            prompt: PromptIds::default(),
            labels: Vec::new(),
            turns: 0,
            apart: Vec::new(),
        };
        for (i, (question, answer)) in dialogue.turns.iter().enumerate() {
            let mut turn = PromptIds::default();
            let mut shared = 0;
            if i == 0 {
                turn = QuestionPrompt::new(visual, &message, question)
                    .encode(slots, &*self.tokenizer)?;
                if dialogue.apart {
                    shared = turn.len() - self.alone(question)?.len();
                }
            } else if dialogue.apart {
                turn = self.alone(question)?;
            } else {
                turn.push_text(&encode_further_question(question, "", &*self.tokenizer)?);
            }
            let asked = turn.len();
            if !answer.is_empty() {
                let mut ids = encode_without_bos(answer, &*self.tokenizer)?;
                ids.push(self.eos_id);
                turn.push_text(&ids);
            }
            let length = out.prompt.len() + turn.len();
            if length > self.max_tokens {
                if i > 0 {
                    break;
                }
                return Err(prepare(format!(
                    "question and answer take {length} positions, the limit is {}",
                    self.max_tokens
                )));
            }
            if dialogue.apart {
                out.apart.extend(std::iter::repeat_n(0, shared));
                out.apart
                    .extend(std::iter::repeat_n(i as u32 + 1, turn.len() - shared));
            }
            let learned = turn.ids[asked..].iter().map(|id| i64::from(*id));
            out.labels
                .extend(std::iter::repeat_n(IGNORE_LABEL, asked).chain(learned));
            out.prompt.extend(&turn);
            out.turns += 1;
        }
        Ok(out)
    }
}
