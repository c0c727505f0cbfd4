//! The `tokenizer.json` backend against Hugging Face's `tokenizers`, and reading directories.

mod common;

use std::fs;
use std::path::Path;

use common::{TASK_TOKENS, fixture, fixture_path, ids, streamed, text};
use serde_json::{Value, json};
use tpo_llm::LlmError;
use tpo_llm::chat_template::Message;
use tpo_llm::tokenizer::{AddedToken, EncodeOptions, Tokenizer};

fn load(spec: &Value) -> Tokenizer {
    Tokenizer::from_tokenizer_json_bytes(spec.to_string().as_bytes()).unwrap()
}

#[test]
fn ids_and_text_equal_hugging_face() {
    let f = fixture("tokenizer_json.json");
    for (kind, task_tokens) in [
        ("byte_level", true),
        ("byte_fallback", true),
        ("bert", false),
    ] {
        let f = &f[kind];
        let mut t = load(&f["tokenizer"]);
        if task_tokens {
            let tokens = TASK_TOKENS.map(AddedToken::new);
            let first = t.vocab_size() as u32;
            let got = t.add_tokens(&tokens).unwrap();
            assert_eq!(got, (first..first + 7).collect::<Vec<_>>());
        }
        for case in f["texts"].as_array().unwrap() {
            let input = text(&case["text"]);
            let got = t.encode(input, t.default_options()).unwrap();
            assert_eq!(got, ids(&case["ids"]), "{kind} {input:?}");
            assert_eq!(
                t.encode_segment(input).unwrap(),
                ids(&case["plain"]),
                "{kind} {input:?}"
            );
        }
        for case in f["texts"]
            .as_array()
            .unwrap()
            .iter()
            .chain(f["sequences"].as_array().unwrap())
        {
            let list = ids(&case["ids"]);
            for (skip, want) in [false, true].iter().zip(case["decode"].as_array().unwrap()) {
                assert_eq!(
                    t.decode(&list, *skip).unwrap(),
                    text(want),
                    "{kind} {list:?}"
                );
                assert_eq!(streamed(&t, &list, *skip), text(want), "{kind} {list:?}");
            }
        }
    }
}

#[test]
fn post_processors_decide_bos_and_eos() {
    let f = fixture("tokenizer_json.json");
    let options = |kind: &str| load(&f[kind]["tokenizer"]).default_options();
    let of = |add_bos, add_eos| EncodeOptions {
        add_bos,
        add_eos,
        max_length: None,
    };
    assert_eq!(options("byte_level"), of(false, false));
    assert_eq!(options("byte_fallback"), of(true, false));
    assert_eq!(options("bert"), of(true, true));
    let bert = load(&f["bert"]["tokenizer"]);
    // The file pads to 16; that is switched off.
    let all = bert
        .encode("The man opens the door.", of(true, true))
        .unwrap();
    assert_eq!(all, [2, 4, 5, 7, 8, 4, 6, 10, 3]);
    let cut = EncodeOptions {
        max_length: Some(4),
        ..of(true, true)
    };
    assert_eq!(bert.encode("The man opens", cut).unwrap(), [2, 4, 5, 3]);
    let none = load(&f["byte_level"]["tokenizer"]);
    let error = none.encode("a", of(true, false)).unwrap_err();
    assert!(error.to_string().contains("no BOS"), "{error}");
}

#[test]
fn added_ids_follow_the_vocabulary() {
    let f = fixture("tokenizer_json.json");
    let mut t = load(&f["byte_level"]["tokenizer"]);
    let next = t.vocab_size() as u32;
    let error = t.add_tokens_with_ids([("<x>", next + 5)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("id {next}, not {}", next + 5)),
        "{error}"
    );
    assert_eq!(t.token_to_id("<x>"), None);
    t.add_tokens_with_ids([("<x>", next), ("<|im_end|>", 2)])
        .unwrap();
    assert_eq!(t.encode_segment("a<x>").unwrap()[1], next);
    assert!(t.add_tokens(&[AddedToken::new("")]).is_err());
    // Ids past the vocabulary are left out of the text.
    assert_eq!(t.decode(&[next, 999_999], false).unwrap(), "<x>");
    // A file whose added ids leave a gap would be renumbered silently by `tokenizers`.
    let mut spec = f["byte_level"]["tokenizer"].clone();
    let mut token = spec["added_tokens"][0].clone();
    token["content"] = json!("<gap>");
    token["id"] = json!(next + 9);
    spec["added_tokens"].as_array_mut().unwrap().push(token);
    let error = Tokenizer::from_tokenizer_json_bytes(spec.to_string().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("<gap>"), "{error}");
}

