//! Tokens added to a vocabulary, and splitting text at them.

use std::collections::HashMap;

use serde::Deserialize;

use crate::error::{LlmError, Result};

/// A token added to a vocabulary. Field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AddedToken {
    /// The string.
    pub content: String,
    /// Whether `decode(.., skip_special = true)` leaves it out.
    #[serde(default)]
    pub special: bool,
    /// Whether white space before it belongs to it.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether white space after it belongs to it.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether it only matches between spaces or at the ends of the text.
    #[serde(default)]
    pub single_word: bool,
    /// Whether it is matched in the normalised text (`tokenizer.json` only).
    #[serde(default)]
    pub normalized: bool,
}

impl AddedToken {
    /// A token as the reference implementation adds its task tokens: shown by `decode`, matched
    /// in the normalised text, no stripping.
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            special: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: true,
        }
    }

    /// A control token (BOS, EOS, ..): left out by `decode(.., skip_special = true)`.
    pub fn special(content: impl Into<String>) -> Self {
        Self {
            special: true,
            normalized: false,
            ..Self::new(content)
        }
    }
}

/// A segment of text between added tokens, or an added token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    Text(&'a str),
    Added(u32),
}

/// Added tokens by string and by id.
#[derive(Debug, Clone, Default)]
pub(super) struct AddedTokens {
    by_id: HashMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
    /// Strings that start with a byte, longest first.
    by_first_byte: HashMap<u8, Vec<String>>,
}

impl AddedTokens {
    /// Adds a token, or replaces the flags of an existing one with the same id.
    pub fn insert(&mut self, token: AddedToken, id: u32) -> Result<()> {
        let refuse = |problem: String| {
            Err(LlmError::AddedToken {
                token: token.content.clone(),
                problem,
            })
        };
        let Some(&first) = token.content.as_bytes().first() else {
            return refuse("it is empty".into());
        };
        if let Some(&known) = self.ids.get(&token.content).filter(|k| **k != id) {
            return refuse(format!("it exists with id {known}, not {id}"));
        }
        if let Some(other) = self.by_id.get(&id).filter(|o| o.content != token.content) {
            return refuse(format!("id {id} belongs to `{}`", other.content));
        }
        if self.ids.insert(token.content.clone(), id).is_none() {
            let list = self.by_first_byte.entry(first).or_default();
            list.push(token.content.clone());
            list.sort_by_key(|s| std::cmp::Reverse(s.len()));
        }
        self.by_id.insert(id, token);
        Ok(())
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub fn max_id(&self) -> Option<u32> {
        self.by_id.keys().copied().max()
    }

    /// Splits `text` at added tokens: the leftmost match, and the longest of those, wins. Empty
    /// segments are left out.
    pub fn split<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut out = Vec::new();
        let (mut start, mut at) = (0, 0);
        let bytes = text.as_bytes();
        while at < bytes.len() {
            let hit = self
                .by_first_byte
                .get(&bytes[at])
                .and_then(|l| l.iter().find(|s| bytes[at..].starts_with(s.as_bytes())))
                .and_then(|s| Some((self.id(s)?, s.len())))
                .and_then(|(id, len)| Some((self.get(id)?, id, len)));
            let Some((token, id, len)) = hit else {
                at += 1;
                continue;
            };
            let (left, right) = (&text[start..at], &text[at + len..]);
            if token.single_word && !stands_alone(left, right) {
                at += len;
                continue;
            }
            let left = if token.lstrip { left.trim_end() } else { left };
            if !left.is_empty() {
                out.push(Segment::Text(left));
            }
            out.push(Segment::Added(id));
            at += len;
            if token.rstrip {
                at += right.len() - right.trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            out.push(Segment::Text(&text[start..]));
        }
        out
    }
}

fn stands_alone(left: &str, right: &str) -> bool {
    (left.is_empty() || left.ends_with(' ')) && (right.is_empty() || right.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(list: &[(AddedToken, u32)]) -> AddedTokens {
        let mut t = AddedTokens::default();
        for (token, id) in list {
            t.insert(token.clone(), *id).unwrap();
        }
        t
    }

    #[test]
    fn longest_leftmost_and_no_stripping() {
        let t = tokens(&[(AddedToken::new("<a>"), 1), (AddedToken::new("<a>b"), 2)]);
        assert_eq!(
            t.split("é <a> x<a>b<a"),
            [
                Segment::Text("é "),
                Segment::Added(1),
                Segment::Text(" x"),
                Segment::Added(2),
                Segment::Text("<a")
            ]
        );
        assert!(t.split("").is_empty());
    }

    #[test]
    fn strip_flags_and_single_word() {
        let strip = AddedToken {
            lstrip: true,
            rstrip: true,
            ..AddedToken::new("<m>")
        };
        let word = AddedToken {
            single_word: true,
            ..AddedToken::new("cat")
        };
        let t = tokens(&[(strip, 7), (word, 8)]);
        assert_eq!(
            t.split("x  <m>  y"),
            [Segment::Text("x"), Segment::Added(7), Segment::Text("y")]
        );
        assert_eq!(t.split("concat"), [Segment::Text("concat")]);
        assert_eq!(t.split("a cat"), [Segment::Text("a "), Segment::Added(8)]);
    }

    #[test]
    fn clashes_are_refused() {
        let mut t = tokens(&[(AddedToken::new("<a>"), 1)]);
        assert!(t.insert(AddedToken::new("<a>"), 2).is_err());
        assert!(t.insert(AddedToken::new("<b>"), 1).is_err());
        assert!(t.insert(AddedToken::new(""), 3).is_err());
        t.insert(AddedToken::special("<a>"), 1).unwrap();
        assert!(t.get(1).unwrap().special);
    }
}
