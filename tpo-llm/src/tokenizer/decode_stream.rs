//! Decoding while tokens arrive.

use super::sentencepiece_decode::PieceStream;
use super::tokenizer_json::WindowStream;
use crate::error::Result;

/// Turns ids into text one at a time, for printing an answer as it is generated.
///
/// The output is complete UTF-8 characters, and everything returned by [`push`](Self::push) and
/// [`finish`](Self::finish) together equals [`Tokenizer::decode`](super::Tokenizer::decode) of the
/// same ids. Text whose form depends on what follows is held back: unfinished characters always,
/// and with the legacy sentencepiece behaviour *and* special tokens shown all text up to the next
/// special or added token. For live output, skip special tokens.
#[derive(Debug, Clone)]
pub struct DecodeStream<'a>(pub(super) Backend<'a>);

#[derive(Debug, Clone)]
pub(super) enum Backend<'a> {
    SentencePiece(PieceStream<'a>),
    Json(WindowStream<'a>),
}

impl DecodeStream<'_> {
    /// The text that `id` completes; often empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`](super::Tokenizer::decode).
    pub fn push(&mut self, id: u32) -> Result<String> {
        match &mut self.0 {
            Backend::SentencePiece(s) => s.push(id),
            Backend::Json(s) => s.push(id),
        }
    }

    /// The remaining text. Bytes that never became a character are U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`](super::Tokenizer::decode).
    pub fn finish(mut self) -> Result<String> {
        match &mut self.0 {
            Backend::SentencePiece(s) => Ok(s.finish()),
            Backend::Json(s) => s.finish(),
        }
    }
}
