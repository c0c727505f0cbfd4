//! Layouts of known checkpoints.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;
use tpo_core::weights::{
    Dtype, KeyMap, Manifest, ManifestTensor, Result, WeightsError, module_params, parse_dtype,
};
use tpo_llm::LlmConfig;

use crate::model::{BuiltInHeads, published_config};

/// The numbers of positions, 0 to 511, which PyTorch stores and nothing reads.
const POSITIONS: &str = "qformer.bert.embeddings.position_ids";

/// Every tensor of the published VideoChat-TPO checkpoint: 2 594 tensors of 16 202 736 564 bytes
/// in four shards, all bfloat16 except one int64 buffer, a constant that a checkpoint may lack.
///
/// # Errors
/// None in practice; the list is part of the crate.
pub fn videochat_tpo_layout() -> Result<Manifest> {
    let text = include_str!("../families/videochat_tpo.txt");
    let mut layout = Manifest::from_compact("videochat-tpo", text)?;
    for tensor in layout.tensors.iter_mut().filter(|t| t.key == POSITIONS) {
        tensor.optional = true;
    }
    Ok(layout)
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

/// Most layers that a language model is believed to have.
const MOST_LAYERS: usize = 10_000;

/// The tensors a decoder of the Llama family (`llama`, `mistral`, `qwen2`) has according to its
/// `config.json`: the parameters of ours. `None` when the file describes another kind of model.
///
/// # Errors
/// [`WeightsError::Io`], and [`WeightsError::Manifest`] for a configuration of such a model that
/// lacks a field or states absurd sizes.
pub fn hugging_face_llm_layout(path: &Path) -> Result<Option<Manifest>> {
    let wrong = |why: String| WeightsError::Manifest {
        place: path.display().to_string(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|source| WeightsError::Io {
        action: "reading",
        path: path.into(),
        source,
    })?;
    let mut json: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let kind = json["model_type"].as_str().unwrap_or_default().to_string();
    if !matches!(kind.as_str(), "llama" | "mistral" | "qwen2") {
        return Ok(None);
    }
    let dtype = json["torch_dtype"].as_str().and_then(parse_dtype);
    // What shapes do not depend on may be beyond our decoder.
    for field in ["hidden_act", "rope_scaling", "rope_parameters"] {
        json.as_object_mut().and_then(|fields| fields.remove(field));
    }
    let config = LlmConfig::from_hf_json(&json.to_string()).map_err(|e| wrong(e.to_string()))?;
    if config.num_hidden_layers > MOST_LAYERS {
        let layers = config.num_hidden_layers;
        return Err(wrong(format!("a model of {layers} layers is not believed")));
    }
    // No weight is drawn.
    let lm = config
        .init(&Device::flex())
        .map_err(|e| wrong(e.to_string()))?;
    let params = module_params(&lm).into_iter();
    let params = params.map(|p| (p.path, p.shape, false));
    // Some writers store the copy that is tied, old ones a buffer of every layer.
    let table = vec![config.vocab_size, config.hidden_size];
    let tied = config.tie_word_embeddings;
    let tied = tied.then(|| ("lm_head.weight".to_string(), table, true));
    let buffers = (0..config.num_hidden_layers).map(|i| {
        let key = format!("model.layers.{i}.self_attn.rotary_emb.inv_freq");
        (key, vec![config.head_dim / 2], true)
    });
    let tensors = params.chain(tied).chain(buffers);
    Ok(Some(Manifest {
        name: format!("{kind} of {}", path.display()),
        tensors: tensors
            .map(|(key, shape, optional)| ManifestTensor {
                key,
                dtype: dtype.unwrap_or(Dtype::BF16),
                shape,
                shard: None,
                optional,
                blocks: None,
            })
            .collect(),
    }))
}

/// The tensors that a model in the published form has according to its `config.json`, of whatever sizes.
/// `None` when `dir` has no such file.
///
/// # Errors
/// [`WeightsError::Manifest`] when the file asks for a model that this library does not build.
pub(crate) fn published_form_layout(dir: &Path) -> Result<Option<Manifest>> {
    let place = dir.join("config.json").display().to_string();
    let wrong = |e: crate::Error| WeightsError::Manifest {
        place: place.clone(),
        why: e.to_string(),
    };
    let config = published_config(dir).map_err(wrong)?;
    // That of another base is compared by its names.
    let Some(config) = config.filter(|c| c.connector.qformer().is_some()) else {
        return Ok(None);
    };
    let model = config
        .init::<BuiltInHeads>(&Device::flex())
        .map_err(wrong)?;
    let keys = config.keys::<BuiltInHeads>().map_err(wrong)?;
    let params = module_params(&model);
    let paths: HashSet<&str> = params.iter().map(|p| p.path.as_str()).collect();
    let has = |path: &str| paths.contains(path);
    let named = params.iter().filter_map(|p| {
        let key = keys.checkpoint_key(&p.path, &has)?;
        Some((key, Dtype::BF16, p.shape.clone(), false))
    });
    let longest = config
        .connector
        .qformer()
        .map(|c| c.qformer.max_position_embeddings);
    let buffer = longest.map(|rows| (POSITIONS.to_string(), Dtype::I64, vec![1, rows], true));
    Ok(Some(Manifest {
        name: format!("videochat-tpo of {place}"),
        tensors: named
            .chain(buffer)
            .map(|(key, dtype, shape, optional)| ManifestTensor {
                key,
                dtype,
                shape,
                shard: None,
                optional,
                blocks: None,
            })
            .collect(),
    }))
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
