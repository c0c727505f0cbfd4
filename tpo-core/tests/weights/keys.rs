//! Key tables.

use tpo_core::weights::{KeyMap, KeyRules, KeyTables, KeyTarget, Manifest, check_round_trip};

fn path(p: &str) -> KeyTarget {
    KeyTarget::Path(p.into())
}

fn vision() -> KeyRules {
    KeyRules::new()
        .owns(["vision_encoder.", "vision_layernorm."])
        .rewrite(
            &[(r"^vision_encoder\.encoder\.", "encoder.")],
            &[(r"^encoder\.", "vision_encoder.encoder.")],
        )
        .unwrap()
        .within("vision.")
}

fn language() -> KeyRules {
    KeyRules::new()
        .owns(["lm."])
        .prefix("lm.base_model.model.", "")
        .lora("default")
        .within("llm.")
}

#[test]
fn a_dictionary_around_the_keys_is_taken_off() {
    let rules = vision()
        .wrapped_in(&["module.", "model."])
        .ignore_all(&[("^vision_encoder.old", "left over")])
        .unwrap();
    for wrapper in ["", "module.", "model."] {
        let key = |name: &str| rules.module_path(&format!("{wrapper}{name}"));
        assert_eq!(key("vision_encoder.encoder.x"), path("vision.encoder.x"));
        assert_eq!(
            key("vision_encoder.old"),
            KeyTarget::Ignored("left over".into())
        );
        assert_eq!(key("lm.x"), KeyTarget::OtherPart);
    }
}

#[test]
fn adapters_in_both_spellings_of_peft() {
    let rules = language();
    for (key, expected) in [
        (
            "lm.base_model.model.lm_head.base_layer.weight",
            "llm.lm_head.weight",
        ),
        ("lm.base_model.model.lm_head.weight", "llm.lm_head.weight"),
        (
            "lm.base_model.model.lm_head.base_layer.bias",
            "llm.lm_head.bias",
        ),
        (
            "lm.base_model.model.lm_head.lora_A.default.weight",
            "llm.lm_head.lora.a",
        ),
        (
            "lm.base_model.model.lm_head.lora_A.weight",
            "llm.lm_head.lora.a",
        ),
        (
            "lm.base_model.model.lm_head.lora_B.default.weight",
            "llm.lm_head.lora.b",
        ),
    ] {
        assert_eq!(rules.module_path(key), path(expected), "{key}");
    }
    assert_eq!(
        rules.module_path("lm.base_model.model.lm_head.lora_A.other.weight"),
        path("llm.lm_head.lora_A.other.weight")
    );
}

#[test]
fn a_module_without_adapters_is_saved_under_plain_names() {
    let rules = language();
    let with = |p: &str| p == "llm.lm_head.lora.a";
    let key = |p: &str, has: &dyn Fn(&str) -> bool| rules.checkpoint_key(p, has).unwrap();
    assert_eq!(
        key("llm.lm_head.weight", &with),
        "lm.base_model.model.lm_head.base_layer.weight"
    );
    assert_eq!(
        key("llm.lm_head.weight", &|_| false),
        "lm.base_model.model.lm_head.weight"
    );
    assert_eq!(
        key("llm.lm_head.lora.b", &with),
        "lm.base_model.model.lm_head.lora_B.default.weight"
    );
    assert_eq!(
        key("llm.model.norm.weight", &with),
        "lm.base_model.model.model.norm.weight"
    );
    assert_eq!(rules.checkpoint_key("vision.norm.weight", &with), None);
}

#[test]
fn tables_compose_and_come_back() {
    let tables = KeyTables::new().with(vision()).with(language());
    assert_eq!(
        tables.module_path("vision_layernorm.bias"),
        path("vision.vision_layernorm.bias")
    );
    assert_eq!(tables.module_path("sam.no_mem_embed"), KeyTarget::OtherPart);
    let layout = videochat_tpo_layout();
    let keys: Vec<&str> = layout.tensors.iter().map(|t| t.key.as_str()).collect();
    let covered = keys
        .iter()
        .filter(|k| tables.module_path(k) != KeyTarget::OtherPart)
        .count();
    assert_eq!(covered, 23 * 13 + 2 + 2 + 741);
    assert_eq!(check_round_trip(&tables, keys), []);
}

#[test]
fn a_rule_that_does_not_come_back_is_found() {
    let rules = KeyRules::new()
        .rewrite(&[("gamma", "weight")], &[])
        .unwrap();
    assert_eq!(
        check_round_trip(&rules, ["norm.gamma"]),
        [(
            "norm.gamma".to_string(),
            "norm.weight".to_string(),
            Some("norm.weight".to_string())
        )]
    );
}

#[test]
fn dollar_signs_in_prefixes_are_literal() {
    let rules = KeyRules::new().prefix("a$1.", "b$0.");
    assert_eq!(rules.module_path("a$1.x"), path("b$0.x"));
    assert_eq!(rules.checkpoint_key("b$0.x", &|_| false).unwrap(), "a$1.x");
}

#[test]
fn a_bad_pattern_is_an_error() {
    assert!(KeyRules::new().rewrite(&[("(", "")], &[]).is_err());
    assert!(KeyRules::new().ignore("(", "").is_err());
}

/// Every tensor of the published checkpoint.
fn videochat_tpo_layout() -> Manifest {
    let text = include_str!("../../../src/model/families/videochat_tpo.txt");
    Manifest::from_compact("videochat-tpo", text).unwrap()
}
