//! The key rules against the keys and shapes of the published VideoChat-TPO checkpoint.

mod common;

use std::collections::BTreeMap;

use burn::tensor::Device;
use common::params::{rewrite, shapes};
use regex::Regex;
use tpo_vision::connector::qformer::{QFORMER_KEYS, QFORMER_KEYS_INVERSE, QFORMER_UNUSED_KEYS};
use tpo_vision::umt::{UMT_KEYS, UMT_KEYS_INVERSE};
use tpo_vision::{KeyRewrite, QFormerConnectorConfig, UmtConfig, VideoEncoder};

type Shapes = BTreeMap<String, Vec<usize>>;

/// The checkpoint's keys of the vision parts, split into encoder and connector.
fn checkpoint() -> (Shapes, Shapes) {
    let json = include_str!("fixtures/checkpoint_shapes.json");
    let all: Shapes = serde_json::from_str(json).unwrap();
    all.into_iter()
        .partition(|(key, _)| key.starts_with("vision_"))
}

fn assert_same(
    checkpoint: Shapes,
    module: Shapes,
    rules: &[KeyRewrite],
    inverse: &[KeyRewrite],
    unused: &[(&str, &str)],
) {
    let unused: Vec<_> = unused.iter().map(|(p, _)| Regex::new(p).unwrap()).collect();
    let (unused, used): (Shapes, Shapes) = checkpoint
        .into_iter()
        .partition(|(key, _)| unused.iter().any(|pattern| pattern.is_match(key)));
    let mapped: Shapes = used
        .iter()
        .map(|(key, shape)| (rewrite(key, rules), shape.clone()))
        .collect();
    assert_eq!(mapped.len(), used.len(), "two keys map to one path");
    assert_eq!(mapped, module);
    for key in used.keys() {
        assert_eq!(&rewrite(&rewrite(key, rules), inverse), key);
    }
    assert!(unused.keys().all(|key| key.ends_with("position_ids")));
}

#[test]
fn encoder_keys_and_shapes_are_the_checkpoint_s() {
    let (keys, _) = checkpoint();
    assert_eq!(keys.len(), 303);
    let module = VideoEncoder::new(&UmtConfig::large(), &Device::flex()).unwrap();
    assert_same(keys, shapes(&module), UMT_KEYS, UMT_KEYS_INVERSE, &[]);
}

#[test]
fn connector_keys_and_shapes_are_the_checkpoint_s() {
    let (_, keys) = checkpoint();
    assert_eq!(keys.len(), 337);
    let module = QFormerConnectorConfig::videochat_tpo()
        .init(&Device::flex())
        .unwrap();
    assert_same(
        keys,
        shapes(&module),
        QFORMER_KEYS,
        QFORMER_KEYS_INVERSE,
        QFORMER_UNUSED_KEYS,
    );
}
