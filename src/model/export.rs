//! Writing a trained model for others to use.

use std::io::Write;
use std::path::Path;

use burn::tensor::FloatDType;
use tpo_core::head::HeadSet;
use tpo_core::weights::{DtypePolicy, SaveOptions, SaveReport, save_module};

use super::{CONFIG_FILE, Tpo, TpoConfig};
use crate::error::{Error, Result};
use crate::files::write_whole;

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

/// Options of [`export_model`] and [`average_models`](super::average::average_models).
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
    pub(super) fn save(&self) -> SaveOptions {
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
pub fn export_model<H: HeadSet>(
    model: Tpo<H>,
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
    let report = save_module(&model, &config.keys::<H>()?, dir, &options.save())?;
    write_beside(&written(dir, &config)?, tokenizer_files, dir)?;
    Ok(report)
}

/// The sizes as [`CONFIG_FILE`] has them.
pub(super) fn written(dir: &Path, config: &TpoConfig) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(config).map_err(|e| Error::ModelDir {
        path: dir.join(CONFIG_FILE),
        why: e.to_string(),
    })
}

/// The tokenizer's files and, last, the sizes.
pub(super) fn write_beside(
    json: &[u8],
    tokenizer_files: &[(String, Vec<u8>)],
    dir: &Path,
) -> Result<()> {
    let files = tokenizer_files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()));
    for (name, bytes) in files.chain([(CONFIG_FILE, json)]) {
        let path = dir.join(name);
        let written = write_whole(&path, |out| out.write_all(bytes));
        written.map_err(|e| Error::ModelDir {
            path,
            why: e.to_string(),
        })?;
    }
    Ok(())
}
