//! The layout of VideoChat2 and VideoChat-TPO, from text to ids and visual slots.
//!
//! Three habits of the reference matter for its checkpoints and are kept: every text segment
//! between placeholders gets its own BOS; a visual placeholder becomes `n_visual` ids of 0; the
//! video part and the question part are tokenised separately.

use tpo_core::prompt::{PromptIds, TextEncoder, Turn, Visual, encode_without_bos};
use tpo_core::{CoreError, Result};

use super::layout::{AnswerStart, Opening, PromptLayout};

/// Placeholder of an image in a prompt text.
pub const IMAGE_PLACEHOLDER: &str = "[<IMG_PLH>]";
/// Placeholder of a video in a prompt text.
pub const VIDEO_PLACEHOLDER: &str = "[<VID_PLH>]";
/// Longest prompt in tokens (reference: `max_length` 1024, cut after concatenation).
pub const MAX_TOKENS: usize = 1024;

/// `[INST] <Video>..</Video>[/INST] [INST] question [/INST] answer`. Later turns follow without a
/// further BOS.
#[derive(Debug, Clone, Copy, Default)]
pub struct VideoChatLayout;

impl PromptLayout for VideoChatLayout {
    fn max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn check_visuals(&self, count: usize) -> Result<()> {
        if count > 1 {
            return Err(CoreError::Prompt {
                why: format!(
                    "{count} videos or images are given and this base model reads one; ask about each by \
                     itself, or take a model that reads several (`\"prompt\": \"qwen\"` in its tpo.json)"
                ),
            });
        }
        Ok(())
    }

    fn check_text(&self, text: &str) -> Result<()> {
        if [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER]
            .iter()
            .any(|p| text.contains(p))
        {
            return Err(CoreError::Prompt {
                why: format!(
                    "the question holds `{IMAGE_PLACEHOLDER}` or `{VIDEO_PLACEHOLDER}`; these mark \
                     the place of the video and cannot be asked about"
                ),
            });
        }
        Ok(())
    }

    fn opening(&self, opening: &Opening<'_>, encoder: &dyn TextEncoder) -> Result<PromptIds> {
        if opening.answer.joined {
            return laid_out(opening, &[], encoder);
        }
        let (visual, message) = (visual_of(opening), opening.message);
        let prompt = QuestionPrompt::new(visual, message, opening.question);
        finished(prompt, opening, encoder)
    }

    fn further(
        &self,
        question: &str,
        answer: AnswerStart<'_>,
        encoder: &dyn TextEncoder,
    ) -> Result<Vec<u32>> {
        encode_further_question(question, answer, encoder)
    }

    fn published(
        &self,
        opening: &Opening<'_>,
        history: &[Turn],
        encoder: &dyn TextEncoder,
    ) -> Result<Option<PromptIds>> {
        laid_out(opening, history, encoder).map(Some)
    }
}

/// Tokenises text that may hold placeholders. Each piece of text is encoded by itself, with its
/// own BOS — an empty piece before, between or after placeholders is just BOS — and each
/// placeholder takes `n_visual` slots.
pub fn encode_with_placeholders(
    text: &str,
    n_visual: usize,
    encoder: &(impl TextEncoder + ?Sized),
) -> Result<PromptIds> {
    let mut prompt = PromptIds::default();
    let mut rest = text;
    loop {
        let next = [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER]
            .iter()
            .filter_map(|p| rest.find(p).map(|at| (at, p.len())))
            .min();
        let Some((at, len)) = next else {
            prompt.push_text(&encoder.encode_with_bos(rest)?);
            return Ok(prompt);
        };
        prompt.push_text(&encoder.encode_with_bos(&rest[..at])?);
        prompt.push_visual(n_visual);
        rest = &rest[at + len..];
    }
}

/// Ids of a question after earlier turns, in the layout of training: no further BOS, and the
/// answer begins as that of a first question does. [`QuestionPrompt::with_history`]
/// is the layout of the published generation code, which differs from it.
///
/// # Errors
/// [`CoreError::Prompt`] for a question with the placeholder of a video; those of the encoder.
pub fn encode_further_question(
    question: &str,
    answer: AnswerStart<'_>,
    encoder: &(impl TextEncoder + ?Sized),
) -> Result<Vec<u32>> {
    VideoChatLayout.check_text(question)?;
    let space = if answer.joined { "" } else { " " };
    let text = format!(" [INST] {question} [/INST]{space}{}", answer.prefix);
    encode_without_bos(&text, encoder)
}

/// The two texts of a question to VideoChat-TPO, tokenised one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionPrompt {
    /// The visual part with its placeholder.
    pub visual: String,
    /// The conversation.
    pub question: String,
}

impl QuestionPrompt {
    /// One question: the reference's `process_qa`.
    ///
    /// `message` is put after the video, for example [`PromptLayout::times`]; white space at its
    /// end is dropped.
    pub fn new(visual: Visual, message: &str, question: &str) -> Self {
        let question = if question.is_empty() {
            " ".into()
        } else {
            format!(" [INST] {question} [/INST] ")
        };
        Self {
            visual: visual_part(visual, message),
            question,
        }
    }

    /// A question after earlier turns: the layout of the reference's `generate_answer`.
    pub fn with_history(visual: Visual, message: &str, history: &[Turn], question: &str) -> Self {
        let mut text = String::new();
        for turn in history {
            text.push_str(&format!(
                " [INST] {} [/INST]{}</s>",
                turn.question, turn.answer
            ));
        }
        text.push_str(&format!(" [INST] {question} [/INST]"));
        Self {
            visual: visual_part(visual, message),
            question: text,
        }
    }

