//! The published bases' own `config.json`, written for their code.

use burn::tensor::TensorData;
use serde_json::{Value, json};
use tpo_core::geometry::{Merge, Packing, Pooling, VideoNewline};
use tpo_core::weights::DtypePolicy;
use tpo_data::prompts::qwen::NAMED_TOKENS;
use tpo_llm::LlmConfig;
use tpo_vision::SiglipConfig;

use super::Names;
use super::published::TOWER;
use crate::error::{Error, Result};
use crate::model::{ConnectorConfig, Quantize, TpoConfig, Vision, VisionConfig};

/// The base's `config.json` for files with these names, as [`published`](super::published::published) reads it.
///
/// # Errors
/// [`Error::Config`] with everything that the base's code could not make of the model.
pub(crate) fn config_json(config: &TpoConfig, names: Names) -> Result<Value> {
    let (VisionConfig::Siglip(tower), ConnectorConfig::OneVision(connector)) =
        (&config.vision, &config.connector)
    else {
        return Err(Error::Config {
            problems: "only a LLaVA-OV-TPO has a layout of its base's; leave the layout out".into(),
        });
    };
    let (packing, llm) = (&connector.packing, &config.llm);
    let plain = Packing {
        merge: Merge::SpatialUnpad,
        pooling: Pooling::Bilinear,
        newline: VideoNewline::OneToken,
        ..packing.clone()
    };
    let original = names == Names::Original;
    let whole = llm.num_attention_heads * llm.head_dim == llm.hidden_size;
    let problems = [
        (
            llm.lora.is_some(),
            "its adapters are beside the weights, where the base's code looks for none; merge them (`--merge`, \
             LoraExport::Merged)",
        ),
        (
            config.quantization() != Quantize::default(),
            "its weights are quantised in blocks that the base's code does not read; take the model they were \
             made of",
        ),
        (
            !llm.attention_bias || llm.sliding_window.is_some() || !whole,
            "its language model is no Qwen2 of the base's build",
        ),
        (
            original && *tower != SiglipConfig::so400m_patch14_384(),
            "the original files name their tower and know siglip-so400m-patch14-384 alone; take the layout of \
             Hugging Face",
        ),
        (
            !original && plain != *packing,
            "Hugging Face's code knows one way to make rows: spatial_unpad, bilinear pooling, one newline after a \
             video; take the original layout",
        ),
    ];
    let problems: Vec<&str> = problems.iter().filter(|p| p.0).map(|p| p.1).collect();
    if !problems.is_empty() {
        return Err(Error::Config {
            problems: problems.join("; "),
        });
    }
    Ok(if original {
        original_json(llm, packing)
    } else {
        hugging_face_json(config, tower, llm, packing)
    })
}

/// The norm that the files have and nothing reads, as one that changes nothing, so that code which builds it finds
/// it.
pub(crate) fn unused_norm(
    vision: &Vision,
    names: Names,
    dtype: DtypePolicy,
) -> Vec<(String, TensorData)> {
    let Vision::Siglip(tower) = vision else {
        return Vec::new();
    };
    let width = tower.config().hidden_size;
    let [(_, begins), ..] = names.parts();
    let tensor = |name: &str, value: f32| {
        let data = TensorData::new(vec![value; width], [width]);
        let begin = begins.first().map_or("", String::as_str);
        let key = format!("{begin}post_layernorm.{name}");
        (key, data.convert_dtype(dtype.of(tower.dtype())))
    };
    vec![tensor("weight", 1.0), tensor("bias", 0.0)]
}

/// Qwen2's keys.
fn text_json(llm: &LlmConfig) -> Value {
    json!({
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": llm.num_hidden_layers,
        "num_attention_heads": llm.num_attention_heads,
        "num_key_value_heads": llm.num_key_value_heads,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_theta": llm.rope_theta,
        "max_position_embeddings": llm.max_position_embeddings,
        "tie_word_embeddings": llm.tie_word_embeddings,
        "hidden_act": "silu",
        "use_sliding_window": false,
    })
}

fn aspect_ratio(packing: &Packing) -> String {
    match packing.max_tiles {
        Some(most) => format!("anyres_max_{most}"),
        None => "anyres".into(),
    }
}

fn original_json(llm: &LlmConfig, packing: &Packing) -> Value {
    let mut json = text_json(llm);
    // The original lists width first.
    let pinpoints = packing.tiling.pinpoints.iter();
    let pinpoints: Vec<[u32; 2]> = pinpoints.map(|[h, w]| [*w, *h]).collect();
    let more = json!({
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_hidden_size": 1152,
        "mm_vision_tower": format!("google/{TOWER}"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": match packing.merge {
            Merge::SpatialUnpad => "spatial_unpad",
            Merge::SpatialUnpadNobase => "spatial_unpad_nobase",
            Merge::Spatial => "spatial",
            Merge::Flat => "flat",
        },
        "mm_newline_position": match packing.newline {
            VideoNewline::OneToken => "one_token",
            VideoNewline::Grid => "grid",
            VideoNewline::Frame => "frame",
            VideoNewline::NoToken => "no_token",
        },
        "mm_spatial_pool_mode": match packing.pooling {
            Pooling::Bilinear => "bilinear",
            Pooling::Average => "average",
            Pooling::Max => "max",
        },
        "mm_spatial_pool_stride": 2,
        "mm_use_im_start_end": false,
        "mm_use_im_patch_token": false,
        "image_aspect_ratio": aspect_ratio(packing),
        "image_grid_pinpoints": pinpoints,
        "use_mm_proj": true,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": llm.max_position_embeddings,
    });
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}

fn hugging_face_json(
    config: &TpoConfig,
    tower: &SiglipConfig,
    llm: &LlmConfig,
    packing: &Packing,
) -> Value {
    // The base's own tokens stand in front of the task tokens.
    let first = config.tasks.tokens().map(|t| t.id).min().unwrap_or(0);
    let image = first.saturating_sub(NAMED_TOKENS.len() as u32);
    json!({
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_token_index": image,
        "video_token_index": image + 1,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": aspect_ratio(packing),
        "image_grid_pinpoints": packing.tiling.pinpoints,
        "tie_word_embeddings": llm.tie_word_embeddings,
        "text_config": text_json(llm),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "layer_norm_eps": tower.layer_norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "vision_use_head": false,
        },
    })
}
