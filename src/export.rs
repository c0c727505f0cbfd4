//! Writing a trained model for others to use.

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use tpo_core::weights::{
    Checkpoint, DtypePolicy, SaveOptions, SaveReport, average_checkpoints, save_module,
};

use crate::config::{TpoConfig, VideoChatTpo, videochat_tpo_keys};
use crate::error::{Error, Result};
use crate::model_dir::{CONFIG_FILE, read_config, tokenizer_files as files_of_tokenizer};

/// What becomes of the adapters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoraExport {
    /// Beside the weights under PEFT's names (`….base_layer.weight`, `….lora_A.default.weight`),
    /// as in the published checkpoint.
    #[default]
    Adapters,
    /// Added to the weights: a plain decoder, smaller and without the cost of the adapters.
    Merged,
}

/// Options of [`export_model`] and [`average_models`].
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Adapters.
    pub lora: LoraExport,
    /// Data type of all floating-point weights; `None` keeps each as it is.
    pub dtype: Option<FloatDType>,
    /// Largest shard in bytes.
    pub max_shard_bytes: u64,
    /// Whether a model that is there is replaced.
    pub overwrite: bool,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            lora: LoraExport::default(),
            dtype: None,
            max_shard_bytes: 5_000_000_000,
            overwrite: false,
        }
    }
}

impl ExportOptions {
    fn save(&self) -> SaveOptions {
        SaveOptions {
            max_shard_bytes: self.max_shard_bytes,
            dtype: self.dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
            overwrite: self.overwrite,
            ..SaveOptions::default()
        }
    }
}

/// Writes a model directory in the reference's layout: safetensors under the reference's names, in
/// shards with an index when it is large, and `tpo.json` with the sizes. [`Session::open`] reads
/// it; copy the tokenizer's files beside it, or give them in `tokenizer_files` (name, bytes).
///
/// Tensors are written one at a time. `tpo.json` comes last, so that a directory with it is whole.
///
/// [`Session::open`]: crate::Session::open
///
/// # Errors
/// [`Error::Weights`] when a file cannot be written or a model is there already.
pub fn export_model(
    model: VideoChatTpo,
    config: &TpoConfig,
    tokenizer_files: &[(String, Vec<u8>)],
    dir: impl AsRef<Path>,
    options: &ExportOptions,
) -> Result<SaveReport> {
    let dir = dir.as_ref();
    let (mut model, mut config) = (model, config.clone());
    if options.lora == LoraExport::Merged {
        model.llm = model.llm.bake_lora();
        config.llm.lora = None;
    } else {
        // A session may have merged them to be faster.
        model.llm = model.llm.unmerge_lora();
    }
    let report = save_module(&model, &videochat_tpo_keys()?, dir, &options.save())?;
    write_beside(&written(dir, &config)?, tokenizer_files, dir)?;
    Ok(report)
}

/// Writes the mean of the models in `dirs` to `dir`: a model soup
/// ([`average_checkpoints`]). They must be of one configuration and have one tokenizer; with adapters
/// beside the weights, export them with [`LoraExport::Merged`] first.
///
/// `options.lora` is not used: there is nothing to merge.
///
/// # Errors
/// [`Error::ModelDir`] where a directory holds no model, adapters, or another configuration or
/// tokenizer than the first; those of [`average_checkpoints`].
pub fn average_models(
    dirs: &[PathBuf],
    dir: impl AsRef<Path>,
    options: &ExportOptions,
) -> Result<SaveReport> {
    let dir = dir.as_ref();
    let wrong = |path: &Path, why: String| Error::ModelDir {
        path: path.into(),
        why,
    };
    // Which says that it takes two or more.
    let Some((first, others)) = dirs.split_first() else {
        return Ok(average_checkpoints(&[], dir, &options.save())?);
    };
    for dir in dirs {
        let why = match (dir.is_dir(), dir.join(CONFIG_FILE).is_file()) {
            (false, _) => "is not a directory".to_string(),
            (_, false) => format!("holds no {CONFIG_FILE}"),
            (true, true) => continue,
        };
        let why = format!("{why}; give a model directory, as `train --export DIR` writes it");
        return Err(wrong(dir, why));
    }
    let config = read_config(first)?;
    if config.llm.lora.is_some() {
        let why = "has LoRA adapters, and the mean of factors is not the mean of their products; \
                   export it with the adapters merged (train --export --merge)";
        return Err(wrong(first, why.into()));
    }
    let tokenizer = files_of_tokenizer(first)?;
    let json = written(first, &config)?;
    for other in others {
        let found = written(other, &read_config(other)?)?;
        if found != json {
            let why = format!(
                "its {CONFIG_FILE} is not that of {}{}; average models of one configuration",
                first.display(),
                first_difference(&found, &json)
            );
            return Err(wrong(other, why));
        }
        if files_of_tokenizer(other)? != tokenizer {
            let why = format!(
                "its tokenizer is not that of {}; average models of one configuration",
                first.display()
            );
            return Err(wrong(other, why));
        }
    }
    let checkpoints: Vec<Checkpoint> = dirs
        .iter()
        .map(Checkpoint::open)
        .collect::<Result<_, _>>()?;
    let report = average_checkpoints(&checkpoints, dir, &options.save())?;
    write_beside(&json, &tokenizer, dir)?;
    Ok(report)
}

/// The first line that two texts do not share, for a message.
fn first_difference(found: &[u8], expected: &[u8]) -> String {
    let lines = |text| String::from_utf8_lossy(text).into_owned();
    let (found, expected) = (lines(found), lines(expected));
    let mut pairs = found.lines().zip(expected.lines());
    match pairs.find(|(a, b)| a != b) {
        Some((a, b)) => format!(": `{}` instead of `{}`", a.trim(), b.trim()),
        None => String::new(),
    }
}

/// The sizes as [`CONFIG_FILE`] has them.
fn written(dir: &Path, config: &TpoConfig) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(config).map_err(|e| Error::ModelDir {
        path: dir.join(CONFIG_FILE),
        why: e.to_string(),
    })
}

/// The tokenizer's files and, last, the sizes.
fn write_beside(json: &[u8], tokenizer_files: &[(String, Vec<u8>)], dir: &Path) -> Result<()> {
    let files = tokenizer_files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()));
    for (name, bytes) in files.chain([(CONFIG_FILE, json)]) {
        let path = dir.join(name);
        let partial = dir.join(format!("{name}.partial"));
        std::fs::write(&partial, bytes)
            .and_then(|()| std::fs::rename(&partial, &path))
            .map_err(|e| Error::ModelDir {
                path,
                why: e.to_string(),
            })?;
    }
    Ok(())
}
