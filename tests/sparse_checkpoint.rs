//! The full-size VideoChat-TPO checkpoint without its data, as published and broken in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use serde_json::Value;
use tpo::model::inspect::{LayoutChoice, hugging_face_llm_layout, inspect, videochat_tpo_layout};
use tpo::model::{ConnectorConfig, VisionConfig, videochat_tpo_keys};
use tpo::{BuiltInHeads, TpoConfig};
use tpo_core::weights::{
    Checkpoint, INDEX_FILE, KeyMap, KeyTarget, LoadOptions, Manifest, SaveOptions, load_module,
    module_params, save_module, write_sparse,
};

const NORM: &str = "vision_encoder.encoder.blocks.7.norm1.weight";

fn layout() -> Manifest {
    videochat_tpo_layout().unwrap()
}

fn written(manifest: &Manifest) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    write_sparse(manifest, &path).unwrap();
    (dir, path)
}

fn edit_index(dir: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.join(INDEX_FILE);
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(index["weight_map"].as_object_mut().unwrap());
    std::fs::write(path, index.to_string()).unwrap();
}

/// The checkpoint is refused in one paragraph that holds all of `parts`.
fn assert_refused(dir: &Path, parts: &[&str]) {
    let message = match inspect(dir, LayoutChoice::Auto) {
        Ok(found) => {
            assert!(!found.is_fine(), "{dir:?} was accepted");
            assert_eq!(found.problems().len(), 1);
            found.problems().remove(0)
        }
        Err(error) => error.to_string(),
    };
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn the_published_layout_is_accepted_at_full_size() {
    let (_dir, path) = written(&layout());
    let found = inspect(&path, LayoutChoice::Auto).unwrap();
    assert!(found.is_fine());
    assert_eq!(found.layout.as_deref(), Some("videochat-tpo"));
    assert_eq!((found.tensors, found.bytes), (2594, 16_202_736_564));
    assert_eq!(found.files.len(), 4);
    assert_eq!(found.notes, [""; 0]);
    assert_eq!(found.dtypes["I64"], 1);
    let text = found.to_string();
    for part in ["7284310128", "rank 16 on ", "every tensor is there"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("no module in this build"), "{text}");
}

/// The published model with every width as small as it goes: the depths are the published ones, so
/// that the names are, too.
fn narrow() -> TpoConfig {
    use tpo::core::head::HeadConfigs;
    use tpo::heads::mask::{MaskHead, MaskHeadConfig};
    use tpo::heads::region::{RegionHead, RegionHeadConfig};
    use tpo::heads::temporal::TemporalHead;

    let full = TpoConfig::videochat_tpo();
    let mut config = full.clone();
    config.input.size = 16;
    config.input.frames = 4;
    let VisionConfig::Umt(vision) = &mut config.vision else {
        panic!("the published encoder is UMT");
    };
    (vision.img_size, vision.num_frames) = (16, 4);
    (vision.encoder_embed_dim, vision.encoder_num_heads) = (8, 2);
    let ConnectorConfig::QFormer(connector) = &mut config.connector else {
        panic!("the published connector is a Q-Former");
    };
    connector.d_llm = 16;
    let q = &mut connector.qformer;
    (q.hidden_size, q.num_attention_heads, q.intermediate_size) = (8, 2, 8);
    (q.encoder_width, q.vocab_size, q.max_position_embeddings) = (8, 16, 8);
    (q.num_query_token, q.extra_num_query_token) = (2, 2);
    let llm = &mut config.llm;
    (llm.hidden_size, llm.intermediate_size, llm.vocab_size) = (16, 16, 32);
    (
        llm.num_attention_heads,
        llm.num_key_value_heads,
        llm.head_dim,
    ) = (2, 1, 8);
    config.tasks = tpo::model::videochat_tasks(25);
    let mut temporal = full.heads.get::<TemporalHead>().unwrap();
    let cg = &mut temporal.model;
    (cg.d_text, cg.d_video, cg.d_model, cg.d_hidden) = (16, 8, 16, 16);
    let mut sam = full.heads.get::<MaskHead>().unwrap().sam;
    let trunk = &mut sam.image_encoder.trunk;
    (trunk.embed_dim, trunk.num_heads) = (8, 1);
    sam.image_encoder.d_model = 16;
    sam.image_size = 64;
    sam.prompt_encoder.dim = 16;
    sam.prompt_encoder.image_size = [64; 2];
    sam.prompt_encoder.mask_in_chans = 4;
    sam.mask_decoder.dim = 16;
    sam.mask_decoder.mlp_dim = 16;
    sam.mask_decoder.iou_head_hidden_dim = 8;
    sam.memory_attention.d_model = 16;
    sam.memory_attention.kv_in_dim = 8;
    sam.memory_attention.dim_feedforward = 16;
    sam.memory_encoder.in_dim = 16;
    sam.memory_encoder.out_dim = 8;
    let heads = HeadConfigs::default().with::<RegionHead>(&RegionHeadConfig::for_llm(16));
    let heads = heads.and_then(|h| h.with::<TemporalHead>(&temporal));
    let heads = heads.and_then(|h| h.with::<MaskHead>(&MaskHeadConfig::new(16, 16, sam)));
    config.heads = heads.unwrap();
    config
}

/// All 2,594 names of the published checkpoint have a parameter or a reason to be left out, and a
/// model with the published depths loads them strictly.
#[test]
fn every_published_name_is_loaded_or_has_a_reason() {
    let keys = videochat_tpo_keys().unwrap();
    let config = narrow();
    let device = Device::flex();
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    save_module(&model, &keys, &saved, &SaveOptions::default()).unwrap();

    let checkpoint = Checkpoint::open(&saved).unwrap();
    let ours: BTreeSet<String> = checkpoint.tensors().map(|t| t.key.clone()).collect();
    let published: BTreeSet<String> = layout().tensors.into_iter().map(|t| t.key).collect();
    let (ignored, taken): (Vec<&String>, Vec<&String>) = published
        .iter()
        .partition(|key| matches!(keys.module_path(key), KeyTarget::Ignored(_)));
    let unknown: Vec<_> = ours.iter().filter(|k| !published.contains(*k)).collect();
    assert!(unknown.is_empty(), "not in the checkpoint: {unknown:?}");
    let lost: Vec<_> = taken.iter().filter(|k| !ours.contains(**k)).collect();
    assert!(lost.is_empty(), "no parameter: {lost:?}");
    assert_eq!(published.len(), 2594);
    assert_eq!(ignored, ["qformer.bert.embeddings.position_ids"]);

    // Strict: nothing missing, nothing unexpected, the same bytes.
    let other = config.init::<BuiltInHeads>(&device).unwrap();
    let (loaded, report) = load_module(other, &checkpoint, &keys, &LoadOptions::default()).unwrap();
    assert!(report.is_complete());
    assert_eq!(report.loaded.len(), ours.len());
    let again = dir.path().join("again");
    save_module(&loaded, &keys, &again, &SaveOptions::default()).unwrap();
    let bytes = |dir: &Path| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        files.sort();
        files
            .iter()
            .map(|f| std::fs::read(f).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(bytes(&saved), bytes(&again));

    // One name less, and the error says which.
    let mut manifest = Manifest::of(&checkpoint);
    manifest.tensors.retain(|t| t.key != "sam.no_mem_embed");
    let sparse = dir.path().join("sparse");
    write_sparse(&manifest, &sparse).unwrap();
    let checkpoint = Checkpoint::open(&sparse).unwrap();
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    let error = load_module(model, &checkpoint, &keys, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("sam.no_mem_embed"), "{error}");
}

#[cfg(unix)]
#[test]
fn the_files_take_hardly_any_space() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path) = written(&layout());
    let (mut apparent, mut on_disk) = (0, 0);
    for entry in std::fs::read_dir(path).unwrap() {
        let meta = entry.unwrap().metadata().unwrap();
        apparent += meta.len();
        on_disk += meta.blocks() * 512;
    }
    assert!(apparent > 16_202_736_564);
    assert!(on_disk < 16 << 20, "{on_disk} bytes on disk");
}

