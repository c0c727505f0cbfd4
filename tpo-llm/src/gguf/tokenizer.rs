//! The tokenizer of a GGUF file as the files of a Hugging Face directory.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tpo_core::weights::GgufFile;

use crate::error::{LlmError, Result};

/// Kinds of tokens (`tokenizer.ggml.token_type`).
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Longest piece of a sentencepiece vocabulary in bytes; the limit keeps a hostile file from costing
/// quadratic time.
const MAX_PIECE_BYTES: usize = 256;

/// Tokens that end an answer in published chat templates. Files made before `eot_token_id` was
/// written do not say so.
const ENDS: [&str; 2] = ["<|im_end|>", "<|eot_id|>"];

/// The pattern of Llama 3's and Qwen2's words, with how many digits a number takes.
fn words(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The patterns that llama.cpp splits text by when a file names `default`, one after the other.
const DEFAULT_WORDS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`. `rows` are those of the
/// embeddings.
pub(super) fn files(file: &GgufFile, rows: usize) -> Result<Vec<(String, Vec<u8>)>> {
    let vocabulary = Vocabulary::read(file, rows)?;
    let tokenizer = match vocabulary.model {
        "gpt2" => byte_level(file, &vocabulary)?,
        "llama" => sentencepiece(file, &vocabulary)?,
        other => {
            return Err(unsupported(
                file,
                format!(
                    "the tokenizer `{other}` (tokenizer.ggml.model); `gpt2` (byte-level BPE) and \
                     `llama` (sentencepiece BPE) are read"
                ),
            ));
        }
    };
    let name = |id: Option<usize>| id.map(|id| &vocabulary.tokens[id]);
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "bos_token": name(vocabulary.bos),
        "eos_token": name(vocabulary.eos),
        "unk_token": name(vocabulary.unk),
        "pad_token": name(vocabulary.pad),
        "chat_template": file.get::<&str>("tokenizer.chat_template")?,
    });
    let generation = json!({
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.ends(file)?,
        "pad_token_id": vocabulary.pad,
    });
    let files = [
        ("tokenizer.json", tokenizer.to_string()),
        ("tokenizer_config.json", pretty(config)),
        ("generation_config.json", pretty(generation)),
    ];
    Ok(files
        .into_iter()
        .map(|(name, text)| (name.to_string(), text.into_bytes()))
        .collect())
}

/// Without the keys that have no value, on several lines.
fn pretty(mut value: Value) -> String {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    format!("{value:#}\n")
}

fn unsupported(file: &GgufFile, what: String) -> LlmError {
    LlmError::Unsupported {
        what: format!("{}: {what}", file.path().display()),
    }
}

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
struct Vocabulary<'a> {
    model: &'a str,
    tokens: &'a [String],
    kinds: &'a [i64],
    bos: Option<usize>,
    eos: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
    add_bos: bool,
    add_eos: bool,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile, rows: usize) -> Result<Self> {
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
    fn ends(&self, file: &GgufFile) -> Result<Vec<usize>> {
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
    fn tokenizer(&self, normalizer: Value, words: Value, decoder: Value, model: Value) -> Value {
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

/// Names of Llama 3's pre-tokenizer.
const LLAMA_3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// Byte-level BPE: Llama 3, Qwen2, SmolLM, GPT-2.
fn byte_level(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    const KEY: &str = "tokenizer.ggml.pre";
    let pre = file.get::<&str>(KEY)?.ok_or_else(|| {
        file.error(format!(
            "its metadata lacks `{KEY}`, and words are cut differently by every model; convert the \
             model again, or add it: gguf-new-metadata --pre-tokenizer qwen2 IN.gguf OUT.gguf \
             (or llama-bpe, smollm, gpt-2)"
        ))
    })?;
    let bytes = |cuts_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts_words});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let (words, normalizer) = match pre {
        "gpt-2" => (bytes(true), Value::Null),
        "smollm" => (sequence(vec![digits, bytes(true)]), Value::Null),
        pre if LLAMA_3.contains(&pre) => {
            let steps = vec![split(&words(r"\p{N}{1,3}")), bytes(false)];
            (sequence(steps), Value::Null)
        }
        "qwen2" | "deepseek-r1-qwen" => {
            let steps = vec![split(&words(r"\p{N}")), bytes(false)];
            // DeepSeek's distillations of Qwen leave the text as it is.
            let normalizer = match pre {
                "qwen2" => json!({"type": "NFC"}),
                _ => Value::Null,
            };
            (sequence(steps), normalizer)
        }
        "default" => {
            let steps = DEFAULT_WORDS.iter().map(|pattern| split(pattern));
            let steps = steps.chain([bytes(false)]).collect();
            (sequence(steps), Value::Null)
        }
        other => {
            return Err(unsupported(
                file,
                format!(
                    "the pre-tokenizer `{other}` ({KEY}); gpt-2, default, llama-bpe, qwen2, \
                     deepseek-r1-qwen and smollm are read"
                ),
            ));
        }
    };
    let merges: &[String] = file.need("tokenizer.ggml.merges")?;
    let pairs = merges.iter().enumerate().map(|(at, merge)| {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            !left.is_empty() && !right.is_empty() && !right.contains(' ')
        });
        pair.map(|(left, right)| json!([left, right])).ok_or_else(|| {
            file.error(format!(
                "merge {at} is `{merge}`, expected two tokens with a space between them; convert the \
                 model again"
            ))
        })
    });
    let pairs = pairs.collect::<std::result::Result<Vec<_>, _>>()?;
    let model = json!({
        "merges": pairs,
        "ignore_merges": LLAMA_3.contains(&pre),
    });
    Ok(vocabulary.tokenizer(normalizer, words, bytes(true), model))
}

/// Sentencepiece BPE with bytes for what it lacks: Llama 2 and Mistral.
fn sentencepiece(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores: &[f64] = file.need(SCORES)?;
    let (tokens, kinds) = (vocabulary.tokens, vocabulary.kinds);
    if scores.len() < tokens.len() || scores.iter().any(|score| !score.is_finite()) {
        return Err(file
            .error(format!(
                "`{SCORES}`: expected {} finite numbers, one for each token; convert the model again",
                tokens.len()
            ))
            .into());
    }
    if file.get::<bool>("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        return Err(unsupported(
            file,
            "a sentencepiece tokenizer that removes spaces".into(),
        ));
    }
    let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    // Every way to put a piece together of two, the likeliest piece first.
    let mut merges = Vec::new();
    for (id, piece) in tokens.iter().enumerate() {
        if kinds[id] != NORMAL {
            continue;
        }
        if piece.len() > MAX_PIECE_BYTES {
            return Err(file
                .error(format!(
                    "token {id} has {} bytes, at most {MAX_PIECE_BYTES} are possible; convert the model \
                     again",
                    piece.len()
                ))
                .into());
        }
        let mut ways: Vec<(usize, usize)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = piece.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?))
            })
            .collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|way| (scores[id], way)));
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let merges: Vec<Value> = merges
        .into_iter()
        .map(|(_, (left, right))| json!([tokens[left], tokens[right]]))
        .collect();

    let prefix = file.get("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mark = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![mark(" ", "▁")];
    let mut decoders = vec![
        mark("▁", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "merges": merges,
        "unk_token": vocabulary.unk.map(|id| &tokens[id]),
        "fuse_unk": true,
        "byte_fallback": kinds.contains(&BYTE),
    });
    Ok(vocabulary.tokenizer(
        json!({"type": "Sequence", "normalizers": normalizers}),
        Value::Null,
        json!({"type": "Sequence", "decoders": decoders}),
        model,
    ))
}
