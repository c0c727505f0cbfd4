//! LLaVA-OneVision's files in their four layouts: at full size without their data, broken in every way, and small
//! ones that are loaded.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{Device, TensorData};
use serde_json::{Value, json};
use tpo::core::geometry::{Packing, Tiling, UnpadRule};
use tpo::core::model::CallOrder;
use tpo::core::traits::VisualShape;
use tpo::export::{ExportOptions, convert_model, export_model};
use tpo::features::{FeatureTowers, OwnClips};
use tpo::heads::temporal::TemporalHead;
use tpo::model::inspect::{Inspection, LayoutChoice, inspect};
use tpo::model::{ConnectorConfig, Names, PromptStyle, Quantize, VisionConfig, videochat_tasks};
use tpo::vision::{OneVisionConnectorConfig, SiglipConfig};
use tpo::{BuiltInHeads, TpoConfig};
use tpo_core::weights::{
    Checkpoint, Dtype, KeyMap, Manifest, ManifestTensor, SaveOptions, TensorSource, module_params,
    read_tensor, save_tensors, write_sparse,
};

/// The tensors of the published files of a size (`0.5b`, `7b`) with these names.
fn published(size: &str, names: Names) -> Manifest {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llava_onevision_manifest.json");
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let (keys, shape, dtype) = match names {
        Names::Original => ("original", "shape_original", Dtype::BF16),
        Names::HuggingFace | Names::HuggingFace5 => ("hf", "shape_hf", Dtype::F16),
        Names::InMemory => ("hf_v5", "shape_hf", Dtype::F16),
    };
    let tensors = json["models"][size]["keys"].as_array().unwrap().iter();
    let tensors = tensors.map(|t| {
        let key = t[keys].as_str().unwrap().to_string();
        let key = match names {
            Names::HuggingFace5 => key.replace("vision_tower.vision_model.", "vision_tower."),
            _ => key,
        };
        let shape = t[shape].as_array().unwrap().iter();
        tensor(
            &key,
            shape.map(|n| n.as_u64().unwrap() as usize).collect(),
            dtype,
        )
    });
    Manifest {
        name: format!("{size} {names:?}"),
        tensors: tensors.collect(),
    }
}

fn tensor(key: &str, shape: Vec<usize>, dtype: Dtype) -> ManifestTensor {
    ManifestTensor {
        key: key.into(),
        dtype,
        shape,
        shard: None,
        optional: false,
        blocks: None,
    }
}

fn written(manifest: &Manifest) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_sparse(manifest, dir.path()).unwrap();
    dir
}

fn looked_at(dir: &Path) -> Inspection {
    inspect(dir, LayoutChoice::Auto).unwrap()
}

/// The one problem of the checkpoint, which names all of `parts`.
fn assert_refused(dir: &Path, parts: &[&str]) {
    let found = looked_at(dir);
    let problems = found.problems();
    assert_eq!(problems.len(), 1, "{found}");
    for part in parts {
        assert!(
            problems[0].contains(part),
            "`{part}` is not in: {}",
            problems[0]
        );
    }
}

#[test]
fn every_tensor_of_the_published_files_is_accounted_for() {
    for (size, tensors, width) in [("0.5b", 716, 896), ("7b", 765, 3584)] {
        for names in Names::ALL {
            let manifest = published(size, names);
            let dir = written(&manifest);
            let start = Instant::now();
            let found = looked_at(dir.path());
            assert!(start.elapsed() < Duration::from_secs(5), "{size} {names:?}");
            assert!(found.is_fine(), "{size} {names:?}: {:?}", found.problems());
            let layout = format!("llava-onevision of width {width}, {}", names.describe());
            assert_eq!(found.layout, Some(layout));
            assert_eq!((found.tensors, found.bytes), (tensors, manifest.bytes()));
            let counts = found.parts.iter().map(|p| (p.name.as_str(), p.tensors));
            let llm = tensors - 426;
            assert_eq!(
                counts.collect::<Vec<_>>(),
                [
                    ("vision_tower", 421),
                    ("projector", 4),
                    ("image_newline", 1),
                    ("language model", llm)
                ]
            );
            assert_eq!(found.notes, [""; 0]);
        }
    }
}

