//! Writing a module and reading it back.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::weights::{
    Checkpoint, DtypePolicy, KeyRules, LoadOptions, SaveOptions, WeightsError, load_module,
    save_module,
};

use crate::files::{NET, Net, checkpoint, write};

fn loaded() -> Net {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "model.safetensors", &checkpoint(NET));
    let checkpoint = Checkpoint::open(path).unwrap();
    load_module(
        Net::new(&Device::flex()),
        &checkpoint,
        &KeyRules::new(),
        &LoadOptions::default(),
    )
    .unwrap()
    .0
}

/// Data of every tensor as the format's own crate reads it.
fn contents(dir: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let mut out = Vec::new();
    for file in Checkpoint::open(dir).unwrap().files() {
        let bytes = std::fs::read(file).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in parsed.tensors() {
            out.push((
                name.to_string(),
                format!("{:?}", view.dtype()),
                view.shape().to_vec(),
                view.data().to_vec(),
            ));
        }
    }
    out.sort();
    out
}

#[test]
fn what_is_saved_comes_back_byte_for_byte() {
    let net = loaded();
    let dir = tempfile::tempdir().unwrap();
    let (one, many, again) = (
        dir.path().join("one"),
        dir.path().join("many"),
        dir.path().join("again"),
    );
    let rules = KeyRules::new();
    let report = save_module(&net, &rules, &one, &SaveOptions::default()).unwrap();
    assert_eq!(report.files, [one.join("model.safetensors")]);
    assert_eq!(report.tensors, NET.len());
    let small = SaveOptions {
        max_shard_bytes: 20,
        ..SaveOptions::default()
    };
    let report = save_module(&net, &rules, &many, &small).unwrap();
    assert!(report.files.len() > 3);
    assert!(
        report
            .files
            .last()
            .unwrap()
            .ends_with("model.safetensors.index.json")
    );
    assert_eq!(contents(&one), contents(&many));
    assert!(Checkpoint::open(&many).unwrap().notes().is_empty());

    let (net, _) = load_module(
        Net::new(&Device::flex()),
        &Checkpoint::open(&many).unwrap(),
        &rules,
        &LoadOptions::default(),
    )
    .unwrap();
    save_module(&net, &rules, &again, &SaveOptions::default()).unwrap();
    assert_eq!(
        std::fs::read(one.join("model.safetensors")).unwrap(),
        std::fs::read(again.join("model.safetensors")).unwrap()
    );
    let types: Vec<String> = contents(&one).into_iter().map(|c| c.1).collect();
    assert!(types.contains(&"BF16".to_string()) && types.contains(&"F32".to_string()));
}

#[test]
fn metadata_types_and_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sub").join("net.safetensors");
    let options = SaveOptions {
        dtype: DtypePolicy::Cast(FloatDType::F16),
        metadata: [("stage".to_string(), "3".to_string())].into(),
        ..SaveOptions::default()
    };
    save_module(&loaded(), &KeyRules::new(), &file, &options).unwrap();
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!(checkpoint.metadata()["stage"], "3");
    assert_eq!(checkpoint.metadata()["format"], "pt");
    let floats = checkpoint
        .tensors()
        .filter(|t| format!("{:?}", t.dtype) == "F16");
    assert_eq!(floats.count(), 9);
}

#[test]
fn an_existing_checkpoint_is_replaced_only_on_request_and_as_a_whole() {
    let net = loaded();
    let rules = KeyRules::new();
    let dir = tempfile::tempdir().unwrap();
    let sharded = SaveOptions {
        max_shard_bytes: 20,
        overwrite: true,
        ..SaveOptions::default()
    };
    let single = SaveOptions {
        overwrite: true,
        ..SaveOptions::default()
    };
    save_module(&net, &rules, dir.path(), &SaveOptions::default()).unwrap();
    let refused = save_module(&net, &rules, dir.path(), &SaveOptions::default());
    assert!(matches!(refused, Err(WeightsError::Exists { .. })));
    let want = contents(dir.path());
    for options in [&sharded, &single, &sharded] {
        save_module(&net, &rules, dir.path(), options).unwrap();
        assert_eq!(contents(dir.path()), want);
        assert!(Checkpoint::open(dir.path()).unwrap().notes().is_empty());
    }
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|n| !n.ends_with(".tmp")), "{names:?}");
    assert!(!names.contains(&"model.safetensors".to_string()));
}

