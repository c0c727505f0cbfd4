//! The tokens of a GGUF file, and what is around the model of every `tokenizer.json`.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use serde_json::{Value, json};
use tpo_core::weights::GgufFile;

use crate::error::Result;

/// Kinds of tokens (`tokenizer.ggml.token_type`).
pub(super) const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;
/// All of them.
const KINDS: RangeInclusive<i64> = NORMAL..=BYTE;

/// Tokens that end an answer in published chat templates. Files made before `eot_token_id` was
/// written do not say so.
const ENDS: [&str; 2] = ["<|im_end|>", "<|eot_id|>"];

/// Names of Llama 3's pre-tokenizer.
pub(super) const LLAMA_3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// The id of a special token, if the file has one.
fn token_id(file: &GgufFile, tokens: &[String], name: &str) -> Result<Option<usize>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.get::<u64>(&key)? else {
        return Ok(None);
    };
    let known = usize::try_from(id).ok().filter(|id| *id < tokens.len());
    known.map(Some).ok_or_else(|| {
        file.error(format!(
            "`{key}` is {id} and there are {} tokens; correct it with gguf-set-metadata",
            tokens.len()
        ))
        .into()
    })
}

/// Tokens with their kinds, and what the file says of the special ones.
pub(super) struct Vocabulary<'a> {
    pub model: &'a str,
    pub tokens: &'a [String],
    pub kinds: &'a [i64],
    pub bos: Option<usize>,
    pub eos: Option<usize>,
    pub unk: Option<usize>,
    pub pad: Option<usize>,
    pub add_bos: bool,
    pub add_eos: bool,
}

impl<'a> Vocabulary<'a> {
    pub fn read(file: &'a GgufFile, rows: usize) -> Result<Self> {
        let model: &str = file.need("tokenizer.ggml.model")?;
        let mut tokens: &[String] = file.need("tokenizer.ggml.tokens")?;
        let kinds: &[i64] = file.need("tokenizer.ggml.token_type")?;
        let damaged = |why: String| Err(file.error(why).into());
        if tokens.len() > rows || tokens.is_empty() {
            return damaged(format!(
                "it has {} tokens and embeddings of {rows}; convert the model again",
                tokens.len()
            ));
        }
        if kinds.len() != tokens.len() {
            return damaged(format!(
                "it has {} tokens and the kinds of {}; convert the model again",
                tokens.len(),
                kinds.len()
            ));
        }
        if let Some(id) = kinds.iter().position(|kind| !KINDS.contains(kind)) {
            return damaged(format!(
                "`tokenizer.ggml.token_type` of token {id} is {}, expected {} to {}; convert the model \
                 again",
                kinds[id],
                KINDS.start(),
                KINDS.end()
            ));
        }
        // Rows of the embeddings that no token has got names of this form; new tokens may take them.
        while let [before @ .., last] = tokens
            && kinds[before.len()] == UNUSED
            && *last == format!("[PAD{}]", before.len())
        {
            tokens = before;
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() {
                return damaged(format!("token {id} is empty; convert the model again"));
            }
            if let Some(first) = ids.insert(token, id) {
                return damaged(format!(
                    "tokens {first} and {id} are both `{token}`; convert the model again"
                ));
            }
        }
        // What sentencepiece models of Llama have, if the file does not say.
        let usual = |id: usize| (model == "llama" && id < tokens.len()).then_some(id);
        let bos = token_id(file, tokens, "bos")?.or(usual(1));
        let eos = token_id(file, tokens, "eos")?.or(usual(2));
        let unk = token_id(file, tokens, "unknown")?.or(usual(0));
        let pad = token_id(file, tokens, "padding")?;
        let pre = file.get::<&str>("tokenizer.ggml.pre")?;
        let adds = model == "llama" || pre.is_some_and(|pre| LLAMA_3.contains(&pre));
        let add_bos = file.get("tokenizer.ggml.add_bos_token")?.unwrap_or(adds);
        let add_eos = file.get("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        for (add, id, name) in [(add_bos, bos, "bos"), (add_eos, eos, "eos")] {
            if add && id.is_none() {
                return damaged(format!(
                    "it says that the token `{name}` is added to texts and lacks \
                     `tokenizer.ggml.{name}_token_id`; add it (gguf-new-metadata)"
                ));
            }
        }
        Ok(Self {
            model,
            tokens,
            kinds: &kinds[..tokens.len()],
            bos,
            eos,
            unk,
            pad,
            add_bos,
            add_eos,
        })
    }

    /// Ids that end an answer.
    pub fn ends(&self, file: &GgufFile) -> Result<Vec<usize>> {
        let mut ends: Vec<usize> = self.eos.into_iter().collect();
        for name in ["eot", "eom"] {
            ends.extend(token_id(file, self.tokens, name)?);
        }
        let control = |id: &usize| self.kinds[*id] == CONTROL;
        let named = (0..self.tokens.len()).filter(control);
        ends.extend(named.filter(|id| ENDS.contains(&self.tokens[*id].as_str())));
        let mut seen = HashSet::new();
        ends.retain(|id| seen.insert(*id));
        Ok(ends)
    }

    /// `vocab` of a model in `tokenizer.json`.
    fn vocab(&self) -> Value {
        let ids = self.tokens.iter().cloned().zip((0..).map(Value::from));
        Value::Object(ids.collect())
    }

    /// `added_tokens`: those that are found in the text before it is cut into words.
    fn added(&self) -> Value {
        let added = self.tokens.iter().zip(self.kinds).enumerate();
        let added = added.filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        added
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED,
                })
            })
            .collect()
    }

    /// `post_processor`: tokens around a text.
    fn post_processor(&self) -> Value {
        let around = [(self.add_bos, self.bos), (self.add_eos, self.eos)]
            .map(|(add, id)| id.filter(|_| add).map(|id| (id, &self.tokens[id])));
        let [before, after] = &around;
        if before.is_none() && after.is_none() {
            return Value::Null;
        }
        let special =
            |(_, token): &(usize, &String)| json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let frame = |texts: &[&str]| -> Vec<Value> {
            let framed = texts.iter().flat_map(|name| {
                let (before, after) = (before.as_ref().map(special), after.as_ref().map(special));
                before.into_iter().chain([text(name)]).chain(after)
            });
            framed.collect()
        };
        let tokens = around.iter().flatten().map(|(id, token)| {
            (
                token.to_string(),
                json!({"id": token, "ids": [id], "tokens": [token]}),
            )
        });
        json!({
            "type": "TemplateProcessing",
            "single": frame(&["A"]),
            "pair": frame(&["A", "B"]),
            "special_tokens": Value::Object(tokens.collect()),
        })
    }

    /// A `tokenizer.json` with this model and what is around it.
    pub fn tokenizer(
        &self,
        normalizer: Value,
        words: Value,
        decoder: Value,
        model: Value,
    ) -> Value {
        let mut whole = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": self.post_processor(),
            "decoder": decoder,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": self.vocab(),
            },
        });
        if let (Value::Object(fields), Value::Object(own)) = (&mut whole["model"], model) {
            fields.extend(own);
        }
        whole
    }
}
