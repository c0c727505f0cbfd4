//! Names and shapes of SAM 2's parameters in the three kinds of checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Device};
use tpo_core::weights::{
    Checkpoint, KeyMap, KeyScope, KeyTarget, LoadOptions, Manifest, check_round_trip, load_module,
    module_params, write_sparse,
};
use tpo_heads::mask::sam2::{
    Sam2Config, Sam2Version, sam2_hugging_face_keys, sam2_keys, sam2_videochat_tpo_keys,
};

const NAMES: &str = include_str!("data/sam2_names.txt");

/// Pairs of names: VideoChat-TPO, Hugging Face.
fn names() -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for line in NAMES.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [ours, theirs] => pairs.push((ours.to_string(), theirs.to_string())),
            [ours, theirs, numbers] => {
                for range in numbers.split(',') {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    for n in first.parse::<usize>().unwrap()..=last.parse().unwrap() {
                        let fill = |pattern: &str| pattern.replace("{}", &n.to_string());
                        pairs.push((fill(ours), fill(theirs)));
                    }
                }
            }
            _ => panic!("{line}"),
        }
    }
    pairs
}

fn path(map: &dyn KeyMap, key: &str) -> String {
    match map.module_path(key) {
        KeyTarget::Path(path) => path,
        other => panic!("{key}: {other:?}"),
    }
}

/// Path and shape of every parameter; nothing is drawn.
fn shapes(config: &Sam2Config) -> BTreeMap<String, Vec<usize>> {
    let model = config.init(&Device::flex()).unwrap();
    module_params(&model)
        .into_iter()
        .map(|p| (p.path, p.shape))
        .collect()
}

fn sam_layout() -> Manifest {
    let mut layout = videochat_tpo_layout();
    layout.tensors.retain(|t| t.key.starts_with("sam."));
    for t in &mut layout.tensors {
        t.shard = None;
    }
    layout
}

#[test]
fn the_published_mask_head_is_the_large_preset() {
    let layout = sam_layout();
    assert_eq!(layout.tensors.len(), 900);
    let dir = tempfile::tempdir().unwrap();
    write_sparse(&layout, dir.path()).unwrap();
    let model = Sam2Config::videochat_tpo().init(&Device::flex()).unwrap();
    let options = LoadOptions {
        scope: KeyScope::Whole,
        ..LoadOptions::default()
    };
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let rules = sam2_videochat_tpo_keys().unwrap();
    let (model, report) = load_module(model, &checkpoint, &rules, &options).unwrap();
    assert_eq!(report.loaded.len(), 900);
    // The file's type is kept, so the test holds two bytes per parameter.
    assert!(report.cast.is_empty());
    assert_eq!(model.no_mem_embed.val().dtype(), DType::BF16);
}

#[test]
fn a_wrong_shape_or_generation_is_refused() {
    let mut layout = sam_layout();
    let dir = tempfile::tempdir().unwrap();
    for t in &mut layout.tensors {
        if t.key == "sam.maskmem_tpos_enc" {
            t.shape[0] = 6;
        }
    }
    write_sparse(&layout, dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let rules = sam2_videochat_tpo_keys().unwrap();
    let model = Sam2Config::large(Sam2Version::V2_1)
        .init(&Device::flex())
        .unwrap();
    let message = load_module(model, &checkpoint, &rules, &LoadOptions::default())
        .unwrap_err()
        .to_string();
    for part in [
        "sam.maskmem_tpos_enc",
        "sam.no_obj_embed_spatial",
        "sam.obj_ptr_tpos_proj.weight",
    ] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn the_three_tables_agree_on_all_names() {
    let pairs = names();
    assert_eq!(pairs.len(), 900);
    let videochat = sam2_videochat_tpo_keys().unwrap();
    let sam = sam2_keys().unwrap();
    let hugging_face = sam2_hugging_face_keys().unwrap();
    let config = Sam2Config::large(Sam2Version::V2_0);
    let separate = shapes(&config);
    let stacked = shapes(&config.for_hugging_face());

    let mut theirs_seen = BTreeSet::new();
    for (ours, theirs) in &pairs {
        let own = path(&videochat, ours);
        assert_eq!(own, path(&sam, ours.strip_prefix("sam.").unwrap()));
        let other = path(&hugging_face, theirs);
        assert!(separate.contains_key(&own), "{ours} leads to {own}");
        assert!(stacked.contains_key(&other), "{theirs} leads to {other}");
        if own.contains("point_embeddings") {
            assert_eq!(other, "sam_prompt_encoder.point_embeddings.weight");
        } else {
            assert_eq!(own, other, "{ours}, {theirs}");
        }
        theirs_seen.insert(other);
    }
    assert_eq!(separate.len(), 900);
    assert_eq!(stacked.len(), theirs_seen.len());
    let dim = &stacked["sam_prompt_encoder.point_embeddings.weight"];
    assert_eq!(dim[..], [4, 256]);

    let ours = pairs.iter().map(|(ours, _)| ours.as_str());
    assert_eq!(check_round_trip(&videochat, ours), []);
    let plain = pairs.iter().map(|(ours, _)| &ours[4..]);
    assert_eq!(check_round_trip(&sam, plain), []);
    let theirs = pairs.iter().map(|(_, theirs)| theirs.as_str());
    assert_eq!(check_round_trip(&hugging_face, theirs), []);
}

#[test]
fn names_of_the_second_generation() {
    let shapes = shapes(&Sam2Config::tiny(Sam2Version::V2_1));
    let hugging_face = sam2_hugging_face_keys().unwrap();
    let pairs = [
        (
            "obj_ptr_tpos_proj.weight",
            "temporal_positional_encoding_projection_layer.weight",
            vec![64, 256],
        ),
        (
            "obj_ptr_tpos_proj.bias",
            "temporal_positional_encoding_projection_layer.bias",
            vec![64],
        ),
        (
            "no_obj_embed_spatial",
            "occlusion_spatial_embedding_parameter",
            vec![1, 64],
        ),
    ];
    for (ours, theirs, shape) in pairs {
        assert_eq!(path(&sam2_keys().unwrap(), ours), ours);
        assert_eq!(path(&hugging_face, theirs), ours);
        assert_eq!(check_round_trip(&hugging_face, [theirs]), []);
        assert_eq!(shapes[ours], shape);
    }
    let target = hugging_face.module_path("shared_image_embedding.positional_embedding");
    assert!(matches!(target, KeyTarget::Ignored(_)));
}

/// Numbers of parameters of the published image encoders' trunks and models.
#[test]
fn sizes_of_the_presets() {
    let count = |config: Sam2Config| {
        shapes(&config)
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum::<usize>() as f64
            / 1e6
    };
    let v2_0 = Sam2Version::V2_0;
    for (config, millions) in [
        (Sam2Config::tiny(v2_0), 38.9),
        (Sam2Config::small(v2_0), 46.0),
        (Sam2Config::base_plus(v2_0), 80.8),
        (Sam2Config::large(v2_0), 224.4),
    ] {
        let found = count(config);
        assert!((found - millions).abs() < 0.1, "{found} of {millions}");
    }
}

/// Every tensor of the published checkpoint.
fn videochat_tpo_layout() -> Manifest {
    let text = include_str!("../../src/model/families/videochat_tpo.txt");
    Manifest::from_compact("videochat-tpo", text).unwrap()
}