#[test]
fn a_renamed_key_or_a_wrong_shape_is_named_as_the_file_names_it() {
    for names in Names::ALL {
        let whole = published("0.5b", names);
        let key_of = |end: &str| {
            let mut keys = whole.tensors.iter().map(|t| &t.key);
            keys.find(|key| key.ends_with(end)).unwrap().clone()
        };
        for (end, renamed) in [
            ("encoder.layers.3.layer_norm1.bias", "norm1.bias"),
            ("layers.7.mlp.up_proj.weight", "up.weight"),
            ("image_newline", "image_new_line"),
        ] {
            let mut manifest = whole.clone();
            let key = key_of(end);
            let wrong = format!("{}{renamed}", &key[..key.len() - end.len()]);
            for t in manifest.tensors.iter_mut().filter(|t| t.key == key) {
                t.key = wrong.clone();
            }
            let (missing, unexpected) = (format!("Missing: `{key}`"), format!("`{wrong}`"));
            let dir = written(&manifest);
            assert_refused(
                dir.path(),
                &["1 missing, 1 unexpected", &missing, &unexpected],
            );
            let mut manifest = whole.clone();
            for t in manifest.tensors.iter_mut().filter(|t| t.key == key) {
                t.shape[0] += 1;
            }
            let dir = written(&manifest);
            assert_refused(
                dir.path(),
                &["1 mismatched", &format!("`{key}`"), "expected ["],
            );
        }
    }
    // A name of another layout is none of this one.
    let mut manifest = published("7b", Names::Original);
    for t in manifest
        .tensors
        .iter_mut()
        .filter(|t| t.key == "model.image_newline")
    {
        t.key = "image_newline".into();
    }
    let dir = written(&manifest);
    assert_refused(dir.path(), &["`model.image_newline`", "`image_newline`"]);
    // Tables may be longer as a conversion makes them, and only there.
    for (names, rows) in [(Names::Original, 152_000), (Names::HuggingFace, 152_064)] {
        let mut manifest = published("0.5b", names);
        let table = |t: &&mut ManifestTensor| t.key.ends_with("embed_tokens.weight");
        let table = manifest.tensors.iter_mut().find(table).unwrap();
        table.shape[0] = rows;
        let dir = written(&manifest);
        assert_refused(
            dir.path(),
            &["embed_tokens.weight", "expected [151936, 896]"],
        );
    }
}

/// A tied model may hold its output layer, if it is the embedding.
#[test]
fn an_output_layer_that_is_not_the_embedding_is_refused() {
    for names in Names::ALL {
        let mut manifest = published("0.5b", names);
        let table = |t: &&ManifestTensor| t.key.ends_with("embed_tokens.weight");
        let table = manifest.tensors.iter().find(table).unwrap().clone();
        let output = match names {
            Names::HuggingFace | Names::HuggingFace5 => "language_model.lm_head.weight",
            Names::Original | Names::InMemory => "lm_head.weight",
        };
        manifest
            .tensors
            .push(tensor(output, table.shape, table.dtype));
        let decoder = table.key.replace("embed_tokens.weight", "");
        let buffer = format!("{decoder}layers.0.self_attn.rotary_emb.inv_freq");
        manifest.tensors.push(tensor(&buffer, vec![32], Dtype::F32));
        let dir = written(&manifest);
        let found = looked_at(dir.path());
        assert!(found.is_fine(), "{names:?}: {:?}", found.problems());
        // One row of the words is another.
        let entry = Checkpoint::open(dir.path())
            .unwrap()
            .get(output)
            .unwrap()
            .clone();
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(&*entry.file)
            .unwrap();
        file.seek(SeekFrom::Start(entry.offset + 151_900 * 896 * 2))
            .unwrap();
        file.write_all(&[1, 60]).unwrap();
        assert_refused(
            dir.path(),
            &[
                "1 mismatched",
                output,
                "tie_word_embeddings",
                "rows 151552 to 151935",
            ],
        );
    }
}

fn original_json() -> Value {
    json!({
        "model_type": "llava", "architectures": ["LlavaQwenForCausalLM"], "vocab_size": 151936,
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 32768, "sliding_window": 32768, "use_sliding_window": false,
        "max_window_layers": 24, "hidden_act": "silu", "mm_hidden_size": 1152,
        "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(6x6)", "mm_spatial_pool_mode": "bilinear"
    })
}

