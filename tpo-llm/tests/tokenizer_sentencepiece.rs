//! The sentencepiece backend against the reference implementation and Hugging Face's slow
//! tokenizer.

mod common;

use common::{fixture, fixture_path, ids, streamed, text, videochat_tpo};
use tpo_core::prompt::Visual;
use tpo_data::prompts::videochat::{QuestionPrompt, encode_with_placeholders};
use tpo_llm::LlmError;
use tpo_llm::tokenizer::{AddedToken, EncodeOptions, SentencePieceOptions, Tokenizer};

const BOS: EncodeOptions = EncodeOptions {
    add_bos: true,
    add_eos: false,
    max_length: None,
};

#[test]
fn reference_plain_and_decode() {
    let (t, f) = (videochat_tpo(true), fixture("reference_tokenizer.json"));
    assert_eq!(t.default_options(), BOS);
    let plain = f["plain"].as_array().unwrap();
    assert_eq!(plain.len(), 25);
    for case in plain {
        let got = t.encode(text(&case["text"]), BOS).unwrap();
        assert_eq!(got, ids(&case["ids"]), "{case}");
    }
    let decode = f["decode"].as_array().unwrap();
    assert_eq!(decode.len(), 25);
    for case in decode {
        let list = ids(&case["ids"]);
        for (skip, key) in [(false, "text"), (true, "text_skip_special")] {
            assert_eq!(t.decode(&list, skip).unwrap(), text(&case[key]), "{case}");
            assert_eq!(streamed(&t, &list, skip), text(&case[key]), "{case}");
        }
    }
}

#[test]
fn reference_prompts() {
    let (t, f) = (videochat_tpo(true), fixture("reference_tokenizer.json"));
    let n_query = f["n_query"].as_u64().unwrap() as usize;
    let index = |v: &serde_json::Value| ids(v).into_iter().map(|i| i == 1).collect::<Vec<_>>();
    let prepare = f["prepare"].as_array().unwrap();
    assert_eq!(prepare.len(), 60);
    for case in prepare {
        let got = encode_with_placeholders(text(&case["text"]), n_query, &t).unwrap();
        assert_eq!(got.ids, ids(&case["ids"]), "{}", case["text"]);
        assert_eq!(got.visual, index(&case["index"]), "{}", case["text"]);
    }
    let qa = f["process_qa"].as_array().unwrap();
    assert_eq!(qa.len(), 34);
    for case in qa {
        let visual = match text(&case["media"]) {
            "video" => Visual::Video,
            _ => Visual::Image,
        };
        let prompt = QuestionPrompt::new(visual, text(&case["msg"]), text(&case["text"]));
        assert_eq!(prompt.text(), text(&case["full_text"]));
        let got = prompt.encode(n_query, &t).unwrap();
        assert_eq!(got.ids, ids(&case["ids"]), "{}", case["text"]);
        assert_eq!(got.visual, index(&case["index"]), "{}", case["text"]);
    }
}

#[test]
fn internvideo2_clip_conventions() {
    let (t, f) = (
        videochat_tpo(false),
        fixture("internvideo2_clip_tokenizer.json"),
    );
    let options = EncodeOptions {
        add_bos: true,
        add_eos: true,
        max_length: Some(80),
    };
    let cases = f["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let query = format!("{}{}", text(&f["prefix"]), text(&case["text"]));
        let mut got = t.encode(&query, options).unwrap();
        got.resize(80, 0);
        assert_eq!(got, ids(&case["ids"]), "{case}");
    }
}

/// Random texts and id sequences, whole and streamed, in both `legacy` settings.
#[test]
fn slow_llama_tokenizer() {
    let f = fixture("llama_slow.json");
    for (legacy, key) in [(true, "legacy"), (false, "modern")] {
        let t = videochat_tpo(legacy);
        let texts = f["texts"].as_array().unwrap();
        assert_eq!(texts.len(), 400);
        for case in texts {
            let got = t.encode(text(&case["text"]), BOS).unwrap();
            assert_eq!(got, ids(&case[key]["ids"]), "{key} {}", case["text"]);
            for (skip, want) in [false, true]
                .iter()
                .zip(case[key]["decode"].as_array().unwrap())
            {
                assert_eq!(t.decode(&got, *skip).unwrap(), text(want), "{key} {got:?}");
                assert_eq!(streamed(&t, &got, *skip), text(want), "{key} {got:?}");
            }
        }
        let sequences = f["sequences"].as_array().unwrap();
        assert_eq!(sequences.len(), 400);
        for case in sequences {
            let list = ids(&case["ids"]);
            for (skip, want) in [false, true].iter().zip(case[key].as_array().unwrap()) {
                assert_eq!(
                    t.decode(&list, *skip).unwrap(),
                    text(want),
                    "{key} {list:?}"
                );
                assert_eq!(streamed(&t, &list, *skip), text(want), "{key} {list:?}");
            }
        }
    }
}

