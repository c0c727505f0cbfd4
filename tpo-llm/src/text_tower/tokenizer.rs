//! Queries to ids, by the rules of InternVideo2-CLIP's text tower.

use std::path::Path;

use crate::error::Result;
use crate::tokenizer::{EncodeOptions, SentencePieceOptions, Tokenizer};

/// Prefix of every query (reference implementation).
pub const QUERY_PREFIX: &str = "summarize:";
/// Ids of a query, padding included (reference implementation).
pub const QUERY_LENGTH: usize = 80;

/// A sentencepiece tokenizer with the reference's rules: prefix `summarize:`, BOS and EOS, truncated
/// on the right so that both stay, padded on the right with the unknown piece.
#[derive(Debug)]
pub struct QueryTokenizer {
    tokenizer: Tokenizer,
    pad: u32,
}

impl QueryTokenizer {
    /// Reads the sentencepiece model of `chinese_alpaca_lora_7b`, in the behaviour of Hugging
    /// Face's slow tokenizer with `legacy=False`.
    ///
    /// # Errors
    /// [`LlmError::TokenizerFile`](crate::LlmError::TokenizerFile) or
    /// [`LlmError::Io`](crate::LlmError::Io).
    pub fn from_sentencepiece(path: impl AsRef<Path>) -> Result<Self> {
        let options = SentencePieceOptions { legacy: false };
        Ok(Self::new(Tokenizer::from_sentencepiece(path, options)?))
    }

    /// Applies the rules to any tokenizer. Padding is the unknown token, or 0 without one: the
    /// reference's padding token is a single space, which is no piece.
    pub fn new(tokenizer: Tokenizer) -> Self {
        let pad = tokenizer.unk_id().unwrap_or(0);
        Self { tokenizer, pad }
    }

    /// Id of padding.
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// The tokenizer that the rules are applied to.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Exactly [`QUERY_LENGTH`] ids of a query.
    ///
    /// # Errors
    /// [`LlmError::Tokenize`](crate::LlmError::Tokenize).
    pub fn encode(&self, query: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions {
            add_bos: self.tokenizer.bos_id().is_some(),
            add_eos: self.tokenizer.eos_id().is_some(),
            max_length: Some(QUERY_LENGTH),
        };
        let text = format!("{QUERY_PREFIX}{query}");
        let mut ids = self.tokenizer.encode(&text, options)?;
        ids.resize(QUERY_LENGTH, self.pad);
        Ok(ids)
    }
}
