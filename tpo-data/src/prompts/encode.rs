//! From a dialogue to ids and labels.

use std::sync::Arc;

use tpo_core::model::IGNORE_LABEL;
use tpo_core::prompt::{PromptIds, TextEncoder, encode_without_bos};
use tpo_core::traits::VisualShape;

use super::layout::{AnswerStart, Opening, PromptLayout, VisualSlots};
use super::videochat::VideoChatLayout;
use super::writer::{Dialogue, prepare};
use crate::DataError;

/// A tokenizer that threads share.
pub type SharedEncoder = Arc<dyn TextEncoder + Send + Sync>;
/// How many embeddings the connector makes of a visual.
pub type SlotCount = Arc<dyn Fn(&VisualShape) -> tpo_core::Result<usize> + Send + Sync>;

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
    pub packed_turns: Vec<u32>,
}

/// Dialogues in the layout of a base model.
///
/// The question is encoded exactly as for generation and the answer separately after it, so what the
/// model reads before its answer is the same in training and in use. Packed turns all begin as the
/// first does. Labels are the answers with their end token, placeholders included, as in the
/// reference; everything else is [`IGNORE_LABEL`].
#[derive(Clone)]
pub struct LayoutEncoder {
    /// The layout.
    pub layout: Arc<dyn PromptLayout>,
    /// The tokenizer.
    pub tokenizer: SharedEncoder,
    /// Id of the token that ends an answer ([`PromptLayout::ends`]).
    pub eos_id: u32,
    /// Visual slots of a visual.
    pub slots: SlotCount,
    /// Most positions.
    pub max_tokens: usize,
}

impl LayoutEncoder {
    /// VideoChat-TPO with the reference's 96 slots and 1024 positions.
    pub fn videochat(tokenizer: SharedEncoder, eos_id: u32) -> Self {
        Self {
            tokenizer,
            eos_id,
            slots: Arc::new(|_| Ok(96)),
            max_tokens: VideoChatLayout.max_tokens(),
            layout: Arc::new(VideoChatLayout),
        }
    }

    /// Encodes as many turns as fit. `times` are those of the sampled frames as the model is told
    /// them ([`told_times`](crate::sampling::told_times)).
    ///
    /// # Errors
    /// [`DataError::Prepare`] when the first turn does not fit, [`DataError::Core`] from layout and
    /// tokenizer.
    pub fn encode(
        &self,
        visuals: &[VisualShape],
        times: &[f64],
        dialogue: &Dialogue,
    ) -> Result<EncodedDialogue, DataError> {
        let slots = |visual: &VisualShape| {
            let (kind, count) = (visual.kind, (self.slots)(visual)?);
            Ok(VisualSlots { kind, count })
        };
        let visuals = visuals.iter().map(slots);
        let visuals = visuals.collect::<tpo_core::Result<Vec<_>>>()?;
        let questions = dialogue.turns.iter().map(|(question, _)| question.as_str());
        let questions: Vec<&str> = questions.collect();
        let message = self.layout.message(&questions, times);
        let mut out = EncodedDialogue {
            prompt: PromptIds::default(),
            labels: Vec::new(),
            turns: 0,
            packed_turns: Vec::new(),
        };
        for (i, (question, answer)) in dialogue.turns.iter().enumerate() {
            let mut turn = PromptIds::default();
            let mut shared = 0;
            if i == 0 {
                let opening = Opening {
                    visuals: &visuals,
                    message: &message,
                    ..Opening::text(question)
                };
                turn = self.layout.opening(&opening, &*self.tokenizer)?;
                if dialogue.packed_turns {
                    let own = self.layout.packed(question, &*self.tokenizer)?;
                    if !turn.ids.ends_with(&own) {
                        return Err(prepare(
                            "the first question cannot be packed with others: it would begin in another \
                             way than they do; leave marks of visuals out of it, or `packed_turns`",
                        ));
                    }
                    shared = turn.len() - own.len();
                }
            } else if dialogue.packed_turns {
                turn.push_text(&self.layout.packed(question, &*self.tokenizer)?);
            } else {
                turn.push_text(&{
                    let begins = AnswerStart::default();
                    self.layout.further(question, begins, &*self.tokenizer)?
                });
            }
            let asked = turn.len();
            if !answer.is_empty() {
                self.layout.check_text(answer)?;
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
            if dialogue.packed_turns {
                out.packed_turns.extend(std::iter::repeat_n(0, shared));
                out.packed_turns
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
