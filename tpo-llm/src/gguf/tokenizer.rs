//! The tokenizer of a GGUF file as the files of a Hugging Face directory.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tpo_core::weights::GgufFile;

use super::vocabulary::{BYTE, LLAMA_3, NORMAL, Vocabulary};
use crate::error::{LlmError, Result};

/// Longest piece of a sentencepiece vocabulary in bytes, and most bytes of all of them (published ones have
/// a few million). A piece costs the square of its length: the limits keep a hostile file to seconds.
const MAX_PIECE_BYTES: usize = 256;
const MAX_VOCABULARY_BYTES: usize = 8 << 20;

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
        "qwen2" => {
            let steps = vec![split(&words(r"\p{N}")), bytes(false)];
            (sequence(steps), json!({"type": "NFC"}))
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
                    "the pre-tokenizer `{other}` ({KEY}); gpt-2, default, llama-bpe, qwen2 and smollm are \
                     read"
                ),
            ));
        }
    };
    let merges: &[String] = file.need("tokenizer.ggml.merges")?;
    let tokens: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let pairs = merges.iter().enumerate().map(|(at, merge)| {
        let wrong = |why: String| {
            file.error(format!(
                "merge {at} is `{merge}`, {why}; convert the model again"
            ))
        };
        let pair = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let (left, right) =
            pair.ok_or_else(|| wrong("expected two tokens with a space between them".into()))?;
        for token in [left, right, &format!("{left}{right}")] {
            if !tokens.contains(token) {
                return Err(wrong(format!("and there is no token `{token}`")));
            }
        }
        Ok(json!([left, right]))
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
    let bytes: usize = tokens.iter().map(String::len).sum();
    if bytes > MAX_VOCABULARY_BYTES {
        return Err(file
            .error(format!(
                "its tokens have {bytes} bytes together, at most {MAX_VOCABULARY_BYTES} are possible; \
                 convert the model again"
            ))
            .into());
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
