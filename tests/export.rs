//! Exported models give the same logits.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Tensor};
use tpo::VideoChatTpo;
use tpo::core::model::TokenBatch;
use tpo::core::prompt::PromptIds;
use tpo::core::traits::LanguageModel;
use tpo::export::{ExportOptions, LoraExport, check_target, convert_model, export_model};
use tpo::llm::config::videochat_lora;
use tpo::model::average::average_models;
use tpo::model::{Quantize, videochat_tpo_keys};
use tpo::prelude::*;
use tpo::weights::{Checkpoint, LoadOptions, load_module, read_tensor};

/// Adapters start with `B` at zero, where merging would change nothing.
struct Noise;

impl ModuleMapper for Noise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|t| {
            let noise = Tensor::random(t.shape(), Distribution::Normal(0.0, 0.05), &t.device());
            t + noise
        })
    }
}

fn config() -> TpoConfig {
    let mut config = TpoConfig::nano(300);
    config.llm.lora = Some(videochat_lora());
    config
}

fn logits(model: &VideoChatTpo, device: &Device) -> Vec<f32> {
    let mut prompt = PromptIds::default();
    prompt.push_text(&[1, 5, 9, 200, 31]);
    let region = model.registry().get("region").unwrap().placeholder.id;
    prompt.push_text(&[region]);
    let tokens = TokenBatch::pad(&[prompt], 0);
    let embeds = model.embed(&tokens, None, &[], device).unwrap();
    let hidden = model.llm.hidden(embeds, None).unwrap();
    model.llm.logits(hidden).into_data().iter::<f32>().collect()
}

fn open(dir: &Path, config: &TpoConfig, device: &Device) -> VideoChatTpo {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let keys = videochat_tpo_keys().unwrap();
    let model = config.init(device).unwrap();
    load_module(model, &checkpoint, &keys, &LoadOptions::default())
        .unwrap()
        .0
}

#[test]
fn reloaded_models_give_the_same_logits() {
    let device = Device::flex();
    let config = config();
    let model = config
        .init::<BuiltInHeads>(&device)
        .unwrap()
        .map(&mut Noise);
    let before = logits(&model, &device);

    // Beside the weights, in shards, under the reference's names.
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        max_shard_bytes: 2_000_000,
        ..ExportOptions::default()
    };
    let files = [("tokenizer.json".to_string(), b"{}".to_vec())];
    let report = export_model(model.clone(), &config, &files, dir.path(), &options).unwrap();
    assert!(report.files.len() > 3, "{:?}", report.files);
    assert!(dir.path().join("model.safetensors.index.json").exists());
    assert!(dir.path().join("tokenizer.json").exists());
    let written = Checkpoint::open(dir.path()).unwrap();
    let layer = "lm.base_model.model.model.layers.0.self_attn.q_proj";
    for key in [
        "base_layer.weight",
        "lora_A.default.weight",
        "lora_B.default.weight",
    ] {
        assert!(written.get(&format!("{layer}.{key}")).is_some(), "{key}");
    }
    for key in [
        "box_token",
        "loc_decoder.2.weight",
        "vision_layernorm.weight",
    ] {
        assert!(written.get(key).is_some(), "{key}");
    }
    assert_eq!(logits(&open(dir.path(), &config, &device), &device), before);
    let again = export_model(model.clone(), &config, &files, dir.path(), &options);
    assert!(again.unwrap_err().to_string().contains("exists"));

    // A session that merged its adapters exports what it would have without.
    let mut merged = model.clone();
    merged.llm = merged.llm.merge_lora();
    let dir = tempfile::tempdir().unwrap();
    export_model(
        merged,
        &config,
        &files,
        dir.path(),
        &ExportOptions::default(),
    )
    .unwrap();
    let close = |a: &[f32], b: &[f32]| {
        let worst = a
            .iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let scale = b.iter().map(|b| b.abs()).fold(0.0, f32::max);
        assert_eq!(a.len(), b.len());
        assert!(worst < 1e-4 * scale, "{worst} of {scale}");
    };
    close(
        &logits(&open(dir.path(), &config, &device), &device),
        &before,
    );

    // Added to the weights: no adapters left, the same answers.
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        lora: LoraExport::Merged,
        ..ExportOptions::default()
    };
    export_model(model, &config, &files, dir.path(), &options).unwrap();
    let written = Checkpoint::open(dir.path()).unwrap();
    assert!(written.get(&format!("{layer}.weight")).is_some());
    assert!(
        !written
            .tensors()
            .any(|t| t.key.contains("lora") || t.key.contains("base_layer"))
    );
    let json = std::fs::read_to_string(dir.path().join("tpo.json")).unwrap();
    let plain: TpoConfig = serde_json::from_str(&json).unwrap();
    assert!(plain.llm.lora.is_none());
    let plain = open(dir.path(), &plain, &device);
    close(&logits(&plain, &device), &before);
}

