//! Layouts of known checkpoints.

use std::path::Path;

use serde::Deserialize;
use tpo_core::weights::{Dtype, Manifest, ManifestTensor, Result, WeightsError, parse_dtype};

/// Every tensor of the published VideoChat-TPO checkpoint: 2 594 tensors of 16 202 736 564 bytes
/// in four shards, all bfloat16 except one int64 buffer.
///
/// # Errors
/// None in practice; the list is part of the crate.
pub fn videochat_tpo_layout() -> Result<Manifest> {
    Manifest::from_compact(
        "videochat-tpo",
        include_str!("../families/videochat_tpo.txt"),
    )
}

/// Every tensor of InternVideo2-CLIP-1B after its three published files are merged: 538 of the
/// video tower, 419 of the text tower, and `temp`, which a checkpoint may lack.
///
/// # Errors
/// None in practice; the list is part of the crate.
pub fn internvideo2_clip_layout() -> Result<Manifest> {
    let text = include_str!("../families/internvideo2_clip.txt");
    let mut layout = Manifest::from_compact("internvideo2-clip", text)?;
    for tensor in layout.tensors.iter_mut().filter(|t| t.key == "temp") {
        tensor.optional = true;
    }
    Ok(layout)
}

/// The fields of a Hugging Face `config.json` that decide the shapes of a Llama-family decoder.
#[derive(Debug, Deserialize)]
struct LlmShape {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    torch_dtype: Option<String>,
}

/// The tensors a decoder of the Llama family (`llama`, `mistral`, `qwen2`) has according to its
/// `config.json`; `None` when the file describes another kind of model.
///
/// # Errors
/// [`WeightsError::Io`], and [`WeightsError::Manifest`] for a configuration of such a model that
/// lacks a field or states absurd sizes.
pub fn hugging_face_llm_layout(config: &Path) -> Result<Option<Manifest>> {
    let wrong = |why: String| WeightsError::Manifest {
        place: config.display().to_string(),
        why,
    };
    let text = std::fs::read_to_string(config).map_err(|source| WeightsError::Io {
        action: "reading",
        path: config.into(),
        source,
    })?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let model_type = value.get("model_type").and_then(|t| t.as_str());
    if !matches!(model_type, Some("llama" | "mistral" | "qwen2")) {
        return Ok(None);
    }
    let shape: LlmShape = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    if shape.num_hidden_layers > 10_000 || shape.num_attention_heads == 0 {
        return Err(wrong(format!(
            "{} layers and {} heads are not a model",
            shape.num_hidden_layers, shape.num_attention_heads
        )));
    }
    let name = format!("{} of {}", shape.model_type, config.display());
    Ok(Some(Manifest {
        name,
        tensors: llm_tensors(&shape).ok_or_else(|| wrong("its sizes overflow".into()))?,
    }))
}

fn llm_tensors(c: &LlmShape) -> Option<Vec<ManifestTensor>> {
    let dtype = c
        .torch_dtype
        .as_deref()
        .and_then(parse_dtype)
        .unwrap_or(Dtype::BF16);
    let head = c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads);
    let q = head.checked_mul(c.num_attention_heads)?;
    let kv = head.checked_mul(c.num_key_value_heads.unwrap_or(c.num_attention_heads))?;
    let (d, ffn) = (c.hidden_size, c.intermediate_size);
    let mut tensors = Vec::new();
    let mut add = |key: String, shape: Vec<usize>, optional: bool| {
        tensors.push(ManifestTensor {
            key,
            dtype,
            shape,
            shard: None,
            optional,
        });
    };
    add(
        "model.embed_tokens.weight".into(),
        vec![c.vocab_size, d],
        false,
    );
    add("model.norm.weight".into(), vec![d], false);
    // Some writers store the tied copy too.
    add(
        "lm_head.weight".into(),
        vec![c.vocab_size, d],
        c.tie_word_embeddings,
    );
    for i in 0..c.num_hidden_layers {
        let layer = format!("model.layers.{i}");
        for (name, rows, columns) in [
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", ffn, d),
            ("mlp.up_proj", ffn, d),
            ("mlp.down_proj", d, ffn),
        ] {
            add(format!("{layer}.{name}.weight"), vec![rows, columns], false);
            let attention = name.starts_with("self_attn");
            let qwen_bias = c.model_type == "qwen2" && attention && !name.ends_with("o_proj");
            if qwen_bias || (c.attention_bias && attention) {
                add(format!("{layer}.{name}.bias"), vec![rows], false);
            }
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{layer}.{norm}.weight"), vec![d], false);
        }
        // A buffer that old exports stored.
        add(
            format!("{layer}.self_attn.rotary_emb.inv_freq"),
            vec![head / 2],
            true,
        );
    }
    tensors
        .iter()
        .all(|t| {
            t.shape
                .iter()
                .try_fold(64_u64, |n, &x| n.checked_mul(x as u64))
                .is_some()
        })
        .then_some(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn videochat_tpo_has_the_published_size() {
        let layout = videochat_tpo_layout().unwrap();
        assert_eq!(layout.tensors.len(), 2594);
        assert_eq!(layout.bytes(), 16_202_736_564);
        let mut shards: BTreeMap<&str, u64> = BTreeMap::new();
        for t in &layout.tensors {
            *shards.entry(t.shard.as_deref().unwrap()).or_default() += t.bytes();
        }
        assert_eq!(
            shards.into_values().collect::<Vec<_>>(),
            [4_995_708_928, 4_945_330_176, 4_945_354_752, 1_316_342_708]
        );
    }

    #[test]
    fn internvideo2_clip_has_the_reference_size() {
        let layout = internvideo2_clip_layout().unwrap();
        let params = |prefix: &str| -> (usize, u64) {
            let own = layout.tensors.iter().filter(|t| t.key.starts_with(prefix));
            own.fold((0, 0), |(n, sum), t| (n + 1, sum + t.elements()))
        };
        assert_eq!(params("vision_encoder."), (538, 1_020_708_608));
        assert_eq!(params("vision_encoder.clip_projector."), (14, 7_042_176));
        assert_eq!(params("text_encoder."), (419, 6_692_417_536));
        assert_eq!(layout.tensors.len(), 958);
    }

    #[test]
    fn a_mistral_config_gives_mistrals_size() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        std::fs::write(
            &config,
            r#"{"model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096,
                "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "torch_dtype": "bfloat16"}"#,
        )
        .unwrap();
        let layout = hugging_face_llm_layout(&config).unwrap().unwrap();
        let params: u64 = layout
            .tensors
            .iter()
            .filter(|t| !t.optional)
            .map(ManifestTensor::elements)
            .sum();
        // Mistral-7B-v0.3 as published.
        assert_eq!(params, 7_248_023_552);
    }
}
