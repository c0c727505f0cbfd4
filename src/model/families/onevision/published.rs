//! The published bases' own `config.json`: lmms-lab's, which is Qwen2's with more, and Hugging Face's, which has
//! an object for each part.

use serde_json::{Value, json};
use tpo_core::config::MOST;
use tpo_core::geometry::{Merge, Packing, Pooling, Tiling, UnpadRule, VideoNewline};
use tpo_core::weights::{Checkpoint, TensorEntry};
use tpo_llm::LlmConfig;
use tpo_vision::{OneVisionConnectorConfig, SiglipConfig};

use super::{FIRST_TASK_TOKEN, Names, around};
use crate::model::{ConnectorConfig, TpoConfig};

/// The tower that files of lmms-lab name, whose sizes they do not say.
pub(super) const TOWER: &str = "siglip-so400m-patch14-384";
/// Rows of Qwen2's tables, and what they have in llava-hf's files, filled up with random ones.
const FILLED: [(usize, usize); 2] = [(151_936, 152_000), (152_064, 152_128)];

/// Whether this is the `config.json` of a LLaVA-OneVision.
pub(crate) fn is_base(config: &Value) -> bool {
    is_hugging_face(config) || config["mm_vision_tower"].is_string()
}

fn is_hugging_face(config: &Value) -> bool {
    config["model_type"] == "llava_onevision"
}

/// The configuration of a LLaVA-OV-TPO on the base with this `config.json`, without adapters.
///
/// # Errors
/// Every value that asks for another model than this library builds, and sizes that are missing.
pub(crate) fn published(json: &Value) -> Result<TpoConfig, String> {
    let expected = if is_hugging_face(json) {
        HUGGING_FACE
    } else {
        ORIGINAL
    };
    let wrong = expected.iter().filter_map(|(key, allowed)| {
        let found = &json[*key];
        let fine = found.is_null() || allowed.iter().any(|a| found == a);
        (!fine).then(|| format!("{key} is {found}, expected {}", allowed.join(" or ")))
    });
    let wrong: Vec<String> = wrong.collect();
    if !wrong.is_empty() {
        return Err(format!(
            "{}; this version builds LLaVA-OneVision with SigLIP and Qwen2 alone",
            wrong.join("; ")
        ));
    }
    if is_hugging_face(json) {
        hugging_face(json)
    } else {
        original(json)
    }
}

/// The published model as wide as the one in `checkpoint`, for files without a `config.json`; `None` for other
/// widths and other models. It has adapters if the files do.
pub(crate) fn of_width(checkpoint: &Checkpoint) -> Option<TpoConfig> {
    let names = Names::of(checkpoint)?;
    let has = |is: &dyn Fn(&TensorEntry) -> bool| checkpoint.tensors().any(is);
    let mut presets = [TpoConfig::llava_ov_tpo_0_5b(), TpoConfig::llava_ov_tpo_7b()].into_iter();
    // Norms are as wide as the model.
    let wide = |width| has(&|t| t.key.ends_with("layernorm.weight") && t.shape == [width]);
    let mut config = presets.find(|config| wide(config.llm.hidden_size))?;
    if !has(&|t| t.key.contains(".lora_A.")) {
        config.llm.lora = None;
    }
    if let ConnectorConfig::OneVision(connector) = &mut config.connector
        && names != Names::Original
    {
        connector.packing.unpad = UnpadRule::HuggingFace;
    }
    Some(config)
}

/// Keys that say how the model computes, with the values that this library has.
const HUGGING_FACE: &[(&str, &[&str])] = &[
    ("projector_hidden_act", &["gelu"]),
    ("vision_feature_select_strategy", &["full"]),
];
const ORIGINAL: &[(&str, &[&str])] = &[
    ("mm_projector_type", &["mlp2x_gelu"]),
    // Of SigLIP one layer is left out and the last taken, whatever these say.
    ("mm_vision_select_feature", &["patch", "full"]),
    ("mm_spatial_pool_mode", &["bilinear", "average", "max"]),
    (
        "mm_newline_position",
        &["one_token", "grid", "frame", "no_token"],
    ),
    (
        "mm_patch_merge_type",
        &["spatial_unpad", "spatial_unpad_nobase", "spatial", "flat"],
    ),
];