#[test]
fn damaged_files_give_errors() {
    let f = fixture("tokenizer_json.json");
    let spec = &f["byte_fallback"]["tokenizer"];
    let good = spec.to_string();
    let bytes = |b: &[u8]| Tokenizer::from_tokenizer_json_bytes(b);
    let deep = "[".repeat(100_000);
    for bad in [
        "",
        "null",
        "[]",
        "{}",
        "{\"version\":\"9\"}",
        "<html>",
        deep.as_str(),
    ] {
        let error = bytes(bad.as_bytes()).unwrap_err();
        assert!(matches!(error, LlmError::TokenizerFile { .. }), "{error}");
    }
    for at in (1..good.len())
        .filter(|i| good.is_char_boundary(*i))
        .step_by(97)
    {
        assert!(bytes(&good.as_bytes()[..at]).is_err(), "cut at {at}");
    }
    let mut merges = spec.clone();
    merges["model"]["merges"] = json!([["not there", "neither"]]);
    assert!(bytes(merges.to_string().as_bytes()).is_err());
    let mut kind = spec.clone();
    kind["model"]["type"] = json!("Telepathy");
    assert!(bytes(kind.to_string().as_bytes()).is_err());
}

fn write(dir: &Path, name: &str, value: &Value) {
    fs::write(dir.join(name), value.to_string()).unwrap();
}

#[test]
fn directory_with_sentencepiece() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::copy(
        fixture_path("mistral_v1/tokenizer.model"),
        d.join("tokenizer.model"),
    )
    .unwrap();
    // As VideoChat-TPO's directory: added_tokens.json, special_tokens_map.json.
    let added: serde_json::Map<_, _> = TASK_TOKENS
        .iter()
        .zip(32000..)
        .map(|(t, id)| (t.to_string(), json!(id)))
        .collect();
    write(d, "added_tokens.json", &Value::Object(added));
    write(
        d,
        "special_tokens_map.json",
        &json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false},
                "unk_token": "<unk>", "pad_token": "<unk>"}),
    );
    write(
        d,
        "tokenizer_config.json",
        &json!({"add_bos_token": true, "legacy": true}),
    );
    let t = Tokenizer::from_dir(d).unwrap();
    let f = fixture("reference_tokenizer.json");
    for case in f["plain"].as_array().unwrap() {
        let got = t.encode(text(&case["text"]), t.default_options()).unwrap();
        assert_eq!(got, ids(&case["ids"]));
    }
    assert_eq!((t.pad_id(), t.vocab_size()), (Some(0), 32007));
    assert!(t.chat_template().unwrap().is_none());
    assert!(matches!(
        t.apply_chat_template(&[Message::user("a")], true),
        Err(LlmError::ChatTemplate { .. })
    ));

    // Switches, the other legacy setting, a new pad token, a template list, several EOS.
    fs::remove_file(d.join("special_tokens_map.json")).unwrap();
    fs::remove_file(d.join("added_tokens.json")).unwrap();
    let entry = |c: &str, special: bool| {
        json!({"content": c, "lstrip": false, "normalized": true, "rstrip": false,
               "single_word": false, "special": special})
    };
    write(
        d,
        "tokenizer_config.json",
        &json!({
            "add_bos_token": false, "add_eos_token": true, "legacy": false,
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": null,
            "added_tokens_decoder": {"32000": entry("[PAD]", true), "32001": entry("<temp>", false)},
            "chat_template": [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}
            ],
        }),
    );
    write(
        d,
        "generation_config.json",
        &json!({"eos_token_id": [13, 2]}),
    );
    let t = Tokenizer::from_dir(d).unwrap();
    assert_eq!(t.encode("a", t.default_options()).unwrap(), [264, 2]);
    assert_eq!(t.encode_segment("x<temp>a").unwrap(), [1318, 32001, 28708]);
    assert_eq!(
        (t.pad_id(), t.is_special(32000), t.is_special(32001)),
        (Some(32000), true, false)
    );
    assert_eq!(t.eos_ids(), [13, 2]);
    assert_eq!(
        t.apply_chat_template(&[Message::user("hi")], true).unwrap(),
        "<s>hi"
    );
}

