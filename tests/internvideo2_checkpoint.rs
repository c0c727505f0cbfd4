//! The published files of InternVideo2-CLIP: full-size names, strict loading, LoRA spellings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use tpo::heads::temporal::features::InternVideo2Files;
use tpo::llm::text_tower::text_rules;
use tpo::llm::{LlmConfig, TextTower, TextTowerConfig};
use tpo::model::inspect::{LayoutChoice, inspect, internvideo2_clip_layout};
use tpo::vision::internvideo2::load::vision_rules;
use tpo::vision::internvideo2::{InternVideo2, InternVideo2Config};
use tpo::weights::{Dtype, KeyMap, Manifest, ManifestTensor, module_params, write_sparse};

/// Keys and shapes a module expects, without creating its values.
fn expected<M: Module>(module: &M, rules: &dyn KeyMap) -> BTreeMap<String, Vec<usize>> {
    let params = module_params(module);
    let has = |path: &str| params.iter().any(|p| p.path == path);
    params
        .iter()
        .map(|p| {
            (
                rules.checkpoint_key(&p.path, &has).unwrap(),
                p.shape.clone(),
            )
        })
        .collect()
}

#[test]
fn the_full_size_towers_have_the_published_names_and_shapes() {
    let device = Device::flex();
    let video = InternVideo2Config::internvideo2_1b().init(&device).unwrap();
    let text = TextTowerConfig::internvideo2_clip().init(&device).unwrap();
    let mut ours = expected(&video, &vision_rules().unwrap());
    ours.extend(expected(&text, &text_rules().unwrap()));
    let published: BTreeMap<String, Vec<usize>> = internvideo2_clip_layout()
        .unwrap()
        .tensors
        .into_iter()
        .filter(|t| !t.optional)
        .map(|t| (t.key, t.shape))
        .collect();
    assert_eq!(ours.len(), 957);
    assert_eq!(ours, published);
}

#[test]
fn the_merged_checkpoint_is_recognised_at_full_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = internvideo2_clip_layout().unwrap();
    write_sparse(&layout, &dir.path().join("a")).unwrap();
    let found = inspect(&dir.path().join("a"), LayoutChoice::Auto).unwrap();
    assert!(found.is_fine());
    assert_eq!(found.layout.as_deref(), Some("internvideo2-clip"));
    let text = found.to_string();
    assert!(
        text.contains("6692417536") && text.contains("q_proj, v_proj"),
        "{text}"
    );

    // The spelling of older peft, and without `temp`.
    layout.tensors.retain(|t| t.key != "temp");
    for t in &mut layout.tensors {
        t.key = t.key.replace(".base_layer.", ".");
    }
    write_sparse(&layout, &dir.path().join("b")).unwrap();
    let found = inspect(&dir.path().join("b"), LayoutChoice::Auto).unwrap();
    assert!(found.is_fine(), "{:?}", found.problems());
    assert_eq!(found.layout.as_deref(), Some("internvideo2-clip"));

    layout
        .tensors
        .retain(|t| !t.key.ends_with("blocks.3.ls1.gamma"));
    write_sparse(&layout, &dir.path().join("c")).unwrap();
    let found = inspect(&dir.path().join("c"), LayoutChoice::Auto).unwrap();
    assert!(found.problems()[0].contains("vision_encoder.blocks.3.ls1.gamma"));
}

/// Towers of all 40 and 32 layers, and tiny in every other way.
fn narrow(device: &Device) -> (InternVideo2, TextTower) {
    let mut config = InternVideo2Config::mini();
    (config.depth, config.embed_dim, config.img_size) = (40, 16, 28);
    let decoder = LlmConfig::new(30, 8, 12, 32, 2, 2, 4).with_rms_norm_eps(1e-6);
    let lora = TextTowerConfig::internvideo2_lora();
    let text = TextTowerConfig::of(decoder, lora, config.clip_embed_dim);
    (config.init(device).unwrap(), text.init(device).unwrap())
}

/// The three published files for the narrow towers, as `(vision, text, clip)`.
struct Published {
    vision: BTreeMap<String, Vec<usize>>,
    text: BTreeMap<String, Vec<usize>>,
    clip: BTreeMap<String, Vec<usize>>,
}

impl Published {
    fn new(video: &InternVideo2, text: &TextTower) -> Self {
        let mut vision = expected(video, &vision_rules().unwrap());
        let clip = vision
            .iter()
            .filter(|(key, _)| key.contains("clip_projector"))
            .map(|(key, shape)| (key.clone(), shape.clone()))
            .collect();
        // Four frames of 2x2 patches, and what other models in the file have.
        vision.insert("vision_encoder.pos_embed".into(), vec![1, 17, 16]);
        for junk in [
            "vision_encoder.clip_decoder.0.head.weight",
            "vision_encoder.final_clip_decoder.norm.bias",
            "vision_encoder.clip_pos_embed",
            "vision_encoder.img_pos_embed",
            "text_encoder.bert.embeddings.word_embeddings.weight",
            "itm_head.weight",
            "temp",
        ] {
            vision.insert(junk.into(), vec![3]);
        }
        // The names of InternVL-C with the adapters of peft before 0.6.
        let mut text: BTreeMap<String, Vec<usize>> = expected(text, &text_rules().unwrap())
            .into_iter()
            .map(|(key, shape)| {
                let key = key.strip_prefix("text_encoder.").unwrap();
                (key.replace(".base_layer.", "."), shape)
            })
            .collect();
        for junk in [
            "blocks.0.norm1.weight",
            "logit_scale",
            "transformer.layers.31.self_attn.rotary_emb.inv_freq",
        ] {
            text.insert(junk.into(), vec![2]);
        }
        Self { vision, text, clip }
    }