fn hugging_face(json: &Value) -> Result<TpoConfig, String> {
    let part = |name: &str| match &json[name] {
        part @ Value::Object(_) => Ok(part.clone()),
        other => Err(format!("{name} is {other}, expected an object")),
    };
    let feature_layer = &json["vision_feature_layer"];
    if !feature_layer.is_null() && *feature_layer != json!(-1) {
        return Err(format!(
            "vision_feature_layer is {feature_layer}, expected -1: the last of the layers that there are"
        ));
    }
    let (mut tower, mut text) = (part("vision_config")?, part("text_config")?);
    fill(
        &mut tower,
        TOWER_DEFAULTS.map(|(key, size)| (key, size.into())),
    );
    fill(
        &mut text,
        TEXT_DEFAULTS.map(|(key, size)| (key, size.into())),
    );
    fill(
        &mut text,
        [
            ("model_type", json!("qwen2")),
            ("tie_word_embeddings", json["tie_word_embeddings"].clone()),
        ],
    );
    let vision = SiglipConfig::from_hf_json(&tower).map_err(|e| format!("vision_config: {e}"))?;
    let mut llm = qwen2(&text).map_err(|e| format!("text_config: {e}"))?;
    let filled = FILLED.iter().find(|(_, filled)| *filled == llm.vocab_size);
    llm.vocab_size = filled.map_or(llm.vocab_size, |(rows, _)| *rows);
    let base = Packing::one_vision(UnpadRule::HuggingFace);
    let packing = Packing {
        max_tiles: match &json["vision_aspect_ratio"] {
            Value::Null => base.max_tiles,
            _ => max_tiles(json, "vision_aspect_ratio")?,
        },
        tiling: Tiling {
            tile: tile(&vision),
            pinpoints: match &json["image_grid_pinpoints"] {
                Value::Null => base.tiling.pinpoints,
                listed => pinpoints(listed, tile(&vision))?,
            },
        },
        side: vision.grid(),
        ..base
    };
    // Right after the two tokens that the base has added.
    let added = ["image_token", "video_token"]
        .into_iter()
        .flat_map(|token| {
            let spellings = ["index", "id"].map(|of| format!("{token}_{of}"));
            spellings.into_iter().filter_map(|key| json[key].as_u64())
        });
    let first = match added.max() {
        None => FIRST_TASK_TOKEN,
        Some(last) => match u32::try_from(last) {
            Ok(last) if (last as usize) < MOST => last + 1,
            _ => {
                return Err(format!(
                    "the image or video token has id {last}, which no vocabulary has"
                ));
            }
        },
    };
    with_packing(vision, llm, packing, first)
}

/// What transformers leaves out of a file because its class has it so.
const TOWER_DEFAULTS: [(&str, usize); 6] = [
    ("hidden_size", 768),
    ("intermediate_size", 3072),
    ("num_hidden_layers", 12),
    ("num_attention_heads", 12),
    ("image_size", 224),
    ("patch_size", 16),
];
const TEXT_DEFAULTS: [(&str, usize); 7] = [
    ("vocab_size", 151_936),
    ("hidden_size", 4096),
    ("intermediate_size", 22_016),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 32),
    ("max_position_embeddings", 32_768),
];

/// Writes values where there are none.
fn fill<const N: usize>(table: &mut Value, values: [(&str, Value); N]) {
    for (key, value) in values {
        if table[key].is_null() {
            table[key] = value;
        }
    }
}

