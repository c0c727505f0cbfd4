//! Writing added tokens back into a tokenizer's files.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;

use super::tokenizer_json::TokenizerJson;
use super::{Backend, Tokenizer};
use crate::error::{LlmError, Result};

/// The file that can hold added tokens with their ids.
const FILE: &str = "tokenizer.json";
const KEY: &str = "\"added_tokens\"";

/// An entry of `added_tokens`.
#[derive(Serialize)]
struct Entry<'a> {
    id: u32,
    #[serde(flatten)]
    token: &'a AddedToken,
}

#[derive(Deserialize)]
struct Named {
    content: String,
}

impl Tokenizer {
    /// The files (name, bytes) that this tokenizer was read from, with the tokens that were added
    /// since: [`Tokenizer::from_dir`] on them gives the same tokens the same ids.
    ///
    /// `added_tokens` of `tokenizer.json` gets the entries it lacks; every other byte and file is
    /// as it was. A sentencepiece model cannot hold tokens with given ids, so the files of one come
    /// back unchanged: who reads them adds the tokens again with
    /// [`add_tokens_with_ids`](Tokenizer::add_tokens_with_ids), as model directories do from their
    /// list of task tokens.
    ///
    /// # Errors
    /// [`LlmError::TokenizerFile`] when `tokenizer.json` is not the one this tokenizer was read
    /// from, or would not give the tokens their ids.
    pub fn write_added(&self, files: &[(String, Vec<u8>)]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = files.to_vec();
        if let Backend::Json(json) = &self.backend
            && let Some((_, bytes)) = files.iter_mut().find(|(name, _)| name == FILE)
        {
            *bytes = json.write_added(bytes)?;
        }
        Ok(files)
    }
}

impl TokenizerJson {
    fn write_added(&self, file: &[u8]) -> Result<Vec<u8>> {
        let path = Path::new(FILE);
        let bad = |problem: String| LlmError::TokenizerFile {
            path: path.to_path_buf(),
            problem,
        };
        let mut text = std::str::from_utf8(file)
            .map_err(|e| bad(e.to_string()))?
            .to_string();
        let list = find_list(&text).map_err(|e| bad(e.to_string()))?;
        let present: &[String] = list.as_ref().map_or(&[], |(_, names)| names);
        let tokens = self.added();
        let new: Vec<String> = tokens
            .iter()
            .filter(|(_, token)| !present.contains(&token.content))
            .map(|(id, token)| serde_json::to_string(&Entry { id: *id, token }))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| bad(e.to_string()))?;
        if new.is_empty() {
            return Ok(file.to_vec());
        }
        let new = new.join(",");
        match list {
            Some((end, names)) if names.is_empty() => text.insert_str(end, &new),
            // After the last entry, in front of the white space before the bracket.
            Some((end, _)) => {
                let end = text[..end].trim_end().len();
                text.insert_str(end, &format!(",{new}"));
            }
            None => {
                let start = text
                    .find('{')
                    .ok_or_else(|| bad("not a JSON object".into()))?;
                text.insert_str(start + 1, &format!("{KEY}:[{new}],"));
            }
        }
        let written = Self::from_bytes(text.as_bytes(), path)?;
        for (id, token) in &tokens {
            let got = written.token_to_id(&token.content);
            if got != Some(*id) {
                return Err(bad(format!(
                    "token `{}` has id {id} and would be read back as {got:?}; this is not the file \
                     that the tokenizer was read from",
                    token.content
                )));
            }
        }
        Ok(text.into_bytes())
    }
}

/// Where the list `added_tokens` of a `tokenizer.json` ends (its bracket), and its strings.
fn find_list(text: &str) -> serde_json::Result<Option<(usize, Vec<String>)>> {
    // A quote inside of a string has a backslash in front, so what matches is a whole string; only
    // the file's own key has a list as value, a token of that name has a number.
    for (at, _) in text.match_indices(KEY) {
        let value = text[at + KEY.len()..].trim_start();
        let Some(value) = value.strip_prefix(':').map(str::trim_start) else {
            continue;
        };
        if !value.starts_with('[') {
            continue;
        }
        let mut lists = serde_json::Deserializer::from_str(value).into_iter::<Vec<Named>>();
        let Some(names) = lists.next().transpose()? else {
            continue;
        };
        let end = text.len() - value.len() + lists.byte_offset() - 1;
        return Ok(Some((end, names.into_iter().map(|n| n.content).collect())));
    }
    Ok(None)
}
