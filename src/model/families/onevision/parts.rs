//! The files that the parts of LLaVA-OV-TPO are taken from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tpo_core::weights::{Checkpoint, KeyRules, KeyScope, KeyTables};
use tpo_data::prompts::qwen::NAMED_TOKENS;
use tpo_heads::temporal::{CG_DETR_KEYS, CG_DETR_KEYS_INVERSE, cg_detr_rules};
use tpo_llm::config::videochat_lora;
use tpo_llm::tokenizer::Tokenizer;

use super::{open_named, tower_means};
use crate::error::{Error, Result};
use crate::model::assemble::Plan;
use crate::model::families::parts::{Part, tables};
use crate::model::{
    BuiltInHeads, ConnectorConfig, Quantize, TpoConfig, published_config, tokenizer_files,
};

/// The files that parts are taken from.
#[derive(Debug, Clone)]
pub struct BaseFiles {
    /// A LLaVA-OneVision as it was published, in any of the four layouts of its names: `config.json`, safetensors,
    /// `tokenizer.json`.
    pub base: PathBuf,
    /// SAM 2.0 with Hiera-L, `sam2_hiera_large`.
    pub sam2: PathBuf,
    /// What the temporal head begins with: a VideoChat-TPO, or a file of its CG-DETR alone. Tensors of the width of
    /// other features than the model's are drawn from the seed.
    pub temporal: Option<PathBuf>,
}

/// Tensors of CG-DETR that are as wide as the features of text or video.
const OF_FEATURES: [&str; 9] = [
    "model.input_txt_proj.0.layer_norm.weight",
    "model.input_txt_proj.0.layer_norm.bias",
    "model.input_txt_proj.0.linear.weight",
    "model.txt_proj_linear.layer_norm.weight",
    "model.txt_proj_linear.layer_norm.bias",
    "model.txt_proj_linear.linear.weight",
    "model.input_vid_proj.0.layer_norm.weight",
    "model.input_vid_proj.0.layer_norm.bias",
    "model.input_vid_proj.0.linear.weight",
];

/// How LLaVA-OV-TPO is put together.
pub(crate) fn plan(files: &BaseFiles, sizes: Option<&TpoConfig>) -> Result<Plan> {
    let config = config_of(files, sizes)?;
    let new = new_rows(&config)?;
    // The base's own tokens stand in front of the task tokens.
    let used = new.start.checked_sub(NAMED_TOKENS.len()).filter(|n| *n > 0);
    let used = used.ok_or_else(|| Error::Config {
        problems: format!(
            "the first task token has id {}, and the words of the base and its `{}` must come before; take the \
             sizes of a LLaVA-OV-TPO",
            new.start,
            NAMED_TOKENS.join("`, `")
        ),
    })?;
    let (checkpoint, names) = open_named(&files.base, &config.llm)?;
    let base = Part {
        scope: KeyScope::Whole,
        ..Part::new(
            ["LLaVA-OneVision", "--base"],
            &files.base,
            config.keys_named::<BuiltInHeads>(names)?,
            |path| {
                let parts = ["vision.", "connector.", "llm."];
                parts.iter().any(|part| path.starts_with(part)) && !path.contains(".lora.")
            },
        )
    };
    let mut parts = vec![base, Part::sam2(&files.sam2)?];
    let mut inputs = vec![files.base.clone(), files.sam2.clone()];
    if let Some(file) = &files.temporal {
        parts.push(temporal(file)?);
        inputs.push(file.clone());
    }
    Ok(Plan {
        rows: config.llm.vocab_size,
        used,
        parts,
        opened: BTreeMap::from([(files.base.clone(), checkpoint)]),
        inputs,
        tokenizer: with_names(&files.base, &config, used)?,
        new,
        config,
    })
}

/// The sizes that are given, or those of the base with new adapters (Table 17). Without a CG-DETR to begin with the
/// temporal head needs no second tower: it reads the means of the model's own.
fn config_of(files: &BaseFiles, sizes: Option<&TpoConfig>) -> Result<TpoConfig> {
    let base = &files.base;
    let mut found = sizes.cloned();
    if sizes.is_none()
        && let Some(mut config) = published_config(base)?
    {
        config.llm.lora = Some(videochat_lora());
        if files.temporal.is_none() {
            config.set_features(tower_means())?;
        }
        found = Some(config);
    }
    let found = found.filter(|c| matches!(c.connector, ConnectorConfig::OneVision(_)));
    let mut config = found.ok_or_else(|| Error::ModelDir {
        path: base.into(),
        why: "is no LLaVA-OneVision: its config.json must say so (`llava_onevision` or `mm_vision_tower`); take \
              llava-onevision-qwen2-0.5b-ov or -7b-ov, of lmms-lab or of llava-hf"
            .into(),
    })?;
    config.set_quantization(Quantize::default());
    Ok(config)
}

/// The ids of the task tokens, which follow one another.
fn new_rows(config: &TpoConfig) -> Result<std::ops::Range<usize>> {
    let mut ids: Vec<usize> = config.tasks.tokens().map(|t| t.id as usize).collect();
    ids.sort_unstable();
    match (ids.first(), ids.last()) {
        (Some(first), Some(last)) if last - first + 1 == ids.len() => Ok(*first..last + 1),
        _ => Err(Error::Config {
            problems: format!("the ids of the task tokens must follow one another, found {ids:?}"),
        }),
    }
}

/// CG-DETR of a VideoChat-TPO or in a file of its own.
fn temporal(file: &Path) -> Result<Part> {
    const WITHIN: &str = "heads.temporal.model.";
    let whole = Checkpoint::open(file)?
        .tensors()
        .any(|t| t.key.starts_with("cg_model."));
    let rules = if whole {
        cg_detr_rules()?
    } else {
        KeyRules::new().rewrite(CG_DETR_KEYS, CG_DETR_KEYS_INVERSE)?
    };
    let keys = if whole {
        KeyTables::new().with(rules.within(WITHIN))
    } else {
        tables(vec![rules], WITHIN)
    };
    Ok(Part {
        other_width: &OF_FEATURES,
        ..Part::new(["CG-DETR", "--temporal"], file, keys, |path| {
            path.starts_with(WITHIN)
        })
    })
}

/// The tokenizer's files with the base's own tokens and the task tokens by name.
fn with_names(dir: &Path, config: &TpoConfig, first: usize) -> Result<Vec<(String, Vec<u8>)>> {
    let files = tokenizer_files(dir)?;
    let mut tokenizer = Tokenizer::from_dir(dir)?;
    let own = NAMED_TOKENS.into_iter().zip(first as u32..);
    let tasks = config.tasks.tokens().map(|t| (t.token.as_str(), t.id));
    let mut tokens: Vec<(&str, u32)> = own.chain(tasks).collect();
    tokens.sort_by_key(|(_, id)| *id);
    tokenizer.add_tokens_with_ids(tokens)?;
    Ok(tokenizer.write_added(&files)?)
}
