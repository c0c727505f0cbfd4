//! What a LLaVA-OneVision holds, with TPO's heads or without.

use burn::tensor::Device;
use tpo_core::weights::{
    Checkpoint, KeyMap, KeyTarget, ParamInfo, Refusal, differences, module_params,
};

use super::parts::{PartSpec, head_parts};
use crate::error::Result;
use crate::model::families::onevision::prepared;
use crate::model::families::onevision::published::of_width;
use crate::model::{
    BuiltInHeads, CONFIG_FILE, ConnectorConfig, Names, TpoConfig, published_config, read_config,
};

/// Parts of the checkpoint, and what it was compared with.
pub(super) struct Compared {
    pub parts: Vec<PartSpec>,
    pub layout: Option<String>,
    pub differences: Refusal,
}

/// Compares a checkpoint with these names with a model of its sizes: those of the configuration beside it, or the
/// published ones. A base has no heads, and every model may do without what is never used.
pub(super) fn compare(
    checkpoint: &Checkpoint,
    names: Names,
    notes: &mut Vec<String>,
) -> Result<Compared> {
    let mut found = Compared {
        parts: names
            .parts()
            .map(|(name, begins)| PartSpec::new(name, begins))
            .into(),
        layout: None,
        differences: Refusal {
            checkpoint: checkpoint.path().to_path_buf(),
            ..Refusal::default()
        },
    };
    let Some(config) = config_of(checkpoint)? else {
        notes.push(
            "named as a LLaVA-OneVision, but not of its published sizes, and no config.json says others: not compared \
             with anything"
                .into(),
        );
        return Ok(found);
    };
    let keys = config.keys_named::<BuiltInHeads>(names)?;
    let of_heads = |path: &str| path.starts_with("heads.") || path.starts_with("task_tokens.");
    let has_heads = checkpoint
        .tensors()
        .any(|t| match keys.module_path(&t.key) {
            KeyTarget::Path(path) => of_heads(&path),
            _ => false,
        });
    // No weight is drawn.
    let model = config.assemble::<BuiltInHeads>(&Device::flex())?;
    let params: Vec<ParamInfo> = module_params(&model)
        .into_iter()
        .filter(|p| has_heads || !of_heads(&p.path))
        .collect();
    let (read, differs) = prepared(checkpoint.clone(), &config.llm, names)?;
    found.differences = differences(&params, &read, &keys);
    found.differences.mismatched.extend(differs);
    let model = if has_heads {
        found.parts.extend(head_parts());
        "llava-ov-tpo"
    } else {
        "llava-onevision"
    };
    found.layout = Some(format!(
        "{model} of width {}, {}",
        config.llm.hidden_size,
        names.describe()
    ));
    Ok(found)
}

/// The sizes of the model: as its directory says, else those of a published one.
fn config_of(checkpoint: &Checkpoint) -> Result<Option<TpoConfig>> {
    let dir = checkpoint.dir();
    if dir.join(CONFIG_FILE).is_file() {
        let config = read_config(dir)?;
        if matches!(config.connector, ConnectorConfig::OneVision(_)) {
            return Ok(Some(config));
        }
    }
    if let Some(config) = published_config(dir)?
        && matches!(config.connector, ConnectorConfig::OneVision(_))
    {
        return Ok(Some(config));
    }
    Ok(of_width(checkpoint))
}
