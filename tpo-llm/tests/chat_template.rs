//! Chat templates against transformers' rendering.

mod common;

use std::time::{Duration, UNIX_EPOCH};

use common::{fixture, text};
use tpo_llm::LlmError;
use tpo_llm::chat_template::{ChatTemplate, Message, Part, RenderOptions};

fn options() -> RenderOptions {
    RenderOptions {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        // 29 February 2024, 12:34:56.
        now: Some(UNIX_EPOCH + Duration::from_secs(1_709_210_096)),
        ..RenderOptions::default()
    }
}

fn message_of(result: Result<String, LlmError>) -> String {
    match result {
        Err(LlmError::ChatTemplate { problem }) => problem,
        other => panic!("expected a template error, got {other:?}"),
    }
}

#[test]
fn equal_to_transformers() {
    let f = fixture("chat_templates.json");
    let (mut rendered, mut refused) = (0, 0);
    for case in f["cases"].as_array().unwrap() {
        let source = text(&f["templates"][text(&case["template"])]);
        let messages: Vec<Message> =
            serde_json::from_value(f["conversations"][text(&case["conversation"])].clone())
                .unwrap();
        let template = ChatTemplate::new(source).unwrap();
        let got = template.render(
            &messages,
            &RenderOptions {
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                ..options()
            },
        );
        match case.get("error") {
            Some(error) => {
                assert!(message_of(got).contains(text(error)), "{case}");
                refused += 1;
            }
            None => {
                assert_eq!(got.unwrap(), text(&case["text"]), "{case}");
                rendered += 1;
            }
        }
    }
    assert_eq!((rendered, refused), (30, 4));
}

#[test]
fn messages_serialise_as_templates_expect() {
    let parts = Message::parts("user", vec![Part::text("a"), Part::Image, Part::Video]);
    let json = r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"image"},{"type":"video"}]}"#;
    assert_eq!(serde_json::to_string(&parts).unwrap(), json);
    assert_eq!(serde_json::from_str::<Message>(json).unwrap(), parts);
    let plain = serde_json::to_string(&Message::system("b")).unwrap();
    assert_eq!(plain, r#"{"role":"system","content":"b"}"#);
}

#[test]
fn extra_variables_and_undefined_tokens() {
    let t =
        ChatTemplate::new("{{ bos_token }}|{% if thinking %}on{% else %}off{% endif %}").unwrap();
    let render = |o: &RenderOptions| t.render(&[], o).unwrap();
    assert_eq!(render(&RenderOptions::default()), "|off");
    let mut o = options();
    o.extra.insert("thinking".into(), true.into());
    assert_eq!(render(&o), "<s>|on");
}

#[test]
fn broken_and_hostile_templates() {
    for source in [
        "{% for %}",
        "{%}{% if x %}",
        "{%",
        "{{ x",
        "{% endif %}",
        "{{ 'a' | nothing }}",
    ] {
        let error = ChatTemplate::new(source).and_then(|t| t.render(&[], &options()));
        assert!(!message_of(error).is_empty(), "{source}");
    }
    assert!(ChatTemplate::new(&"x".repeat(2 << 20)).is_err());
    // Four nested loops of 10,000 each would never end.
    let loops = "{% for a in range(10000) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
    let endless = ChatTemplate::new(&loops).unwrap();
    assert!(message_of(endless.render(&[], &options())).contains("fuel"));
    let recursive = ChatTemplate::new("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").unwrap();
    message_of(recursive.render(&[], &options()));
    let line = ChatTemplate::new("a\nb\n{{ messages.no.where }}").unwrap();
    assert!(message_of(line.render(&[], &options())).contains("line 3"));
}
