//! Ids and text.

use sentencepiece_model::SentencePieceModel;
use serde_json::{Value, json};
use tpo_llm::chat_template::Message;
use tpo_llm::tokenizer::Tokenizer;

use crate::common::{TASK_TOKENS, fixture, fixture_path, ids, text};
use crate::gguf_bytes::Gguf;
use crate::models::{ROWS, TYPES, header, model, opened, refused};

/// Texts on which tokenizers differ.
const TEXTS: [&str; 24] = [
    "",
    " ",
    "the man opens the door",
    "  two leading spaces,\ttab\n\nnewlines ",
    "trailing   \n\n  \n",
    "\r\n\r\n \r\n",
    "1234567890 3.14159 -42 1,000,000 12abc34",
    "٣٤٥ ५६७ ②③ Ⅷ½",
    "don't you'll I'M WE'VE it'S 'twas",
    "Ünïcödé naïve café — “quotes” …",
    "e\u{301}a\u{308} ﬁ Å",
    "你好,世界! 日本語の文。 한국어",
    "🎬🚀👨\u{200d}👩\u{200d}👧 مرحبا שלום",
    "a<|im_start|>b <|im_end|>\n<|im_start|>",
    "<|im_start|><|im_start|> <|endoftext|>",
    "<s> [INST] hi [/INST] </s> <unk>",
    "snake_case CamelCase kebab-case a/b\\c",
    "x = {\"a\": [1, 2.5e-3]}; // comment",
    "$100 + 20% = #5 & ^~|<>",
    "\u{a0}no\u{2003}break\u{3000}space\u{200b}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{1}\u{7f}\u{fffd}\u{e000}",
    "mixed123text456with789numbers",
    "ends with an apostrophe'",
];

/// The pre-tokenizers of published `tokenizer.json` files, and their normalizers.
fn published() -> [(&'static str, Value, Value, bool); 4] {
    let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        ("gpt-2", byte_level(true), Value::Null, false),
        (
            "smollm",
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}),
            Value::Null,
            false,
        ),
        (
            "llama-bpe",
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Value::Null,
            true,
        ),
        (
            "qwen2",
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            json!({"type": "NFC"}),
            false,
        ),
    ]
}

#[test]
fn byte_level_ids_are_those_of_published_tokenizers() {
    let mut tokenizer = fixture("tokenizer_json.json")["byte_level"]["tokenizer"].clone();
    let (file, _) = model("qwen2", TYPES[0]);
    for (pre, words, normalizer, ignore_merges) in published() {
        tokenizer["pre_tokenizer"] = words;
        tokenizer["normalizer"] = normalizer;
        tokenizer["model"]["ignore_merges"] = ignore_merges.into();
        let theirs =
            Tokenizer::from_tokenizer_json_bytes(tokenizer.to_string().as_bytes()).unwrap();
        let ours = opened(&file.clone().text("tokenizer.ggml.pre", pre))
            .unwrap()
            .tokenizer()
            .unwrap();
        for sample in TEXTS {
            let found = ours.encode_segment(sample).unwrap();
            assert_eq!(
                found,
                theirs.encode_segment(sample).unwrap(),
                "{pre} {sample:?}"
            );
            for skip in [true, false] {
                let decoded = ours.decode(&found, skip).unwrap();
                assert_eq!(
                    decoded,
                    theirs.decode(&found, skip).unwrap(),
                    "{pre} {sample:?}"
                );
            }
        }
        let bos = ours.encode("a", ours.default_options()).unwrap();
        assert_eq!(bos[0] == 0, pre == "llama-bpe", "{pre}");
    }
    // Numbers in threes from the left, as llama.cpp's own default has them.
    let default = opened(&file.clone().text("tokenizer.ggml.pre", "default")).unwrap();
    assert!(
        !default
            .tokenizer()
            .unwrap()
            .encode_segment("12345 a")
            .unwrap()
            .is_empty()
    );
    refused(
        &file.clone().text("tokenizer.ggml.pre", "tekken"),
        &["`tekken`", "qwen2", "smollm"],
    );
    refused(
        &file.clone().without("tokenizer.ggml.pre"),
        &["gguf-new-metadata --pre-tokenizer"],
    );
    refused(
        &file.clone().text("tokenizer.ggml.model", "bert"),
        &["`bert`", "gpt2", "llama"],
    );
    refused(
        &file.clone().u32("tokenizer.ggml.eos_token_id", 9999),
        &["eos_token_id", "9999"],
    );
    refused(
        &file.clone().i32s("tokenizer.ggml.token_type", &[1]),
        &["kinds of 1"],
    );
    refused(
        &file.clone().texts("tokenizer.ggml.merges", &["ab"]),
        &["merge 0 is `ab`"],
    );
    for (merge, lacks) in [("t zzz", "no token `zzz`"), ("t !", "no token `t!`")] {
        refused(
            &file.clone().texts("tokenizer.ggml.merges", &[merge]),
            &["merge 0", lacks],
        );
    }
    for kind in [-1, 0, 7] {
        let mut kinds = [1; ROWS];
        kinds[5] = kind;
        refused(
            &file.clone().i32s("tokenizer.ggml.token_type", &kinds),
            &["token_type", "token 5", &format!("is {kind},")],
        );
    }
    let twice = file
        .clone()
        .texts("tokenizer.ggml.tokens", &["a", "a"])
        .i32s("tokenizer.ggml.token_type", &[1, 1]);
    refused(&twice, &["tokens 0 and 1 are both `a`"]);
    let many = vec!["x"; ROWS + 1];
    refused(&file.texts("tokenizer.ggml.tokens", &many), &["449 tokens"]);
}