/// As `save_pretrained` writes it: without what the classes have by themselves.
fn hugging_face_json() -> Value {
    let mut pinpoints = Vec::new();
    for rows in 1..=6 {
        pinpoints.extend((1..=6).map(|columns| [384 * rows, 384 * columns]));
    }
    json!({
        "model_type": "llava_onevision", "image_token_index": 151646, "video_token_index": 151647,
        "projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": pinpoints,
        "text_config": {
            "model_type": "qwen2", "vocab_size": 152000, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "rope_theta": 1000000.0, "tie_word_embeddings": true
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
            "vision_use_head": false
        }
    })
}

#[test]
fn the_configuration_beside_the_weights_is_read() {
    for (names, json, bad) in [
        (
            Names::Original,
            original_json(),
            [
                (
                    "/mm_projector_type",
                    json!("linear"),
                    "mm_projector_type is \"linear\"",
                ),
                (
                    "/mm_vision_tower",
                    json!("openai/clip"),
                    "mm_vision_tower is \"openai/clip\"",
                ),
                ("/image_grid_pinpoints", json!([[384, 380]]), "multiple"),
                (
                    "/image_aspect_ratio",
                    json!("pad"),
                    "image_aspect_ratio is \"pad\"",
                ),
            ],
        ),
        (
            Names::HuggingFace5,
            hugging_face_json(),
            [
                (
                    "/vision_feature_layer",
                    json!(-2),
                    "vision_feature_layer is -2",
                ),
                (
                    "/vision_config/hidden_act",
                    json!("relu"),
                    "hidden_act is \"relu\"",
                ),
                (
                    "/text_config/hidden_act",
                    json!("gelu"),
                    "hidden_act `gelu`",
                ),
                (
                    "/vision_feature_select_strategy",
                    json!("default"),
                    "expected full",
                ),
            ],
        ),
    ] {
        let dir = written(&published("0.5b", names));
        let file = dir.path().join("config.json");
        std::fs::write(&file, json.to_string()).unwrap();
        let found = looked_at(dir.path());
        assert!(found.is_fine(), "{:?}", found.problems());
        assert!(found.layout.unwrap().contains("width 896"));
        for (at, value, part) in bad {
            let mut json = json.clone();
            let (table, key) = at.rsplit_once('/').unwrap();
            json.pointer_mut(table).unwrap()[key] = value;
            std::fs::write(&file, json.to_string()).unwrap();
            let error = inspect(dir.path(), LayoutChoice::Auto)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(part) && error.contains("config.json"),
                "{error}"
            );
        }
        // It says the sizes.
        let layers = ["/num_hidden_layers", "/text_config/num_hidden_layers"];
        let mut json = json.clone();
        let layers = layers.into_iter().find(|at| json.pointer(at).is_some());
        *json.pointer_mut(layers.unwrap()).unwrap() = 23.into();
        std::fs::write(&file, json.to_string()).unwrap();
        assert_refused(dir.path(), &["12 unexpected", "layers.23."]);
    }
}

