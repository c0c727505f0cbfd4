//! The published model's own `config.json`.
//!
//! It says the sizes of the vision encoder, the queries, the adapters, and nothing of the rest, which the
//! reference's code writes out. Here the rest is read from the shapes of the weights, and what shapes do
//! not tell (widths of attention heads, frames of SAM 2) is that of the published model.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tpo_core::LoraConfig;
use tpo_core::weights::Checkpoint;
use tpo_heads::mask::sam2::{Sam2Config, Sam2Version};
use tpo_heads::mask::{MaskHead, MaskHeadConfig};
use tpo_heads::region::{RegionHead, RegionHeadConfig};
use tpo_heads::temporal::{CgDetrConfig, TemporalHead, TemporalHeadConfig};
use tpo_llm::{LORA_TARGETS, LlmConfig};
use tpo_vision::{QFormerConfig, QFormerConnectorConfig, UmtConfig};

use crate::model::{ConnectorConfig, TpoConfig, VisionConfig};

/// Width of a head of Mistral's attention.
const LLM_HEAD: usize = 128;
/// Width of a head of BERT's attention.
const BERT_HEAD: usize = 64;

/// What the file knows, by object: keys that are read or checked, and keys without a meaning for what
/// the model computes.
const KNOWN: [(&str, &[&str], &[&str]); 6] = [
    (
        "",
        &["model_config", "hidden_size", "build_decoder"],
        &[
            "_name_or_path",
            "architectures",
            "auto_map",
            "torch_dtype",
            "transformers_version",
            "use_flash_attention",
            "use_cache",
            "model_type",
        ],
    ),
    (
        "/model_config",
        &["bridge", "llm", "vision_encoder", "loss"],
        &[
            "freeze_bridge",
            "freeze_llm",
            "freeze_vision_encoder",
            "pretrained_paths",
        ],
    ),
    (
        "/model_config/bridge",
        &[
            "name",
            "num_query_token",
            "extra_num_query_token",
            "qformer_attention_probs_dropout_prob",
            "qformer_drop_path_rate",
            "qformer_hidden_dropout_prob",
        ],
        &[],
    ),
    (
        "/model_config/llm",
        &[
            "name",
            "hidden_size",
            "use_lora",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
        ],
        &["pretrained_llm_path", "use_llama_gradient_checkpointing"],
    ),
    (
        "/model_config/vision_encoder",
        &[
            "name",
            "img_size",
            "patch_size",
            "d_model",
            "encoder_embed_dim",
            "encoder_depth",
            "encoder_num_heads",
            "drop_path_rate",
            "num_frames",
            "tubelet_size",
            "ckpt_num_frame",
            "return_index",
            "vit_add_ln",
        ],
        &["use_checkpoint", "checkpoint_num", "pretrained"],
    ),
    (
        "/model_config/loss",
        &[],
        &[
            "use_vision_regression_loss",
            "add_bbox_loss",
            "use_mask_loss",
            "use_temporal_loss",
        ],
    ),
];

/// Whether this is the published model's kind of `config.json`.
pub(crate) fn is_published(config: &Value) -> bool {
    config["model_config"]["vision_encoder"].is_object()
}

/// The configuration of a model with this `config.json` and these weights. Keys that are not known are
/// warned about by name.
///
/// # Errors
/// Every value that asks for another model than this library builds, sizes that are missing or not those
/// of the weights, tensors that are not there.
pub(crate) fn published(json: &Value, weights: &Checkpoint) -> Result<TpoConfig, String> {
    for key in unknown_keys(json) {
        tracing::warn!("config.json: `{key}` is not known to this version and changes nothing");
    }
    let parts = &json["model_config"];
    let (bridge, llm, vision) = (&parts["bridge"], &parts["llm"], &parts["vision_encoder"]);
    let shapes = Shapes(weights);
    let mut config = TpoConfig::videochat_tpo();
    for (name, part) in [("bridge", bridge), ("llm", llm)] {
        if !part.is_object() && !part.is_null() {
            return Err(format!("model_config.{name} is {part}, expected an object"));
        }
    }
    let umt =
        UmtConfig::from_hf_json(vision).map_err(|e| format!("model_config.vision_encoder: {e}"))?;
    let lm = shapes.llm(llm)?;
    let mut problems = Vec::new();
    let names = [
        ("bridge.name", &bridge["name"], json!("qformer")),
        ("llm.name", &llm["name"], json!("mistral_7b")),
        ("vision_encoder.name", &vision["name"], json!("vit_l14")),
        (
            "vision_encoder.vit_add_ln",
            &vision["vit_add_ln"],
            json!(true),
        ),
        (
            "vision_encoder.d_model",
            &vision["d_model"],
            json!(umt.encoder_embed_dim),
        ),
        (
            "llm.hidden_size",
            &llm["hidden_size"],
            json!(lm.hidden_size),
        ),
    ];
    let names =
        names.map(|(key, found, expected)| (format!("model_config.{key}"), found, expected));
    let whole = [
        (
            "hidden_size".to_string(),
            &json["hidden_size"],
            json!(lm.hidden_size),
        ),
        (
            "build_decoder".to_string(),
            &json["build_decoder"],
            json!(true),
        ),
    ];
    for (key, found, expected) in names.into_iter().chain(whole) {
        if !found.is_null() && *found != expected {
            problems.push(format!("{key} is {found}, expected {expected}"));
        }
    }
    if !problems.is_empty() {
        return Err(format!(
            "{}; this version builds VideoChat-TPO with Mistral alone, and sizes must be those of the \
             weights",
            problems.join("; ")
        ));
    }
    let qformer = shapes.qformer(bridge, umt.encoder_embed_dim)?;
    config.input.frames = umt.num_frames;
    config.input.size = umt.img_size;
    config.heads = shapes.heads(lm.hidden_size)?;
    config.connector = ConnectorConfig::QFormer(
        QFormerConnectorConfig::new(qformer, lm.hidden_size)
            .with_unused_projections(weights.get("project_down.weight").is_some()),
    );
    config.vision = VisionConfig::Umt(umt);
    config.llm = lm;
    Ok(config)
}