/// Mistral's own vocabulary in a GGUF file of a model that is small otherwise.
fn mistral() -> Gguf {
    let bytes = std::fs::read(fixture_path("mistral_v1/tokenizer.model")).unwrap();
    let model = SentencePieceModel::from_slice(&bytes).unwrap();
    let pieces = model.pieces();
    let tokens: Vec<&str> = pieces.iter().map(|p| p.piece()).collect();
    let kinds: Vec<i32> = pieces.iter().map(|p| p.r#type() as i32).collect();
    let scores: Vec<f32> = pieces.iter().map(|p| p.score()).collect();
    let embeddings = vec![0; pieces.len() * 32 / 32 * 34];
    header("llama")
        .without("tokenizer.ggml.merges")
        .without("tokenizer.ggml.pre")
        .u32("llama.embedding_length", 32)
        .u32("llama.attention.head_count", 2)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .text(
            "tokenizer.chat_template",
            "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
        )
        .tensor("token_embd.weight", &[pieces.len(), 32], 8, embeddings)
}

/// A template that does not compile stops conversations, not text as it is.
#[test]
fn a_broken_chat_template_is_an_error_where_it_is_used() {
    let (file, _) = model("qwen2", TYPES[0]);
    let tokenizer = |file: &Gguf| opened(file).unwrap().tokenizer().unwrap();
    for (file, parts) in [
        (
            file.clone().text("tokenizer.chat_template", "{% if %}"),
            ["model.gguf", "line 1", ""],
        ),
        (
            file.without("tokenizer.chat_template"),
            ["model.gguf", "no chat template", "--raw"],
        ),
    ] {
        let tokenizer = tokenizer(&file);
        assert!(!tokenizer.encode_segment("door").unwrap().is_empty());
        let said = tokenizer.apply_chat_template(&[Message::user("door")], true);
        let said = said.unwrap_err().to_string();
        for part in parts {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
    }
}

#[test]
fn mistrals_ids_are_those_of_transformers() {
    let model = opened(&mistral()).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.vocab_size(), 32000);
    assert_eq!(tokenizer.eos_ids(), [2]);
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in model.tokenizer_files() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let again = Tokenizer::from_dir(dir.path()).unwrap();
    let prompt = again
        .apply_chat_template(&[Message::new("user", "Hi")], true)
        .unwrap();
    assert_eq!(prompt, "<s>[INST] Hi [/INST]");
    let cases = fixture("llama_slow.json");
    let mut compared = 0;
    for case in cases["texts"].as_array().unwrap() {
        // The fixture's tokenizer has task tokens, this one has not.
        if TASK_TOKENS.iter().any(|t| text(&case["text"]).contains(t)) {
            continue;
        }
        compared += 1;
        let sample = text(&case["text"]);
        let expected = ids(&case["legacy"]["ids"]);
        let found = tokenizer
            .encode(sample, tokenizer.default_options())
            .unwrap();
        assert_eq!(found, expected, "{sample:?}");
        assert_eq!(
            again.encode(sample, again.default_options()).unwrap(),
            expected
        );
    }
    assert!(compared > 50, "{compared}");
    let slow = Tokenizer::from_sentencepiece(
        fixture_path("mistral_v1/tokenizer.model"),
        Default::default(),
    )
    .unwrap();
    for sample in TEXTS {
        let expected = slow.encode_segment(sample).unwrap();
        assert_eq!(
            tokenizer.encode_segment(sample).unwrap(),
            expected,
            "{sample:?}"
        );
    }
    refused(
        &mistral().without("tokenizer.ggml.scores"),
        &["tokenizer.ggml.scores"],
    );
    refused(
        &mistral().f32s("tokenizer.ggml.scores", &[f32::NAN; 32000]),
        &["finite"],
    );
    // Pieces whose length would cost minutes.
    let long = |count: usize, bytes: usize| {
        let tokens: Vec<String> = (0..count).map(|id| format!("{id:0>bytes$}")).collect();
        mistral()
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &vec![1; count])
            .f32s("tokenizer.ggml.scores", &vec![0.0; count])
    };
    refused(
        &long(16, 257),
        &["token 0 has 257 bytes, at most 256 are possible"],
    );
    refused(
        &long(32_000, 300),
        &["9600000 bytes together, at most 8388608 are possible"],
    );
}
