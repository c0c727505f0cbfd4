//! The layout of LLaVA-OneVision (`qwen_1_5` in its code): ChatML with a system turn.
//!
//! ```text
//! <|im_start|>system
//! You are a helpful assistant.<|im_end|>
//! <|im_start|>user
//! <image>
//! What is this?<|im_end|>
//! <|im_start|>assistant
//! A cat.<|im_end|>
//! <|im_start|>user
//! ..
//! ```
//!
//! A visual, image or video, is one `<image>`, in whose place stand all its embeddings. There is no BOS.
//! Padding is hidden by the attention mask, so its id (`<|endoftext|>` in the published files) does not
//! matter.

use tpo_core::prompt::{PromptIds, TextEncoder, encode_without_bos};
use tpo_core::{CoreError, Result};

use super::layout::{AnswerStart, Opening, PromptLayout};

/// Place of a visual, image or video, in the text of a question.
pub const VISUAL_MARK: &str = "<image>";
/// Tokens that LLaVA-OneVision's files name before any others, in the first spare rows of Qwen2's
/// vocabulary (151646 and 151647).
pub const NAMED_TOKENS: [&str; 2] = [VISUAL_MARK, VIDEO];
/// What the model is told first, unless it is told something else (published conversation `qwen_1_5`).
pub const SYSTEM: &str = "You are a helpful assistant.";
/// Longest prompt in tokens (published configuration: `tokenizer_model_max_length`).
pub const MAX_TOKENS: usize = 32_768;

const VIDEO: &str = "<video>";
const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";
const END_OF_TEXT: &str = "<|endoftext|>";
/// What opens an answer.
const ASSISTANT: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// LLaVA-OneVision's `qwen_1_5`.
///
/// A question may hold one [`VISUAL_MARK`] for each visual. A single one moves to the front, as in the
/// published training; without any, all visuals stand in front, joined by spaces. A sentence on frame times
/// follows the visual on a line of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct QwenLayout;

impl PromptLayout for QwenLayout {
    fn max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn ends(&self) -> &'static [&'static str] {
        &[END, END_OF_TEXT]
    }

    fn check_visuals(&self, _count: usize) -> Result<()> {
        Ok(())
    }

    fn check_text(&self, text: &str) -> Result<()> {
        let tokens = [START, END, END_OF_TEXT, VISUAL_MARK, VIDEO];
        match tokens.into_iter().find(|token| text.contains(token)) {
            Some(VISUAL_MARK) => refuse(format!(
                "the text holds `{VISUAL_MARK}`, the place of a video or image, where none can stand: only \
                 the first question has them; leave it out"
            )),
            Some(token) => refuse(format!(
                "the text holds `{token}`, which the model would read as the end of a turn or as a place \
                 for something else; leave it out, or write it with a space after the first character"
            )),
            None => Ok(()),
        }
    }

    fn opening(&self, opening: &Opening<'_>, encoder: &dyn TextEncoder) -> Result<PromptIds> {
        let (message, prefix) = (opening.message.trim(), opening.answer.prefix);
        let system = match opening.system {
            "" => SYSTEM,
            system => system,
        };
        self.check_text(system)?;
        self.check_text(prefix)?;
        self.check_text(&opening.question.replace(VISUAL_MARK, ""))?;
        let (mut front, question) = placed(opening)?;
        let mut prompt = PromptIds::default();
        let mut visuals = opening.visuals.iter();
        let mut push = |text: &str| -> Result<()> {
            for (i, piece) in text.split(VISUAL_MARK).enumerate() {
                if i > 0 {
                    prompt.push_visual(visuals.next().map_or(0, |v| v.count));
                }
                prompt.push_text(&encode_without_bos(piece, encoder)?);
            }
            Ok(())
        };
        let mut text = format!("{START}system\n{system}{END}\n{START}user\n");
        if !message.is_empty() {
            if !front.is_empty() {
                front.push('\n');
            }
            front.push_str(message);
        }
        let breaks = if front.is_empty() || question.is_empty() {
            ""
        } else {
            "\n"
        };
        text.push_str(&front);
        // By itself, so that a question has the same ids with the sentence as without.
        if !message.is_empty() {
            push(&std::mem::take(&mut text))?;
        }
        push(&format!("{text}{breaks}{question}{ASSISTANT}{prefix}"))?;
        Ok(prompt)
    }

    fn further(
        &self,
        question: &str,
        answer: AnswerStart<'_>,
        encoder: &dyn TextEncoder,
    ) -> Result<Vec<u32>> {
        self.check_text(question)?;
        self.check_text(answer.prefix)?;
        let prefix = answer.prefix;
        encode_without_bos(
            &format!("\n{START}user\n{question}{ASSISTANT}{prefix}"),
            encoder,
        )
    }

    fn packed(&self, question: &str, encoder: &dyn TextEncoder) -> Result<Vec<u32>> {
        self.check_text(question)?;
        encode_without_bos(&format!("\n{question}{ASSISTANT}"), encoder)
    }
}

/// The marks in front of the first question, and the question.
fn placed(opening: &Opening<'_>) -> Result<(String, String)> {
    let (question, visuals) = (opening.question, opening.visuals.len());
    let marks = question.matches(VISUAL_MARK).count();
    let told = !opening.message.trim().is_empty();
    Ok(match (marks, visuals) {
        (0, _) => (vec![VISUAL_MARK; visuals].join(" "), question.into()),
        (1, 1) if told || !question.starts_with(VISUAL_MARK) => {
            let rest = question.replace(VISUAL_MARK, "");
            (VISUAL_MARK.into(), rest.trim().into())
        }
        _ if marks == visuals => (String::new(), question.into()),
        _ => {
            return refuse(format!(
                "the question holds `{VISUAL_MARK}` {marks} times and {visuals} videos or images are looked \
                 at; write it once for each, or not at all"
            ));
        }
    })
}

fn refuse<T>(why: String) -> Result<T> {
    Err(CoreError::Prompt { why })
}