#[test]
fn a_renamed_key() {
    let mut manifest = layout();
    for t in &mut manifest.tensors {
        if t.key == NORM {
            t.key = NORM.replace("norm1", "norm_1");
        }
    }
    let (_dir, path) = written(&manifest);
    assert_refused(
        &path,
        &[
            "1 missing, 1 unexpected",
            &format!("`{NORM}` of shape [1024]"),
            "nearest name in the checkpoint: `vision_encoder.encoder.blocks.7.norm_1.weight`",
            "model-00001-of-00004.safetensors",
        ],
    );
}

#[test]
fn a_renamed_key_of_sam_2() {
    let mut manifest = layout();
    for t in &mut manifest.tensors {
        if t.key == "sam.no_mem_embed" {
            t.key = "sam.no_mem_embedding".into();
        }
    }
    let (_dir, path) = written(&manifest);
    assert_refused(&path, &["`sam.no_mem_embed`", "`sam.no_mem_embedding`"]);
}

#[test]
fn a_changed_shape() {
    let mut manifest = layout();
    for t in &mut manifest.tensors {
        if t.key == NORM {
            t.shape = vec![1023];
        }
    }
    let (_dir, path) = written(&manifest);
    assert_refused(
        &path,
        &[
            NORM,
            "expected [1024], found [1023]",
            "model-00001-of-00004.safetensors",
        ],
    );
}

#[test]
fn a_missing_shard() {
    let (_dir, path) = written(&layout());
    std::fs::remove_file(path.join("model-00003-of-00004.safetensors")).unwrap();
    assert_refused(
        &path,
        &[
            "model-00003-of-00004.safetensors, which is not in the directory",
            "`lm.base_model.model.",
            "nearest file: model-0000",
        ],
    );
}