#[test]
fn presets_are_the_published_sizes() {
    let parameters = [
        (TpoConfig::llava_ov_tpo_0_5b(), 893_618_208),
        (TpoConfig::llava_ov_tpo_7b(), 8_030_348_832),
    ];
    for (config, parameters) in parameters {
        config.validate::<BuiltInHeads>().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        let read = TpoConfig::from_json(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        let model = config.init::<BuiltInHeads>(&Device::flex()).unwrap();
        let base = module_params(&model).into_iter().filter(|p| {
            let head = p.path.starts_with("heads.") || p.path.starts_with("task_tokens.");
            !head && !p.path.contains(".lora.")
        });
        let count: usize = base.map(|p| p.shape.iter().product::<usize>()).sum();
        // The norm after the tower is in the files and not used.
        assert_eq!(count + 2 * 1152, parameters);
        let tasks = &config.tasks;
        assert_eq!(tasks.by_routing(151_648).unwrap().placeholder.id, 151_651);
        assert_eq!(
            tasks.by_routing(151_652).unwrap().placeholder.token,
            "<tracking>"
        );
        assert_eq!(tasks.box_prompt.as_ref().unwrap().id, 151_654);
        assert_eq!(config.prompt, PromptStyle::Qwen);
        assert_eq!(config.call_order, CallOrder::AsTrained);
        let rows = |visual: VisualShape| config.rows(&visual).unwrap();
        assert_eq!(rows(VisualShape::video((1920, 1080), 32)), 6273);
        assert_eq!(rows(VisualShape::image((640, 480))), 730);
        let packing = config.connector.packing().unwrap();
        let size = (640, 480);
        let tiles = packing.tiling.canvas(size).unwrap().pictures();
        let image = VisualShape {
            pictures: tiles,
            ..VisualShape::image(size)
        };
        assert_eq!(rows(image), 2929);
        let one_less = VisualShape {
            pictures: tiles - 1,
            ..image
        };
        assert!(config.rows(&one_less).is_err());
    }
    let mut bad = TpoConfig::llava_ov_tpo_0_5b();
    if let ConnectorConfig::OneVision(connector) = &mut bad.connector {
        connector.packing.side = 26;
    }
    let text = bad.validate::<BuiltInHeads>().unwrap_err().to_string();
    assert!(text.contains("packing.side: 27 and 26"), "{text}");
}

/// What CG-DETR's published tensors fit of a temporal head: all of its features but those as wide as text, or as the
/// means of SigLIP's tokens.
#[test]
fn a_temporal_head_begins_with_the_published_tensors() {
    let shapes = |config: &TpoConfig| -> BTreeMap<String, Vec<usize>> {
        let model = config.init::<BuiltInHeads>(&Device::flex()).unwrap();
        let params = module_params(&model).into_iter();
        let of_head = params.filter(|p| p.path.starts_with("heads.temporal.model."));
        of_head.map(|p| (p.path, p.shape)).collect()
    };
    let published = shapes(&TpoConfig::videochat_tpo());
    assert_eq!(published.len(), 285);
    for mut config in [TpoConfig::llava_ov_tpo_0_5b(), TpoConfig::llava_ov_tpo_7b()] {
        assert_eq!(config.features, FeatureTowers::InternVideo2Video);
        let other = |config: &TpoConfig| -> Vec<String> {
            let own = shapes(config);
            assert_eq!(own.len(), 285);
            let fits = |path: &String| own.get(path) == published.get(path);
            own.keys().filter(|path| !fits(path)).cloned().collect()
        };
        let text = other(&config);
        assert_eq!(text.len(), 6, "{text:?}");
        assert!(
            text.iter().all(|path| path.contains("txt_proj")),
            "{text:?}"
        );
        let means = FeatureTowers::Own(OwnClips {
            frames_per_second: 1.0,
            frames_per_clip: 1,
            features_per_clip: 1,
        });
        config.set_features(means).unwrap();
        config.validate::<BuiltInHeads>().unwrap();
        let temporal = config.heads.get::<TemporalHead>().unwrap();
        assert_eq!(temporal.model.d_video, 1152);
        assert_eq!(other(&config).len(), 9);
        // As it was.
        config
            .set_features(FeatureTowers::InternVideo2Video)
            .unwrap();
        assert_eq!(other(&config), text);
    }
}

/// A small model of the same build, for the byte tokenizer.
fn small(tied: bool) -> TpoConfig {
    let mut config = TpoConfig::nano(318);
    let packing = Packing {
        side: 2,
        tiling: Tiling::up_to(30, 2),
        ..Packing::one_vision(UnpadRule::Original)
    };
    config.vision = VisionConfig::Siglip(SiglipConfig::new(30, 14, 128, 2, 4, 96));
    config.connector = ConnectorConfig::OneVision(OneVisionConnectorConfig::new(128, 128, packing));
    config.input.size = 30;
    config.prompt = PromptStyle::Qwen;
    config.llm.tie_word_embeddings = tied;
    config.llm.attention_bias = true;
    config.tasks = videochat_tasks(259);
    config
}

/// All tensors of a directory by name.
fn tensors(dir: &Path) -> BTreeMap<String, TensorData> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let all = checkpoint
        .tensors()
        .map(|t| (t.key.clone(), read_tensor(t).unwrap()));
    all.collect()
}