    fn write(&self, dir: &Path, wrapper: &str) -> InternVideo2Files {
        let file = |name: &str, tensors: &BTreeMap<String, Vec<usize>>| -> PathBuf {
            let manifest = Manifest {
                name: name.into(),
                tensors: tensors
                    .iter()
                    .map(|(key, shape)| ManifestTensor {
                        key: format!("{wrapper}{key}"),
                        dtype: Dtype::F32,
                        blocks: None,
                        shape: shape.clone(),
                        shard: None,
                        optional: false,
                    })
                    .collect(),
            };
            let path = dir.join(name);
            write_sparse(&manifest, &path).unwrap();
            path.join("model.safetensors")
        };
        InternVideo2Files {
            vision: file("vision", &self.vision),
            vision_kind: Default::default(),
            text: file("text", &self.text),
            clip: Some(file("clip", &self.clip)),
        }
    }
}

fn load(edit: impl FnOnce(&mut Published), wrapper: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let (video, text) = narrow(&Device::flex());
    let mut files = Published::new(&video, &text);
    edit(&mut files);
    let (video, text, reports) = files
        .write(dir.path(), wrapper)
        .load(video, text, &Default::default())
        .map_err(|e| e.to_string())?;
    assert!(reports.iter().all(|r| r.is_complete()));
    // The files hold zeros; so must every parameter.
    let values = |v: f32| assert_eq!(v, 0.0);
    values(video.position_table(false).abs().sum().into_scalar());
    values(video.blocks[39].ls2.gamma.val().abs().sum().into_scalar());
    values(
        video
            .clip_projector
            .cross_attn
            .proj
            .weight
            .val()
            .abs()
            .sum()
            .into_scalar(),
    );
    let q = &text.transformer.model.layers[31].self_attn.q_proj;
    values(q.weight.val().abs().sum().into_scalar());
    Ok(())
}

#[test]
fn the_three_files_load_wrapped_or_not() {
    load(|_| {}, "").unwrap();
    load(|_| {}, "module.").unwrap();
    // Newer peft.
    let newer = |files: &mut Published| {
        files.text = std::mem::take(&mut files.text)
            .into_iter()
            .map(|(key, shape)| {
                let adapted = [".q_proj.weight", ".v_proj.weight"];
                if adapted.iter().any(|tail| key.ends_with(tail)) {
                    (key.replace(".weight", ".base_layer.weight"), shape)
                } else {
                    (key, shape)
                }
            })
            .collect();
    };
    load(newer, "").unwrap();
}

#[test]
fn nothing_stays_random() {
    let q = "transformer.layers.9.self_attn.q_proj.weight";
    let error = load(|f| drop(f.text.remove(q)), "").unwrap_err();
    assert!(
        error.contains("transformer.layers.9.self_attn.q_proj"),
        "{error}"
    );
    let lora = "transformer.layers.9.self_attn.v_proj.lora_B.default.weight";
    assert!(load(|f| drop(f.text.remove(lora)), "").is_err());
    let gamma = "vision_encoder.blocks.39.ls1.gamma";
    let error = load(|f| drop(f.vision.remove(gamma)), "").unwrap_err();
    assert!(error.contains(gamma), "{error}");
    let table = "vision_encoder.pos_embed";
    let error = load(|f| drop(f.vision.remove(table)), "").unwrap_err();
    assert!(error.contains(table), "{error}");
    // In neither of the two files that may have it.
    let pool = "vision_encoder.clip_projector.norm1_q.bias";
    load(|f| drop(f.vision.remove(pool)), "").unwrap();
    load(|f| drop(f.clip.remove(pool)), "").unwrap();
    let both = |f: &mut Published| {
        f.vision.remove(pool);
        f.clip.remove(pool);
    };
    let error = load(both, "").unwrap_err();
    assert!(error.contains(pool), "{error}");
}

#[test]
fn strange_keys_and_shapes_are_refused() {
    for key in [
        "vision_encoder.blocks.40.ls1.gamma",
        "vision_encoder.norm.weight",
    ] {
        let error = load(|f| drop(f.vision.insert(key.into(), vec![16])), "").unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    let key = "transformer.layers.32.input_layernorm.weight";
    let error = load(|f| drop(f.text.insert(key.into(), vec![8])), "").unwrap_err();
    assert!(error.contains(key), "{error}");
    let error = load(
        |f| drop(f.clip.insert("vision_proj.bias".into(), vec![8])),
        "",
    )
    .unwrap_err();
    assert!(error.contains("vision_proj.bias"), "{error}");
    let table = "vision_encoder.pos_embed";
    let error = load(|f| drop(f.vision.insert(table.into(), vec![1, 18, 16])), "").unwrap_err();
    assert!(error.contains("18 rows for 4 steps"), "{error}");
    let error = load(|f| drop(f.vision.insert(table.into(), vec![1, 17, 8])), "").unwrap_err();
    assert!(error.contains("[1, 17, 8]"), "{error}");
}
