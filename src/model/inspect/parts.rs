//! Accounting for a checkpoint's tensors by part.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use tpo_core::weights::{Manifest, ManifestTensor};

/// A part of a model and the keys it owns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartSpec {
    /// Name of the part.
    pub name: String,
    /// Its keys start with one of these.
    pub prefixes: Vec<String>,
}

impl PartSpec {
    /// The part whose keys begin with one of `prefixes`.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        prefixes: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            name: name.into(),
            prefixes: prefixes.into_iter().map(Into::into).collect(),
        }
    }

    /// Whether the part owns `key`.
    pub fn owns(&self, key: &str) -> bool {
        self.prefixes.iter().any(|p| key.starts_with(p.as_str()))
    }
}

/// The parts of VideoChat-TPO, in the order data flows through them.
pub fn videochat_tpo_parts() -> Vec<PartSpec> {
    let base = vec![
        PartSpec::new("vision_encoder", ["vision_encoder."]),
        PartSpec::new("vision_layernorm", ["vision_layernorm."]),
        PartSpec::new("qformer", ["qformer."]),
        PartSpec::new("query_tokens", ["query_tokens"]),
        PartSpec::new("extra_query_tokens", ["extra_query_tokens"]),
        PartSpec::new("project_up", ["project_up."]),
        PartSpec::new("project_down", ["project_down."]),
        PartSpec::new("merge_proj", ["merge_proj."]),
        PartSpec::new("lm", ["lm."]),
    ];
    base.into_iter().chain(head_parts()).collect()
}

/// The parts of the built-in heads, which have the same names on every base.
pub(super) fn head_parts() -> Vec<PartSpec> {
    vec![
        PartSpec::new(
            "task tokens",
            ["box_token", "temporal_token", "track_token"],
        ),
        PartSpec::new("loc_encoder", ["loc_encoder."]),
        PartSpec::new("loc_decoder", ["loc_decoder."]),
        PartSpec::new("track_embed", ["track_embed."]),
        PartSpec::new("track_embed_decode2", ["track_embed_decode2."]),
        PartSpec::new("sam", ["sam."]),
        PartSpec::new("cg_model", ["cg_model."]),
        PartSpec::new("cg_criterion", ["cg_criterion."]),
        PartSpec::new("temporal_embed", ["temporal_embed."]),
        PartSpec::new("action_embed", ["action_embed."]),
    ]
}

/// LoRA adapters of a part.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoraSummary {
    /// The ranks that occur; normally one.
    pub ranks: BTreeSet<usize>,
    /// Names of the adapted layers, without their numbers.
    pub targets: BTreeSet<String>,
    /// Number of adapted layers.
    pub layers: usize,
    /// Parameters of all adapters.
    pub params: u64,
    /// Layers whose adapter is not a pair, or whose two ranks differ.
    pub broken: Vec<String>,
}

/// What a part holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PartSummary {
    /// Name of the part; empty for tensors that no part owns.
    pub name: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Floating-point parameters.
    pub params: u64,
    /// Elements of integer and boolean buffers.
    pub other_elements: u64,
    /// Bytes.
    pub bytes: u64,
    /// Tensors by data type.
    pub dtypes: BTreeMap<String, usize>,
    /// Adapters, if there are any.
    pub lora: Option<LoraSummary>,
}

/// Sums a manifest up by part. Parts without tensors are listed with zeros; tensors of no part
/// come last under an empty name.
pub fn account(manifest: &Manifest, parts: &[PartSpec]) -> Vec<PartSummary> {
    let mut groups: Vec<Vec<&ManifestTensor>> = vec![Vec::new(); parts.len() + 1];
    for tensor in &manifest.tensors {
        let part = parts.iter().position(|p| p.owns(&tensor.key));
        groups[part.unwrap_or(parts.len())].push(tensor);
    }
    let rest = groups.pop().unwrap_or_default();
    let mut out: Vec<PartSummary> = parts
        .iter()
        .zip(&groups)
        .map(|(part, tensors)| summarise(&part.name, tensors))
        .collect();
    if !rest.is_empty() {
        out.push(summarise("", &rest));
    }
    out
}