#[test]
fn files_that_are_there_are_not_written_over() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let model = config().init::<BuiltInHeads>(&device).unwrap();
    let files = [("tokenizer.json".to_string(), b"{}".to_vec())];
    let mut options = ExportOptions::default();
    // Parts of a model that would be lost, or be read with this one.
    for name in [
        "tpo.json",
        "tokenizer.json",
        "tokenizer.model",
        "model.safetensors",
    ] {
        let other = dir.path().join(name);
        std::fs::write(&other, "other").unwrap();
        let target = check_target(dir.path(), &[], true, false)
            .unwrap_err()
            .to_string();
        assert!(
            target.contains(name) && target.contains("--overwrite"),
            "{target}"
        );
        let error = export_model(model.clone(), &config(), &files, dir.path(), &options);
        assert_eq!(error.unwrap_err().to_string(), target);
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
        std::fs::remove_file(other).unwrap();
    }
    // Beside a tokenizer that was put there for it, and files of others.
    for name in ["tokenizer.model", "notes.txt"] {
        std::fs::write(dir.path().join(name), "other").unwrap();
    }
    export_model(model.clone(), &config(), &[], dir.path(), &options).unwrap();
    assert!(dir.path().join("tokenizer.model").exists());
    options.overwrite = true;
    export_model(model, &config(), &files, dir.path(), &options).unwrap();
    assert!(!dir.path().join("tokenizer.model").exists());
    assert!(dir.path().join("notes.txt").exists());
    // No directory.
    let file = dir.path().join("notes.txt");
    assert!(check_target(&file, &[], true, true).is_err());
}

#[test]
fn inputs_are_not_written_over_whatever_is_allowed() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let session = Session::nano(&device, 1, SessionOptions::default()).unwrap();
    session.save(&model).unwrap();
    let files = || {
        let entries = std::fs::read_dir(&model)
            .unwrap()
            .map(|e| e.unwrap().path());
        let mut files: Vec<_> = entries
            .map(|p| (p.clone(), std::fs::read(p).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let options = ExportOptions {
        overwrite: true,
        ..ExportOptions::default()
    };
    // Itself, by another name, and the folder that it is in.
    for out in [model.clone(), model.join("../model"), folder.path().into()] {
        let convert =
            convert_model::<BuiltInHeads>(&model, &out, Quantize::default(), &options, None);
        let mean = average_models(&[model.clone(), model.clone()], &out, &options);
        for error in [convert.unwrap_err(), mean.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("is or contains the input"), "{text}");
        }
        assert_eq!(files(), before);
    }
    // A folder beside, of which the name begins alike, holds nothing of it.
    let beside = folder.path().join("mod");
    convert_model::<BuiltInHeads>(&model, &beside, Quantize::default(), &options, None).unwrap();
    assert_eq!(files(), before);
}

#[test]
fn a_mean_of_models_is_a_model() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let save = |seed: u64, name: &str| {
        let dir = folder.path().join(name);
        let session = Session::nano(&device, seed, SessionOptions::default()).unwrap();
        session.save(&dir).unwrap();
        dir
    };
    let (one, other) = (save(1, "one"), save(2, "other"));
    let out = folder.path().join("mean");
    // In shards, of files that are whole.
    let options = ExportOptions {
        max_shard_bytes: 1_000_000,
        ..ExportOptions::default()
    };
    average_models(&[one.clone(), other.clone(), one.clone()], &out, &options).unwrap();
    assert!(out.join("model.safetensors.index.json").exists());
    let [a, b, mean] = [&one, &other, &out].map(|d| Checkpoint::open(d).unwrap());
    let values = |c: &Checkpoint, key: &str| {
        let data = read_tensor(c.get(key).unwrap()).unwrap();
        data.iter::<f32>().collect::<Vec<f32>>()
    };
    let mut moved = 0;
    for tensor in mean.tensors() {
        let [a, b, mean] = [&a, &b, &mean].map(|c| values(c, &tensor.key));
        for ((a, b), mean) in a.iter().zip(&b).zip(mean) {
            let expected = (2.0 * a + b) / 3.0;
            assert!(
                (mean - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
                "{}",
                tensor.key
            );
            moved += usize::from(a != b);
        }
    }
    assert!(moved > 10_000, "{moved}");
    Session::open(&out, &device, SessionOptions::default(), None).unwrap();

    // Another configuration, and adapters.
    let config = config();
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    let adapted = folder.path().join("adapted");
    let files = [("tokenizer.json".to_string(), b"{}".to_vec())];
    export_model(model, &config, &files, &adapted, &ExportOptions::default()).unwrap();
    let dirs = [one.clone(), adapted.clone()];
    let error = average_models(&dirs, &out, &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("adapted: its tpo.json is not that of"),
        "{error}"
    );
    assert!(error.contains("instead of"), "{error}");
    let missing = folder.path().join("missing");
    for (dirs, expected) in [
        (
            vec![one.clone()],
            "two or more checkpoints to average, 1 given",
        ),
        (vec![one.clone(), missing], "missing: is not a directory"),
        (vec![folder.path().into(), one.clone()], "holds no tpo.json"),
    ] {
        let error = average_models(&dirs, &out, &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let dirs = [adapted, one];
    let error = average_models(&dirs, &out, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("--merge"), "{error}");
}
