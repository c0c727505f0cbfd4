//! A small LLaVA-OneVision, and the files that its parts are published in.

use std::path::Path;

use burn::tensor::{Device, TensorData};
use serde_json::{Value, json};
use tpo::core::geometry::{Packing, Tiling, UnpadRule};
use tpo::data::FrameSampling;
use tpo::heads::mask::sam2::sam2_keys;
use tpo::heads::temporal::{CG_DETR_KEYS_INVERSE, CgDetrConfig};
use tpo::llm::config::videochat_lora;
use tpo::model::assemble::BaseFiles;
use tpo::model::{ConnectorConfig, Names, PromptStyle, VisionConfig, videochat_tasks};
use tpo::prelude::*;
use tpo::vision::{OneVisionConnectorConfig, SiglipConfig};
use tpo::weights::{
    DtypePolicy, KeyRules, SaveOptions, TensorSource, module_tensors, read_tensor, save_module,
    save_tensors,
};

/// Words of the small vocabulary, after which stand the base's three tokens of turns.
pub const WORDS: usize = 256;

/// Two tokens a side, tiles of 30 pixels on up to 2x2, all the rest as at full size.
pub fn small(tied: bool) -> TpoConfig {
    let mut config = TpoConfig::nano(318);
    let packing = Packing {
        side: 2,
        tiling: Tiling::up_to(30, 2),
        ..Packing::one_vision(UnpadRule::HuggingFace)
    };
    config.vision = VisionConfig::Siglip(SiglipConfig::new(30, 14, 128, 2, 4, 96));
    config.connector = ConnectorConfig::OneVision(OneVisionConnectorConfig::new(128, 128, packing));
    config.input.size = 30;
    config.input.frames = 32;
    config.input.sampling = FrameSampling::Linspace;
    config.prompt = PromptStyle::Qwen;
    config.llm.tie_word_embeddings = tied;
    config.llm.attention_bias = true;
    config.llm.lora = Some(videochat_lora());
    config.tasks = videochat_tasks(WORDS as u32 + 5);
    config.call_order = CallOrder::AsTrained;
    config
}

/// A byte-level tokenizer with so many words and Qwen2's tokens of turns after them.
pub fn tokenizer_json(words: usize) -> String {
    let mut json: Value =
        serde_json::from_slice(include_bytes!("../../assets/byte_tokenizer.json")).unwrap();
    let bytes = json["model"]["vocab"].as_object().unwrap().clone();
    let mut bytes: Vec<(u64, String)> = bytes
        .into_iter()
        .map(|(k, id)| (id.as_u64().unwrap(), k))
        .collect();
    bytes.sort();
    let bytes = bytes.into_iter().map(|(_, k)| k).skip(3).take(256);
    let filler = (256..words).map(|i| format!("filler {i}"));
    let vocab = bytes
        .chain(filler)
        .enumerate()
        .map(|(i, word)| (word, i.into()));
    json["model"]["vocab"] = Value::Object(vocab.collect());
    json["model"]["unk_token"] = Value::Null;
    let own = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .into_iter()
        .enumerate();
    let added = own.map(|(i, token)| {
        json!({"id": words + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json["added_tokens"] = added.collect();
    json["post_processor"] = Value::Null;
    json.to_string()
}

/// A base with these names, SAM 2, and a CG-DETR that reads text of another width.
pub fn base_files(dir: &Path, tied: bool, names: Names) -> BaseFiles {
    let (config, device) = (small(tied), Device::flex());
    device.seed(5);
    let base = dir.join("base");
    std::fs::create_dir_all(&base).unwrap();
    std::fs::write(base.join("tokenizer.json"), tokenizer_json(WORDS)).unwrap();
    std::fs::write(base.join("config.json"), config_json(&config).to_string()).unwrap();
    let mut plain = config.clone();
    plain.llm.lora = None;
    let model = plain.init::<BuiltInHeads>(&device).unwrap();
    let keys = plain.keys_named::<BuiltInHeads>(names).unwrap();
    let of_base = |path: &str| !path.starts_with("heads.") && !path.starts_with("task_tokens.");
    let save = SaveOptions::default();
    let tensors = module_tensors(&model, &keys, DtypePolicy::Keep, &of_base).unwrap();
    save_tensors(tensors, &base, &save).unwrap();
    if names != Names::Original {
        fill_up(&base);
    }
    let sam2 = dir.join("sam2.safetensors");
    save_module(&model.heads.mask.sam, &sam2_keys().unwrap(), &sam2, &save).unwrap();
    let temporal = dir.join("cg.safetensors");
    let read = config.heads.get::<TemporalHead>().unwrap().model;
    let detr = CgDetrConfig { d_text: 48, ..read };
    let rules = KeyRules::new().rewrite(&[], CG_DETR_KEYS_INVERSE).unwrap();
    save_module(&detr.init(&device).unwrap(), &rules, &temporal, &save).unwrap();
    BaseFiles {
        base,
        sam2,
        temporal: Some(temporal),
    }
}

/// As a conversion to Hugging Face's files does: random rows after the vocabulary.
fn fill_up(dir: &Path) {
    let checkpoint = tpo::weights::Checkpoint::open(dir).unwrap();
    let all: Vec<(String, TensorData)> = checkpoint
        .tensors()
        .map(|t| {
            let data = read_tensor(t).unwrap();
            if !t.key.ends_with("embed_tokens.weight") && !t.key.ends_with("lm_head.weight") {
                return (t.key.clone(), data);
            }
            let mut values = data.try_to_vec::<f32>().unwrap();
            values.extend(vec![9.0; 2 * 128]);
            (t.key.clone(), TensorData::new(values, [320, 128]))
        })
        .collect();
    let sources = all
        .iter()
        .map(|(key, data)| TensorSource::from_data(key, data).unwrap());
    let save = SaveOptions {
        overwrite: true,
        ..SaveOptions::default()
    };
    save_tensors(sources.collect(), dir, &save).unwrap();
}

/// The `config.json` of a base of these sizes, as llava-hf has it.
fn config_json(config: &TpoConfig) -> Value {
    let llm = &config.llm;
    json!({
        "model_type": "llava_onevision", "image_token_index": WORDS + 3, "video_token_index": WORDS + 4,
        "vision_feature_layer": -1, "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[30, 30], [30, 60], [60, 30], [60, 60]],
        "tie_word_embeddings": llm.tie_word_embeddings,
        "text_config": {
            "model_type": "qwen2", "vocab_size": llm.vocab_size, "hidden_size": 128,
            "intermediate_size": llm.intermediate_size, "num_hidden_layers": llm.num_hidden_layers,
            "num_attention_heads": llm.num_attention_heads, "num_key_value_heads": llm.num_key_value_heads,
            "rms_norm_eps": llm.rms_norm_eps, "rope_theta": llm.rope_theta,
            "max_position_embeddings": llm.max_position_embeddings,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 128, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30, "patch_size": 14
        }
    })
}