/// Keys that this version does not know, with their places.
fn unknown_keys(json: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    for (at, read, of_no_account) in KNOWN {
        let keys = json.pointer(at).and_then(Value::as_object);
        let keys = keys.into_iter().flat_map(|table| table.keys());
        let keys =
            keys.filter(|k| !read.contains(&k.as_str()) && !of_no_account.contains(&k.as_str()));
        let place = at.trim_start_matches('/').replace('/', ".");
        unknown.extend(keys.map(|key| match place.as_str() {
            "" => key.clone(),
            place => format!("{place}.{key}"),
        }));
    }
    unknown
}

/// What counts and what rates must be.
const COUNT: &str = "a whole number, 0 or more";
const NUMBER: &str = "a number";

/// The value at `key` of a part of the model, `default` where the file has none.
fn read<T: DeserializeOwned>(
    part: &Value,
    name: &str,
    key: &str,
    expected: &str,
    default: T,
) -> Result<T, String> {
    match &part[key] {
        Value::Null => Ok(default),
        found => T::deserialize(found)
            .map_err(|_| format!("model_config.{name}.{key} is {found}, expected {expected}")),
    }
}

/// Sizes that stand in the weights.
struct Shapes<'a>(&'a Checkpoint);

impl Shapes<'_> {
    /// Length of an axis of a tensor, adapted or not.
    fn size(&self, key: &str, axis: usize) -> Result<usize, String> {
        let adapted = key
            .strip_suffix(".weight")
            .map(|layer| format!("{layer}.base_layer.weight"));
        let found = self.0.get(key).or_else(|| self.0.get(&adapted?));
        let size = found.and_then(|t| t.shape.get(axis));
        size.copied().ok_or_else(|| {
            format!("does not say all sizes, and the weights lack the tensor `{key}` that does")
        })
    }

    /// Heads of attention, each `width` wide, that an axis of a tensor is made of.
    fn attention_heads(&self, key: &str, axis: usize, width: usize) -> Result<usize, String> {
        let size = self.size(key, axis)?;
        if size % width != 0 {
            return Err(format!(
                "is of a model whose attention has heads of {width}, and axis {axis} of the tensor `{key}` \
                 is {size}, no multiple of it; this version builds no other heads"
            ));
        }
        Ok(size / width)
    }

    /// Numbered members of a list.
    fn count(&self, list: &str) -> usize {
        let number = |key: &str| {
            key.strip_prefix(list)?
                .split('.')
                .next()?
                .parse::<usize>()
                .ok()
        };
        let numbers = self.0.tensors().filter_map(|t| number(&t.key));
        numbers.max().map_or(0, |last| last.saturating_add(1))
    }

    fn llm(&self, json: &Value) -> Result<LlmConfig, String> {
        let at = "lm.base_model.model.model.";
        let layer = format!("{at}layers.0.");
        let embedding = format!("{at}embed_tokens.weight");
        let key = |name: &str| format!("{layer}{name}.weight");
        let heads = |name: &str| self.attention_heads(&key(name), 0, LLM_HEAD);
        let number = |key, default| read(json, "llm", key, NUMBER, default);
        let targets = LORA_TARGETS.map(String::from).to_vec();
        let rank = read(json, "llm", "lora_r", COUNT, 16)?;
        let adapters = LoraConfig::new(rank, number("lora_alpha", 32.0)?, targets)
            .with_dropout(number("lora_dropout", 0.1)?);
        let lora = read(json, "llm", "use_lora", "true or false", false)?.then_some(adapters);
        Ok(LlmConfig {
            vocab_size: self.size(&embedding, 0)?,
            hidden_size: self.size(&embedding, 1)?,
            intermediate_size: self.size(&key("mlp.gate_proj"), 0)?,
            num_hidden_layers: self.count(&format!("{at}layers.")),
            num_attention_heads: heads("self_attn.q_proj")?,
            num_key_value_heads: heads("self_attn.k_proj")?,
            head_dim: LLM_HEAD,
            lora,
            ..LlmConfig::mistral_7b()
        })
    }

    fn qformer(&self, json: &Value, encoder_width: usize) -> Result<QFormerConfig, String> {
        let bert = "qformer.bert.";
        let queries = "query_tokens";
        let hidden = self.size(queries, 2)?;
        let count = |key, default| read(json, "bridge", key, COUNT, default);
        let rate = |key, default| read(json, "bridge", key, NUMBER, default);
        let base = QFormerConfig::base();
        Ok(QFormerConfig {
            hidden_size: hidden,
            num_hidden_layers: self.count(&format!("{bert}encoder.layer.")),
            num_attention_heads: self.attention_heads(queries, 2, BERT_HEAD)?,
            intermediate_size: self.size(
                &format!("{bert}encoder.layer.0.intermediate.dense.weight"),
                0,
            )?,
            encoder_width,
            vocab_size: self.size(&format!("{bert}embeddings.word_embeddings.weight"), 0)?,
            max_position_embeddings: self
                .size(&format!("{bert}embeddings.position_embeddings.weight"), 0)?,
            num_query_token: count("num_query_token", base.num_query_token)?,
            extra_num_query_token: count("extra_num_query_token", base.extra_num_query_token)?,
            hidden_dropout_prob: rate("qformer_hidden_dropout_prob", base.hidden_dropout_prob)?,
            attention_probs_dropout_prob: rate(
                "qformer_attention_probs_dropout_prob",
                base.attention_probs_dropout_prob,
            )?,
            drop_path_rate: rate("qformer_drop_path_rate", base.drop_path_rate)?,
            ..base
        })
    }

    fn heads(&self, d_llm: usize) -> Result<tpo_core::head::HeadConfigs, String> {
        let region = RegionHeadConfig::new(d_llm, self.size("loc_decoder.0.weight", 0)?);
        let temporal = TemporalHeadConfig::new(self.cg_detr()?)
            .with_start_end(self.0.get("action_embed.layers.0.weight").is_some());
        let mask = MaskHeadConfig::new(
            d_llm,
            self.size("track_embed.layers.0.weight", 0)?,
            self.sam2()?,
        );
        let add = || {
            tpo_core::head::HeadConfigs::default()
                .with::<RegionHead>(&region)?
                .with::<TemporalHead>(&temporal)?
                .with::<MaskHead>(&mask)
        };
        add().map_err(|e| e.to_string())
    }

    fn cg_detr(&self) -> Result<CgDetrConfig, String> {
        let size = |key: &str, axis| self.size(&format!("cg_model.{key}"), axis);
        let count = |list: &str| self.count(&format!("cg_model.{list}.layers."));
        Ok(CgDetrConfig {
            d_text: size("input_txt_proj.0.net.1.weight", 1)?,
            // The two columns that say where a clip begins and ends are not of the features.
            d_video: size("input_vid_proj.0.net.1.weight", 1)?.saturating_sub(2),
            d_model: size("input_vid_proj.0.net.1.weight", 0)?,
            d_hidden: size("transformer.encoder.layers.0.linear1.weight", 0)?,
            num_queries: size("query_embed.weight", 0)?,
            num_dummies: size("dummy_rep_token", 0)?,
            total_prompts: size("global_rep_token", 0)?,
            t2v_layers: count("transformer.t2v_encoder"),
            encoder_layers: count("transformer.encoder"),
            decoder_layers: count("transformer.decoder"),
            dummy_layers: count("txtproj_encoder"),
            sentence_layers: count("scls_encoder"),
            moment_layers: count("transformer.mcls_encoder"),
            text_positions: size("txt_position_embed.position_embeddings.weight", 0)?,
            ..CgDetrConfig::videochat_tpo()
        })
    }

    /// The SAM 2 whose trunk the weights have.
    fn sam2(&self) -> Result<Sam2Config, String> {
        let trunk = "sam.image_encoder.trunk.";
        let width = self.size(&format!("{trunk}patch_embed.proj.weight"), 0)?;
        let blocks = self.count(&format!("{trunk}blocks."));
        let known = [
            Sam2Config::large,
            Sam2Config::base_plus,
            Sam2Config::small,
            Sam2Config::tiny,
            Sam2Config::mini,
            Sam2Config::nano,
        ];
        let mut known = known.into_iter().map(|of| of(Sam2Version::V2_0));
        let fits = |sam: &Sam2Config| {
            let trunk = &sam.image_encoder.trunk;
            (trunk.embed_dim, trunk.depth()) == (width, blocks)
        };
        known.find(fits).ok_or_else(|| {
            format!(
                "does not say which SAM 2 the weights have, and no known one has {blocks} blocks of width \
                 {width} (Hiera-L, of the published model: 48 of width 144)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_known_are_named_with_their_places() {
        let known = json!({
            "architectures": ["MultiModalLLM_PT"], "hidden_size": 8,
            "model_config": {"llm": {"name": "mistral_7b"}, "loss": {}, "pretrained_paths": {}}
        });
        assert!(unknown_keys(&known).is_empty());
        let other = json!({
            "use_clip": true,
            "model_config": {"llm": {"window": 8}, "audio": {}}
        });
        assert_eq!(
            unknown_keys(&other),
            ["use_clip", "model_config.audio", "model_config.llm.window"]
        );
    }
}