#[test]
fn directory_with_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let f = fixture("tokenizer_json.json");
    write(d, "tokenizer.json", &f["byte_level"]["tokenizer"]);
    fs::copy(
        fixture_path("mistral_v1/tokenizer.model"),
        d.join("tokenizer.model"),
    )
    .unwrap();
    write(
        d,
        "tokenizer_config.json",
        &json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>", "chat_template": "from the config"}),
    );
    let t = Tokenizer::from_dir(d).unwrap();
    assert_eq!(
        (t.bos_id(), t.eos_id(), t.pad_id()),
        (Some(1), Some(2), Some(0))
    );
    let rendered = t.apply_chat_template(&[], false).unwrap();
    assert_eq!(rendered, "from the config");
    // BOS exists but is not put in front by default, as with SmolLM2.
    assert!(!t.default_options().add_bos);
    use tpo_core::prompt::TextEncoder;
    assert_eq!(t.encode_with_bos("").unwrap(), [0; 0]);
    let bos = EncodeOptions {
        add_bos: true,
        ..EncodeOptions::default()
    };
    assert_eq!(t.encode("", bos).unwrap(), [1]);

    fs::write(d.join("chat_template.jinja"), "from the file").unwrap();
    let t = Tokenizer::from_dir(d).unwrap();
    assert_eq!(t.apply_chat_template(&[], false).unwrap(), "from the file");
    let sp = Tokenizer::from_sentencepiece_dir(d);
    // <|im_start|> and the other two become new tokens of the sentencepiece model.
    assert_eq!(sp.unwrap().vocab_size(), 32003);
}

#[test]
fn directories_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let error = Tokenizer::from_dir(d).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither tokenizer.json nor tokenizer.model"),
        "{error}"
    );
    assert!(Tokenizer::from_dir(d.join("missing")).is_err());
    assert!(Tokenizer::from_sentencepiece_dir(d).is_err());
    assert!(matches!(
        Tokenizer::from_sentencepiece(d.join("x.model"), Default::default()),
        Err(LlmError::Io { .. })
    ));

    let f = fixture("tokenizer_json.json");
    write(d, "tokenizer.json", &f["byte_level"]["tokenizer"]);
    assert!(Tokenizer::from_dir(d).is_ok());
    for (name, content) in [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", r#"{"bos_token": 7}"#),
        ("tokenizer_config.json", r#"{"bos_token": "<not there>"}"#),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#,
        ),
        ("special_tokens_map.json", "[]"),
        ("added_tokens.json", r#"{"a": -1}"#),
        ("generation_config.json", r#"{"eos_token_id": "two"}"#),
    ] {
        fs::write(d.join(name), content).unwrap();
        let error = Tokenizer::from_dir(d).unwrap_err();
        assert!(
            matches!(error, LlmError::TokenizerFile { .. }),
            "{content}: {error}"
        );
        fs::remove_file(d.join(name)).unwrap();
    }
    fs::write(d.join("chat_template.jinja"), "{% for %}").unwrap();
    // Only who lays out a conversation needs it.
    let error = Tokenizer::from_dir(d).unwrap().chat_template().unwrap_err();
    assert!(matches!(error, LlmError::ChatTemplate { .. }), "{error}");
}
