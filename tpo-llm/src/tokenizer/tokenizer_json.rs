//! `tokenizer.json` files, read by Hugging Face's `tokenizers`.

use std::path::Path;

use tokenizers::{AddedToken as HfAddedToken, Tokenizer as HfTokenizer};

use super::added::AddedToken;
use super::guard::no_panic;
use super::sentencepiece::byte_of;
use crate::error::{LlmError, Result};

/// A loaded `tokenizer.json`.
#[derive(Debug)]
pub(super) struct TokenizerJson {
    inner: HfTokenizer,
    /// Ids the file's post-processor puts before and after a text.
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
    next_id: u32,
}

impl TokenizerJson {
    /// Reads the file's text. `path` is for messages. Padding and truncation of the file are
    /// switched off: lengths are the caller's business.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |problem: String| LlmError::TokenizerFile {
            path: path.to_path_buf(),
            problem,
        };
        let mut inner = no_panic(|| HfTokenizer::from_bytes(bytes))
            .map_err(bad)?
            .map_err(|e| bad(format!("not a tokenizer.json: {e}")))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| bad(e.to_string()))?;
        check_added_ids(bytes, &inner).map_err(bad)?;
        let mut this = Self {
            inner,
            prefix: Vec::new(),
            suffix: Vec::new(),
            next_id: 0,
        };
        this.refresh_next_id();
        (this.prefix, this.suffix) = this.template_ids()?;
        Ok(this)
    }

    fn refresh_next_id(&mut self) {
        let vocab = self.inner.get_vocab(true);
        self.next_id = vocab.values().max().map_or(0, |m| m.saturating_add(1));
    }

    /// Finds the ids around a text by encoding a letter with and without them.
    fn template_ids(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let plain = self.encode_with("a", false)?;
        let full = self.encode_with("a", true)?;
        if plain.is_empty() {
            return Ok((full, Vec::new()));
        }
        let at = full.windows(plain.len()).position(|w| w == plain);
        Ok(at.map_or_else(Default::default, |at| {
            (full[..at].to_vec(), full[at + plain.len()..].to_vec())
        }))
    }

    fn encode_with(&self, text: &str, template: bool) -> Result<Vec<u32>> {
        let fail = |problem: String| LlmError::Tokenize {
            action: "encode",
            problem,
        };
        let encoding = no_panic(|| self.inner.encode_fast(text, template))
            .map_err(fail)?
            .map_err(|e| fail(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of `text` without the template's.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    /// Text of `ids`. Ids outside the vocabulary are left out, as in Hugging Face's fast
    /// tokenizers: embedding tables are often padded past the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let fail = |problem: String| LlmError::Tokenize {
            action: "decode",
            problem,
        };
        no_panic(|| self.inner.decode(ids, skip_special))
            .map_err(fail)?
            .map_err(|e| fail(e.to_string()))
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|t| t.special)
    }

    pub fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Added tokens by ascending id.
    pub fn added(&self) -> Vec<(u32, HfAddedToken)> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut tokens: Vec<_> = added.iter().map(|(id, t)| (*id, t.clone())).collect();
        tokens.sort_by_key(|(id, _)| *id);
        tokens
    }

    /// Adds a token, which gets the id of the vocabulary's entry of that name or the next free
    /// one. `wanted` is checked before anything changes.
    pub fn add(&mut self, token: AddedToken, wanted: Option<u32>) -> Result<u32> {
        let refuse = |problem: String| {
            Err(LlmError::AddedToken {
                token: token.content.clone(),
                problem,
            })
        };
        if token.content.is_empty() {
            return refuse("it is empty".into());
        }
        let id = self.token_to_id(&token.content).unwrap_or(self.next_id);
        if let Some(wanted) = wanted.filter(|w| *w != id) {
            return refuse(format!(
                "a tokenizer.json gives it id {id}, not {wanted}; ids follow the vocabulary \
                 without gaps"
            ));
        }
        let hf = HfAddedToken::from(token.content.clone(), token.special)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .single_word(token.single_word)
            .normalized(token.normalized);
        let added = no_panic(|| self.inner.add_tokens(&[hf]));
        if let Err(problem) = added {
            return refuse(problem);
        }
        self.next_id = self.next_id.max(id.saturating_add(1));
        match self.token_to_id(&token.content) {
            Some(got) if got == id => Ok(id),
            got => refuse(format!("it got id {got:?} instead of {id}")),
        }
    }
}

/// `tokenizers` numbers added tokens by itself and only warns when that differs from the file.
fn check_added_ids(bytes: &[u8], inner: &HfTokenizer) -> std::result::Result<(), String> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        id: u32,
        content: String,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    for token in &file.added_tokens {
        let got = inner.token_to_id(&token.content);
        if got != Some(token.id) {
            return Err(format!(
                "added token `{}` has id {} in the file but would become {got:?}; ids of added \
                 tokens must follow the vocabulary without gaps",
                token.content, token.id
            ));
        }
    }
    Ok(())
}

/// Incremental decoding over a window that starts at a place where the text was complete.
#[derive(Debug, Clone)]
pub(super) struct WindowStream<'a> {
    model: &'a TokenizerJson,
    skip_special: bool,
    /// Ids of the window; the text of the first `read` of them is written.
    ids: Vec<u32>,
    read: usize,
}

impl<'a> WindowStream<'a> {
    pub fn new(model: &'a TokenizerJson, skip_special: bool) -> Self {
        Self {
            model,
            skip_special,
            ids: Vec::new(),
            read: 0,
        }
    }

    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.skip_special && self.model.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        // A run of byte pieces is decoded as one, so wait for its end.
        let in_bytes = self
            .model
            .id_to_token(id)
            .is_some_and(|t| byte_of(&t).is_some());
        if in_bytes {
            return Ok(String::new());
        }
        self.advance(false)
    }

    pub fn finish(&mut self) -> Result<String> {
        let text = self.advance(true)?;
        self.ids.clear();
        self.read = 0;
        Ok(text)
    }

    fn advance(&mut self, end: bool) -> Result<String> {
        let before = self
            .model
            .decode(&self.ids[..self.read], self.skip_special)?;
        let now = self.model.decode(&self.ids, self.skip_special)?;
        if !end && now.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let Some(new) = now.strip_prefix(before.as_str()) else {
            // The decoder rewrote what was written; the next tokens may settle it.
            return Ok(if end {
                now.get(before.len()..).unwrap_or_default().to_string()
            } else {
                String::new()
            });
        };
        if !new.is_empty() {
            self.ids.drain(..self.read);
            self.read = self.ids.len();
        }
        Ok(new.to_string())
    }
}