#[test]
fn a_model_is_loaded_from_any_layout_and_written_in_the_original_one() {
    let tokenizer = include_bytes!("../assets/byte_tokenizer.json").to_vec();
    let files = [("tokenizer.json".to_string(), tokenizer)];
    for tied in [true, false] {
        let config = small(tied);
        let device = Device::flex();
        device.seed(3);
        let model = config.init::<BuiltInHeads>(&device).unwrap();
        let root = tempfile::tempdir().unwrap();
        let whole = root.path().join("whole");
        export_model(
            model.clone(),
            &config,
            &files,
            &whole,
            &ExportOptions::default(),
        )
        .unwrap();
        let expected = tensors(&whole);
        assert!(expected.contains_key(
            "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias"
        ));
        let found = looked_at(&whole);
        assert!(found.is_fine(), "{:?}", found.problems());
        assert!(
            found.layout.as_ref().unwrap().starts_with("llava-ov-tpo"),
            "{found}"
        );
        assert!(found.parts.iter().all(|p| !p.name.is_empty()), "{found}");
        let (original, params) = (
            config.keys::<BuiltInHeads>().unwrap(),
            module_params(&model),
        );
        let has = |path: &str| params.iter().any(|p| p.path == path);
        for names in Names::ALL {
            // The same tensors under other names, tables filled up as Hugging Face does, and what is not used.
            let keys = config.keys_named::<BuiltInHeads>(names).unwrap();
            let mut renamed: BTreeMap<String, TensorData> = BTreeMap::new();
            for param in &params {
                let data = expected[&original.checkpoint_key(&param.path, &has).unwrap()].clone();
                let key = keys.checkpoint_key(&param.path, &has).unwrap();
                let table = param.path == "llm.model.embed_tokens.weight"
                    || param.path == "llm.lm_head.weight";
                let data = if table && names != Names::Original {
                    let mut values = data.try_to_vec::<f32>().unwrap();
                    values.extend(vec![9.0; 2 * 128]);
                    TensorData::new(values, [320, 128])
                } else {
                    data
                };
                renamed.insert(key, data);
            }
            let key = |path: &str| keys.checkpoint_key(path, &has).unwrap();
            let embedding = key("llm.model.embed_tokens.weight");
            if tied {
                let output = match names {
                    Names::HuggingFace | Names::HuggingFace5 => "language_model.lm_head.weight",
                    Names::Original | Names::InMemory => "lm_head.weight",
                };
                renamed.insert(output.into(), renamed[&embedding].clone());
            }
            let norm = key("vision.encoder.layers.0.layer_norm1.bias");
            let norm = norm.replace("encoder.layers.0.layer_norm1", "post_layernorm");
            renamed.insert(norm, TensorData::new(vec![1.0_f32; 128], [128]));
            let dir = root.path().join(format!("{names:?}"));
            std::fs::create_dir(&dir).unwrap();
            for file in ["tpo.json", "tokenizer.json"] {
                std::fs::copy(whole.join(file), dir.join(file)).unwrap();
            }
            let sources = renamed
                .iter()
                .map(|(key, data)| TensorSource::from_data(key, data).unwrap());
            save_tensors(sources.collect(), &dir, &SaveOptions::default()).unwrap();
            let found = looked_at(&dir);
            assert!(found.is_fine(), "{names:?}: {:?}", found.problems());

            let again = root.path().join(format!("{names:?} again"));
            let options = ExportOptions::default();
            convert_model::<BuiltInHeads>(&dir, &again, Quantize::default(), &options, None)
                .unwrap();
            let loaded = tensors(&again);
            assert!(loaded.keys().eq(expected.keys()), "{names:?}");
            for (key, data) in &expected {
                loaded[key].assert_eq(data, true);
            }
            if tied {
                let mut other = renamed.clone();
                let output = other
                    .keys()
                    .find(|k| k.ends_with("lm_head.weight"))
                    .unwrap()
                    .clone();
                let rows = other[&embedding].shape()[0];
                other.insert(
                    output.clone(),
                    TensorData::new(vec![2.0_f32; rows * 128], [rows, 128]),
                );
                let sources = other
                    .iter()
                    .map(|(key, data)| TensorSource::from_data(key, data).unwrap());
                let save = SaveOptions {
                    overwrite: true,
                    ..SaveOptions::default()
                };
                save_tensors(sources.collect(), &dir, &save).unwrap();
                let out = root.path().join("refused");
                let error =
                    convert_model::<BuiltInHeads>(&dir, &out, Quantize::default(), &options, None);
                let error = error.unwrap_err().to_string();
                assert!(
                    error.contains(&output) && error.contains("tie_word_embeddings"),
                    "{error}"
                );
            }
        }
    }
}