fn summarise(name: &str, tensors: &[&ManifestTensor]) -> PartSummary {
    let mut out = PartSummary {
        name: name.into(),
        tensors: tensors.len(),
        lora: lora(tensors),
        ..PartSummary::default()
    };
    for t in tensors {
        if t.is_float() {
            out.params += t.elements();
        } else {
            out.other_elements += t.elements();
        }
        out.bytes += t.bytes();
        *out.dtypes.entry(t.type_name()).or_default() += 1;
    }
    out
}

/// Finds pairs `x.lora_A…weight` `[r, d_in]` and `x.lora_B…weight` `[d_out, r]`.
fn lora(tensors: &[&ManifestTensor]) -> Option<LoraSummary> {
    let mut pairs: BTreeMap<&str, [Option<usize>; 2]> = BTreeMap::new();
    let mut out = LoraSummary::default();
    for t in tensors {
        for (side, tag, rank_axis) in [(0, ".lora_A.", 0), (1, ".lora_B.", 1)] {
            if let Some((layer, _)) = t.key.split_once(tag) {
                pairs.entry(layer).or_default()[side] = t.shape.get(rank_axis).copied();
                out.params += t.elements();
            }
        }
    }
    if pairs.is_empty() {
        return None;
    }
    out.layers = pairs.len();
    for (layer, pair) in pairs {
        let target = layer.rsplit('.').next().unwrap_or(layer);
        out.targets.insert(target.to_string());
        match pair {
            [Some(a), Some(b)] if a == b => {
                out.ranks.insert(a);
            }
            _ => out.broken.push(layer.to_string()),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::layouts::videochat_tpo_layout;
    use super::*;

    /// Parameters per part as counted in the published checkpoint.
    #[test]
    fn videochat_tpo_adds_up() {
        let layout = videochat_tpo_layout().unwrap();
        let parts = account(&layout, &videochat_tpo_parts());
        let table: Vec<(&str, u64)> = parts.iter().map(|p| (p.name.as_str(), p.params)).collect();
        assert_eq!(
            table,
            [
                ("vision_encoder", 290_477_056),
                ("vision_layernorm", 2_048),
                ("qformer", 182_121_216),
                ("query_tokens", 24_576),
                ("extra_query_tokens", 49_152),
                ("project_up", 3_149_824),
                ("project_down", 3_146_496),
                ("merge_proj", 12_587_008),
                ("lm", 7_284_310_128),
                ("task tokens", 3 * 4_096),
                ("loc_encoder", 8_402_944),
                ("loc_decoder", 8_398_852),
                ("track_embed", 19_927_808),
                ("track_embed_decode2", 16_797_700),
                ("sam", 224_430_386),
                ("cg_model", 13_953_835),
                ("cg_criterion", 2),
                ("temporal_embed", 16_789_506),
                ("action_embed", 16_785_409),
            ]
        );
        assert_eq!(parts.iter().map(|p| p.params).sum::<u64>(), 8_101_366_234);
        assert_eq!(parts.iter().map(|p| p.other_elements).sum::<u64>(), 512);
        assert_eq!(parts.iter().map(|p| p.bytes).sum::<u64>(), 16_202_736_564);
    }

    #[test]
    fn videochat_tpo_adapters() {
        let layout = videochat_tpo_layout().unwrap();
        let parts = account(&layout, &videochat_tpo_parts());
        let lm = parts.iter().find(|p| p.name == "lm").unwrap();
        let lora = lm.lora.as_ref().unwrap();
        assert_eq!(lora.ranks, BTreeSet::from([16]));
        assert_eq!(lora.layers, 32 * 7 + 1);
        assert!(lora.broken.is_empty());
        assert!(lora.targets.contains("lm_head") && lora.targets.len() == 8);
        // Rank times (inputs + outputs), by hand: q,o 8192 each; k,v 5120 each; gate, up and
        // down 18432 each; lm_head 36103.
        let block = 2 * 8_192 + 2 * 5_120 + 3 * 18_432;
        assert_eq!(lora.params, 16 * (32 * block + 36_103));
    }
}