fn original(json: &Value) -> Result<TpoConfig, String> {
    let tower = json["mm_vision_tower"].as_str().unwrap_or_default();
    if !tower.trim_end_matches('/').ends_with(TOWER) {
        return Err(format!(
            "mm_vision_tower is \"{tower}\", expected google/{TOWER}: the file does not say the sizes of others"
        ));
    }
    let vision = SiglipConfig::so400m_patch14_384();
    let mut text = json.clone();
    // `llava`, `llava_qwen`: it is Qwen2 with more.
    text["model_type"] = "qwen2".into();
    let llm = qwen2(&text)?;
    let base = Packing::one_vision(UnpadRule::Original);
    let listed = pinpoints(&json["image_grid_pinpoints"], tile(&vision))?;
    let packing = Packing {
        max_tiles: max_tiles(json, "image_aspect_ratio")?,
        tiling: Tiling {
            tile: tile(&vision),
            // The original lists width first.
            pinpoints: listed
                .into_iter()
                .map(|[width, height]| [height, width])
                .collect(),
        },
        merge: match json["mm_patch_merge_type"].as_str() {
            Some("spatial_unpad_nobase") => Merge::SpatialUnpadNobase,
            Some("spatial") => Merge::Spatial,
            Some("flat") | None => Merge::Flat,
            Some(_) => base.merge,
        },
        pooling: match json["mm_spatial_pool_mode"].as_str() {
            Some("average") => Pooling::Average,
            Some("max") => Pooling::Max,
            _ => base.pooling,
        },
        newline: match json["mm_newline_position"].as_str() {
            Some("grid") => VideoNewline::Grid,
            Some("frame") => VideoNewline::Frame,
            Some("no_token") => VideoNewline::NoToken,
            _ => base.newline,
        },
        ..base
    };
    with_packing(vision, llm, packing, FIRST_TASK_TOKEN)
}

fn with_packing(
    vision: SiglipConfig,
    llm: LlmConfig,
    packing: Packing,
    first_task_token: u32,
) -> Result<TpoConfig, String> {
    let connector = OneVisionConnectorConfig::new(vision.hidden_size, llm.hidden_size, packing);
    connector.validate().map_err(|e| e.to_string())?;
    Ok(around(vision, connector, llm, first_task_token))
}

fn qwen2(text: &Value) -> Result<LlmConfig, String> {
    LlmConfig::from_hf_json(&text.to_string()).map_err(|e| e.to_string())
}

/// Side of a tile, which is a picture of the tower.
fn tile(vision: &SiglipConfig) -> u32 {
    u32::try_from(vision.image_size).unwrap_or(u32::MAX)
}

/// The number in `anyres_max_9`; none in `anyres`.
fn max_tiles(json: &Value, key: &str) -> Result<Option<usize>, String> {
    let ratio = &json[key];
    let number = ratio.as_str().and_then(|r| r.strip_prefix("anyres_max_"));
    match number.map(str::parse) {
        Some(Ok(most)) => Ok(Some(most)),
        None if *ratio == "anyres" => Ok(None),
        _ => Err(format!(
            "{key} is {ratio}, expected anyres_max_9, another number, or anyres"
        )),
    }
}

/// The canvases as they are listed: pairs of pixels, or `(1x1),...,(6x6)`, numbers of tiles.
fn pinpoints(listed: &Value, tile: u32) -> Result<Vec<[u32; 2]>, String> {
    let wrong = || {
        format!(
            "image_grid_pinpoints is {listed}, expected pairs of pixels, or \"(1x1),...,(6x6)\""
        )
    };
    let Some(text) = listed.as_str() else {
        return serde_json::from_value(listed.clone()).map_err(|_| wrong());
    };
    let pair = |text: &str| -> Option<[u32; 2]> {
        let (a, b) = text
            .trim()
            .strip_prefix('(')?
            .strip_suffix(')')?
            .split_once('x')?;
        Some([a.parse().ok()?, b.parse().ok()?])
    };
    let ends = text.split_once(",...,");
    let ends = ends.and_then(|(first, last)| pair(first).zip(pair(last)));
    let ([a, b], [to_a, to_b]) = ends
        .filter(|(_, last)| last.iter().all(|n| *n <= 64))
        .ok_or_else(wrong)?;
    let row = |i: u32| (b..=to_b).map(move |j| [i, j].map(|n| n.saturating_mul(tile)));
    Ok((a..=to_a).flat_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canvases_are_listed_or_written_as_a_range() {
        let listed = pinpoints(&json!([[384, 768], [768, 384]]), 384).unwrap();
        assert_eq!(listed, [[384, 768], [768, 384]]);
        let range = pinpoints(&json!("(1x1),...,(6x6)"), 384).unwrap();
        assert_eq!(range, Tiling::up_to(384, 6).pinpoints);
        for bad in [
            json!("(1x1)"),
            json!("(1x1),...,(9999x1)"),
            json!([[1]]),
            json!(null),
        ] {
            let error = pinpoints(&bad, 384).unwrap_err();
            assert!(error.contains("image_grid_pinpoints"), "{error}");
        }
    }
}
