//! Decoding of sentencepiece ids, one at a time.
//!
//! Follows Hugging Face's slow Llama tokenizer to the letter, including its peculiarities:
//! non-special added tokens are joined to their neighbours with a space, the first piece after one
//! loses a space mark, and (legacy) a space is put before text that ends at a special token.

use super::sentencepiece::{Kind, SPACE, SentencePiece};
use crate::error::{LlmError, Result};

/// Decoder state. The whole-sequence decode is this machine run to its end.
#[derive(Debug, Clone)]
pub(super) struct PieceStream<'a> {
    model: &'a SentencePiece,
    skip_special: bool,
    /// Runs and added tokens written so far.
    parts: usize,
    run: Run,
}

/// Text between two non-special added tokens.
#[derive(Debug, Clone, Default)]
struct Run {
    started: bool,
    written: bool,
    after_special: bool,
    /// Text whose prefix depends on what follows (legacy with special tokens shown).
    held: String,
    pieces: Pieces,
}

/// State of sentencepiece's own decoder.
#[derive(Debug, Clone, Default)]
struct Pieces {
    past_start: bool,
    space_seen: bool,
    nonempty: bool,
    bytes: Vec<u8>,
}

impl<'a> PieceStream<'a> {
    pub fn new(model: &'a SentencePiece, skip_special: bool) -> Self {
        Self {
            model,
            skip_special,
            parts: 0,
            run: Run::default(),
        }
    }

    /// Text that `id` makes certain.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let model = self.model;
        let token = model.id_to_token(id).ok_or(LlmError::UnknownTokenId {
            id,
            vocab_size: model.next_id() as usize,
        })?;
        let special = model.is_special(id);
        let mut out = String::new();
        if special && self.skip_special {
            return Ok(out);
        }
        if !special && model.added.get(id).is_some() {
            self.end_run(false, &mut out);
            if self.parts > 0 {
                out.push(' ');
            }
            out.push_str(token);
            self.parts += 1;
            return Ok(out);
        }
        let first = !self.run.started;
        self.run.started = true;
        if special {
            if model.legacy && !self.run.after_special && !first {
                self.write(" ", &mut out);
            }
            let mut text = std::mem::take(&mut self.run.held);
            text.push_str(&self.run.pieces.finish());
            text.push_str(token);
            self.write(&text, &mut out);
            self.run.pieces = Pieces::default();
            self.run.after_special = true;
            return Ok(out);
        }
        let piece = match token.strip_prefix(SPACE) {
            Some(rest) if first => rest,
            _ => token,
        };
        let text = self.run.pieces.push(piece, model);
        self.run.after_special = false;
        if model.legacy && !self.skip_special {
            self.run.held.push_str(&text);
        } else {
            self.write(&text, &mut out);
        }
        Ok(out)
    }

    /// Remaining text.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.end_run(true, &mut out);
        out
    }

    fn write(&mut self, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        if !self.run.written && self.parts > 0 {
            out.push(' ');
        }
        self.run.written = true;
        out.push_str(text);
    }

    fn end_run(&mut self, last: bool, out: &mut String) {
        let mut text = std::mem::take(&mut self.run.held);
        text.push_str(&self.run.pieces.finish());
        self.write(&text, out);
        if self.run.written {
            self.parts += 1;
        } else if last && self.run.started && self.parts > 0 {
            // The reference joins a last run even when its text is empty.
            out.push(' ');
        }
        self.run = Run::default();
    }
}

impl Pieces {
    fn push(&mut self, piece: &str, model: &SentencePiece) -> String {
        let kind = model.kind_of(piece);
        if let Kind::Byte(byte) = kind {
            self.bytes.push(byte);
            let text = take_chars(&mut self.bytes, false);
            self.nonempty |= !text.is_empty();
            return text;
        }
        let mut out = self.finish();
        if self.space_seen || self.nonempty {
            self.past_start = true;
        }
        self.space_seen = false;
        let text = match kind {
            Kind::Control => String::new(),
            Kind::Unknown if piece == model.unk_text() => model.unk_surface.clone(),
            Kind::Unknown => piece.to_string(),
            _ => {
                let mut rest = piece;
                if !self.past_start
                    && model.drops_leading_space
                    && let Some(tail) = piece.strip_prefix(SPACE)
                {
                    rest = tail;
                    self.space_seen = !model.drops_all_leading_space;
                }
                rest.replace(SPACE, " ")
            }
        };
        self.nonempty |= !text.is_empty();
        out.push_str(&text);
        out
    }

    fn finish(&mut self) -> String {
        let text = take_chars(&mut self.bytes, true);
        self.nonempty |= !text.is_empty();
        text
    }
}

/// Takes the complete characters off the front of `bytes`. A byte that starts no character
/// becomes U+FFFD; an unfinished character stays unless this is the `end`.
fn take_chars(bytes: &mut Vec<u8>, end: bool) -> String {
    let mut out = String::new();
    while !bytes.is_empty() {
        let (good, bad) = match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                bytes.clear();
                break;
            }
            Err(e) => (e.valid_up_to(), e.error_len()),
        };
        out.push_str(&String::from_utf8_lossy(&bytes[..good]));
        bytes.drain(..good);
        if bad.is_none() && !end {
            break;
        }
        out.push(char::REPLACEMENT_CHARACTER);
        bytes.remove(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::take_chars;

    #[test]
    fn characters_come_out_whole() {
        let mut bytes = vec![0xE4, 0xBD];
        assert_eq!(take_chars(&mut bytes, false), "");
        bytes.push(0xA0);
        assert_eq!(take_chars(&mut bytes, false), "你");
        let mut cut = vec![b'a', 0xE4, 0xBD];
        assert_eq!(take_chars(&mut cut, true), "a\u{FFFD}\u{FFFD}");
        let mut wrong = vec![0x80, b'b'];
        assert_eq!(take_chars(&mut wrong, false), "\u{FFFD}b");
    }
}