#[test]
fn each_stretch_gets_its_own_prefix() {
    let t = videochat_tpo(true);
    let pieces: Vec<String> = t
        .encode_segment("a <temp> b")
        .unwrap()
        .iter()
        .map(|i| t.id_to_token(*i).unwrap())
        .collect();
    assert_eq!(pieces, ["▁a", "▁", "<temp>", "▁", "▁b"]);
}

#[test]
fn vocabulary_and_special_ids() {
    let t = videochat_tpo(true);
    assert_eq!(t.vocab_size(), 32007);
    assert_eq!(
        (t.bos_id(), t.eos_id(), t.unk_id(), t.pad_id()),
        (Some(1), Some(2), Some(0), None)
    );
    assert_eq!(t.eos_ids(), [2]);
    assert_eq!(t.token_to_id("<track_box>"), Some(32006));
    assert_eq!(t.token_to_id("nothing like this"), None);
    assert_eq!(t.id_to_token(32007), None);
    for id in 0..32007 {
        assert_eq!(t.token_to_id(&t.id_to_token(id).unwrap()), Some(id));
    }
    assert!(t.is_special(1) && t.is_special(0) && !t.is_special(32000) && !t.is_special(5));
}

#[test]
fn added_tokens() {
    let mut t = videochat_tpo(true);
    // Existing tokens keep their ids; new ones follow.
    let got = t.add_tokens(&[AddedToken::new("<temp>"), AddedToken::new("<count>")]);
    assert_eq!(got.unwrap(), [32002, 32007]);
    assert_eq!(t.encode_segment("<count>").unwrap(), [32007]);
    for (token, id) in [
        ("<temp>", 40000),
        ("<new>", 32001),
        ("<new>", 17),
        ("▁the", 40000),
    ] {
        let error = t.add_tokens_with_ids([(token, id)]).unwrap_err();
        assert!(matches!(error, LlmError::AddedToken { .. }), "{error}");
    }
    // Ids may leave a gap: embeddings of some checkpoints are padded.
    t.add_tokens_with_ids([("<far>", 40000)]).unwrap();
    assert_eq!(t.vocab_size(), 40001);
    assert!(matches!(
        t.decode(&[35000], false),
        Err(LlmError::UnknownTokenId { id: 35000, .. })
    ));
}

#[test]
fn lengths_and_missing_tokens() {
    let t = videochat_tpo(true);
    let both = EncodeOptions {
        add_bos: true,
        add_eos: true,
        max_length: Some(4),
    };
    let long = t.encode("What happens at the end?", both).unwrap();
    assert_eq!(long, [1, 1824, 6881, 2]);
    assert_eq!(t.encode("", both).unwrap(), [1, 2]);
    let tight = EncodeOptions {
        max_length: Some(1),
        ..both
    };
    assert!(matches!(
        t.encode("a", tight),
        Err(LlmError::Tokenize { .. })
    ));
}

#[test]
fn stream_never_splits_a_character() {
    let t = videochat_tpo(true);
    // 🎬 is four byte pieces.
    let list = t.encode_segment("🎬!").unwrap();
    assert_eq!(list.len(), 6);
    let mut stream = t.decode_stream(true);
    let parts: Vec<String> = list.iter().map(|i| stream.push(*i).unwrap()).collect();
    assert_eq!(parts, ["", "", "", "", "🎬", "!"]);
    assert_eq!(stream.finish().unwrap(), "");
    // Two of the four: each byte is one U+FFFD, as sentencepiece does.
    let cut = &list[..3];
    assert_eq!(t.decode(cut, true).unwrap(), "\u{FFFD}\u{FFFD}");
    assert_eq!(streamed(&t, cut, true), "\u{FFFD}\u{FFFD}");
}

#[test]
fn damaged_models_give_errors() {
    let good = std::fs::read(fixture_path("mistral_v1/tokenizer.model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let load = |bytes: &[u8]| {
        let path = dir.path().join("tokenizer.model");
        std::fs::write(&path, bytes).unwrap();
        Tokenizer::from_sentencepiece(&path, SentencePieceOptions::default())
    };
    assert!(load(&good).is_ok());
    for bytes in [
        &b""[..],
        b"{}",
        b"\xff\xff\xff\xff",
        &[0; 4096],
        b"<html>404</html>",
    ] {
        let error = load(bytes).unwrap_err();
        assert!(matches!(error, LlmError::TokenizerFile { .. }), "{error}");
    }
    // Cut short: never a panic. Trainer settings are at the end, so every cut is an error.
    for at in (1..good.len()).step_by(9973) {
        assert!(load(&good[..at]).is_err(), "cut at {at}");
    }
    // Flipped bytes: any answer but a panic.
    for at in (0..good.len()).step_by(24_001) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xFF;
        if let Ok(t) = load(&bytes) {
            t.encode_segment("What happens at the end?").unwrap();
        }
    }
}
