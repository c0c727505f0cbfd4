//! Fixtures shared by the tests of this crate's tokenizer side.

use std::path::PathBuf;

use serde_json::Value;
use tpo_llm::tokenizer::{SentencePieceOptions, Tokenizer};

pub const TASK_TOKENS: [&str; 7] = [
    "<box_begin>",
    "<time_begin>",
    "<temp>",
    "<boxes>",
    "<track_begin>",
    "<tracking>",
    "<track_box>",
];

pub fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

#[allow(dead_code)]
pub fn fixture(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture_path(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Mistral v1 with VideoChat-TPO's added tokens.
#[allow(dead_code)]
pub fn videochat_tpo(legacy: bool) -> Tokenizer {
    let path = fixture_path("mistral_v1/tokenizer.model");
    let mut t = Tokenizer::from_sentencepiece(path, SentencePieceOptions { legacy }).unwrap();
    t.add_tokens_with_ids(TASK_TOKENS.into_iter().zip(32000..))
        .unwrap();
    t
}

#[allow(dead_code)]
pub fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[allow(dead_code)]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Decodes one id at a time and checks what [`tpo_llm::tokenizer::DecodeStream`] promises.
#[allow(dead_code)]
pub fn streamed(t: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = t.decode_stream(skip_special);
    let mut out = String::new();
    for &id in ids {
        out.push_str(&stream.push(id).unwrap());
    }
    out + &stream.finish().unwrap()
}