#[test]
fn a_truncated_shard() {
    let (_dir, path) = written(&layout());
    let shard = path.join("model-00002-of-00004.safetensors");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&shard)
        .unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 1).unwrap();
    assert_refused(
        &path,
        &[
            "model-00002-of-00004.safetensors",
            "truncated",
            "tensor `lm.",
            "of shape [",
        ],
    );
    // Cut inside the header.
    file.set_len(1000).unwrap();
    assert_refused(
        &path,
        &[
            "model-00002-of-00004.safetensors",
            "truncated",
            "1000 bytes",
        ],
    );
}

#[test]
fn an_index_that_points_outside() {
    for shard in ["../model-00001-of-00004.safetensors", "/etc/passwd"] {
        let (_dir, path) = written(&layout());
        edit_index(&path, |map| {
            map.insert(NORM.into(), shard.into());
        });
        assert_refused(&path, &[NORM, shard, INDEX_FILE, "nothing was opened"]);
    }
}

#[test]
fn an_index_that_lists_a_key_no_shard_holds() {
    let (_dir, path) = written(&layout());
    edit_index(&path, |map| {
        let shard = map.remove(NORM).unwrap();
        map.insert(NORM.replace("weight", "weigth"), shard);
    });
    assert_refused(&path, &["norm1.weigth`", "does not hold it", NORM]);
}

#[test]
fn half_an_adapter_is_found_without_a_layout() {
    let mut manifest = layout();
    manifest
        .tensors
        .retain(|t| t.key != "lm.base_model.model.lm_head.lora_B.default.weight");
    let (_dir, path) = written(&manifest);
    let found = inspect(&path, LayoutChoice::None).unwrap();
    assert!(found.differences.is_empty());
    assert_eq!(found.broken_adapters, ["lm.base_model.model.lm_head"]);
    assert!(!found.is_fine());
}

#[test]
fn a_language_model_is_compared_with_its_config() {
    let dir = tempfile::tempdir().unwrap();
    let config = |layers: usize| {
        format!(
            r#"{{"model_type": "qwen2", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers":
                {layers}, "intermediate_size": 32, "num_attention_heads": 4,
                "num_key_value_heads": 2, "tie_word_embeddings": true}}"#
        )
    };
    std::fs::write(dir.path().join("config.json"), config(2)).unwrap();
    let config_file = dir.path().join("config.json");
    let mut manifest = hugging_face_llm_layout(&config_file).unwrap().unwrap();
    manifest.tensors.retain(|t| !t.optional);
    write_sparse(&manifest, dir.path()).unwrap();
    assert!(inspect(dir.path(), LayoutChoice::Auto).unwrap().is_fine());
    std::fs::write(config_file, config(3)).unwrap();
    assert_refused(dir.path(), &["12 missing", "model.layers.2."]);
}

#[test]
fn another_size_of_the_same_model_is_listed_but_not_compared() {
    let mut manifest = layout();
    for t in &mut manifest.tensors {
        t.shape = t.shape.iter().map(|d| d.div_ceil(8)).collect();
    }
    let (_dir, path) = written(&manifest);
    let found = inspect(&path, LayoutChoice::Auto).unwrap();
    assert!(found.is_fine());
    assert_eq!(found.layout, None);
    assert!(found.notes[0].contains("a model of other sizes"));
    assert!(!inspect(&path, LayoutChoice::Videochat).unwrap().is_fine());
}

/// At full size no value is drawn: parameters know their shapes before.
#[test]
fn every_published_shape_is_that_of_its_parameter() {
    let keys = videochat_tpo_keys().unwrap();
    let model = TpoConfig::videochat_tpo()
        .init::<BuiltInHeads>(&Device::flex())
        .unwrap();
    let params: BTreeMap<String, Vec<usize>> = module_params(&model)
        .into_iter()
        .map(|p| (p.path, p.shape))
        .collect();
    let mut matched = 0;
    for tensor in layout().tensors {
        match keys.module_path(&tensor.key) {
            KeyTarget::Path(path) => {
                assert_eq!(params.get(&path), Some(&tensor.shape), "{}", tensor.key);
                matched += 1;
            }
            KeyTarget::Ignored(_) => {}
            KeyTarget::OtherPart => panic!("{} belongs to no part", tensor.key),
        }
    }
    assert_eq!((matched, params.len()), (2593, 2593));
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tpo"))
        .arg("inspect")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_program_answers_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full");
    let path = path.to_str().unwrap();
    let output = run(&[path, "--write-sparse"]);
    assert!(output.status.success(), "{output:?}");
    let output = run(&[path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("16202736564"));

    let output = run(&[path, "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["fine"], true);
    assert_eq!(value["tensors"], 2594);

    // A sparse checkpoint is not overwritten.
    assert_eq!(run(&[path, "--write-sparse"]).status.code(), Some(2));

    std::fs::remove_file(Path::new(path).join("model-00004-of-00004.safetensors")).unwrap();
    let output = run(&[path]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("model-00004-of-00004.safetensors"),
        "{message}"
    );
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    let output = run(&[path, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        value["error"]
            .as_str()
            .unwrap()
            .contains("not in the directory")
    );
    assert_eq!(run(&["--no-such-flag"]).status.code(), Some(2));
}