#[test]
fn a_table_that_does_not_cover_the_module_saves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rules = KeyRules::new().owns(["blocks."]);
    let error = save_module(&loaded(), &rules, dir.path(), &SaveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`token`"), "{error}");
    let rules = KeyRules::new()
        .rewrite(&[], &[(r"blocks\.\d", "blocks")])
        .unwrap();
    let error = save_module(&loaded(), &rules, dir.path(), &SaveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is also the key of"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[derive(Module, Debug)]
struct Adapter {
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
struct Adapted {
    weight: Param<Tensor<2>>,
    lora: Option<Adapter>,
}

#[derive(Module, Debug)]
struct Decoder {
    q_proj: Adapted,
    k_proj: Linear,
}

fn decoder(adapter: bool) -> Decoder {
    let device = Device::flex();
    let random = |rows, columns| {
        let linear = LinearConfig::new(columns, rows).with_bias(false);
        Param::from_tensor(linear.init(&device).weight.val())
    };
    Decoder {
        q_proj: Adapted {
            weight: random(4, 3),
            lora: adapter.then(|| Adapter {
                a: random(2, 3),
                b: random(4, 2),
            }),
        },
        k_proj: LinearConfig::new(3, 4).with_bias(false).init(&device),
    }
}

fn peft() -> KeyRules {
    KeyRules::new()
        .prefix("base_model.model.", "")
        .lora("default")
}

#[test]
fn adapters_are_saved_under_pefts_names() {
    let dir = tempfile::tempdir().unwrap();
    let (with, without) = (dir.path().join("with"), dir.path().join("without"));
    let saved = decoder(true);
    save_module(&saved, &peft(), &with, &SaveOptions::default()).unwrap();
    let keys = |dir: &Path| -> Vec<String> {
        Checkpoint::open(dir)
            .unwrap()
            .tensors()
            .map(|t| t.key.clone())
            .collect()
    };
    assert_eq!(
        keys(&with),
        [
            "base_model.model.k_proj.weight",
            "base_model.model.q_proj.base_layer.weight",
            "base_model.model.q_proj.lora_A.default.weight",
            "base_model.model.q_proj.lora_B.default.weight",
        ]
    );
    let checkpoint = Checkpoint::open(&with).unwrap();
    let (back, _) =
        load_module(decoder(true), &checkpoint, &peft(), &LoadOptions::default()).unwrap();
    let data = |d: &Decoder| d.q_proj.lora.as_ref().unwrap().b.val().into_data();
    assert_eq!(data(&back), data(&saved));

    save_module(&decoder(false), &peft(), &without, &SaveOptions::default()).unwrap();
    assert_eq!(
        keys(&without),
        [
            "base_model.model.k_proj.weight",
            "base_model.model.q_proj.weight"
        ]
    );

    // The other way round the message says what is the matter.
    let error = load_module(
        decoder(false),
        &checkpoint,
        &peft(),
        &LoadOptions::default(),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("build the module with LoRA"), "{error}");
    let plain = Checkpoint::open(&without).unwrap();
    let error = load_module(decoder(true), &plain, &peft(), &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("allow_missing"), "{error}");
    let options = LoadOptions {
        allow_missing: vec![r"\.lora\.".into()],
        ..LoadOptions::default()
    };
    let (_, report) = load_module(decoder(true), &plain, &peft(), &options).unwrap();
    assert_eq!(report.missing.len(), 2);
}