    /// Begins the answer, for example with `Best Option: (` for multiple choice as the
    /// reference's evaluation does.
    pub fn with_answer_prefix(mut self, prefix: &str) -> Self {
        self.question.push_str(prefix);
        self
    }

    /// Puts text in front of all.
    pub fn put_in_front(&mut self, visual: Visual, text: &str) {
        let front = match visual {
            Visual::None => &mut self.question,
            _ => &mut self.visual,
        };
        front.insert_str(0, text);
    }

    /// Both texts joined, placeholders included.
    pub fn text(&self) -> String {
        format!("{}{}", self.visual, self.question)
    }

    /// Ids of both parts.
    ///
    /// # Errors
    /// [`CoreError::Prompt`] when a part other than the visual one holds a placeholder, which
    /// would ask for embeddings that do not exist.
    pub fn encode(
        &self,
        n_visual: usize,
        encoder: &(impl TextEncoder + ?Sized),
    ) -> Result<PromptIds> {
        VideoChatLayout.check_text(&self.question)?;
        let mut prompt = PromptIds::default();
        if !self.visual.is_empty() {
            prompt = encode_with_placeholders(&self.visual, n_visual, encoder)?;
        }
        prompt.extend(&encode_with_placeholders(
            &self.question,
            n_visual,
            encoder,
        )?);
        Ok(prompt)
    }
}

/// An opening in the layout of the published generation code.
fn laid_out(
    opening: &Opening<'_>,
    history: &[Turn],
    encoder: &dyn TextEncoder,
) -> Result<PromptIds> {
    let (visual, message) = (visual_of(opening), opening.message);
    let prompt = QuestionPrompt::with_history(visual, message, history, opening.question);
    finished(prompt, opening, encoder)
}

/// Ids of a prompt with what stands around it.
fn finished(
    prompt: QuestionPrompt,
    opening: &Opening<'_>,
    encoder: &dyn TextEncoder,
) -> Result<PromptIds> {
    VideoChatLayout.check_visuals(opening.visuals.len())?;
    let mut prompt = prompt.with_answer_prefix(opening.answer.prefix);
    prompt.put_in_front(visual_of(opening), opening.system);
    prompt.encode(opening.visuals.first().map_or(0, |v| v.count), encoder)
}

fn visual_of(opening: &Opening<'_>) -> Visual {
    opening.visuals.first().map_or(Visual::None, |v| v.kind)
}

fn visual_part(visual: Visual, message: &str) -> String {
    let message = message.trim_end();
    match visual {
        Visual::Video => format!("[INST] <Video>{VIDEO_PLACEHOLDER}</Video>{message}[/INST]"),
        Visual::Image => format!("[INST] <Image>{IMAGE_PLACEHOLDER}</Image>{message}[/INST]"),
        Visual::None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::VisualSlots;
    use super::*;

    /// One id per character after BOS 1.
    struct Chars;
    impl TextEncoder for Chars {
        fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>> {
            Ok(std::iter::once(1)
                .chain(text.chars().map(|c| c as u32))
                .collect())
        }
    }

    #[test]
    fn every_segment_gets_its_own_bos() {
        let p = encode_with_placeholders("a[<VID_PLH>]b", 3, &Chars).unwrap();
        assert_eq!(p.ids, [1, 97, 0, 0, 0, 1, 98]);
        assert_eq!(p.visual_slots(), 3);
        let two = encode_with_placeholders("[<IMG_PLH>][<VID_PLH>]", 1, &Chars).unwrap();
        assert_eq!(two.ids, [1, 0, 1, 0, 1]);
        assert_eq!(encode_with_placeholders("", 1, &Chars).unwrap().ids, [1]);
    }

    #[test]
    fn texts_of_the_reference() {
        let p = QuestionPrompt::new(Visual::Video, &VideoChatLayout.times(&[0.3, 1.0]), "Why?");
        assert_eq!(
            p.text(),
            "[INST] <Video>[<VID_PLH>]</Video> The video contains 2 frames sampled at 0.3, 1.0 \
             seconds.[/INST] [INST] Why? [/INST] "
        );
        assert_eq!(QuestionPrompt::new(Visual::Image, "", "").question, " ");
        let h = [Turn {
            question: "a".into(),
            answer: "b".into(),
        }];
        assert_eq!(
            QuestionPrompt::with_history(Visual::None, "", &h, "c").text(),
            " [INST] a [/INST]b</s> [INST] c [/INST]"
        );
    }

    #[test]
    fn a_further_question_reads_as_the_first_without_its_bos() {
        for joined in [false, true] {
            let answer = AnswerStart {
                prefix: "d",
                joined,
            };
            let first = Opening {
                answer,
                ..Opening::text("c")
            };
            let first = VideoChatLayout.opening(&first, &Chars).unwrap();
            let further = encode_further_question("c", answer, &Chars).unwrap();
            assert_eq!(first.ids[1..], further);
        }
    }

    #[test]
    fn one_visual_is_read() {
        let visuals = [VisualSlots {
            kind: Visual::Image,
            count: 2,
        }; 2];
        let opening = |visuals| Opening {
            visuals,
            ..Opening::text("q")
        };
        let ids = |visuals| VideoChatLayout.opening(&opening(visuals), &Chars);
        assert_eq!(ids(&visuals[..1]).unwrap().visual_slots(), 2);
        let error = ids(&visuals).unwrap_err().to_string();
        assert!(error.contains("2 videos or images"), "{error}");
    }

    #[test]
    fn a_placeholder_in_the_question_is_an_error() {
        let p = QuestionPrompt::new(Visual::Video, "", "what is [<VID_PLH>]?");
        assert!(p.encode(4, &Chars).is_err());
        assert!(encode_further_question("[<VID_PLH>]", AnswerStart::default(), &Chars).is_err());
    }
}
