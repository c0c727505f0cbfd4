//! Writing a trained model for others to use.

use std::io::Write;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use tpo_core::head::HeadSet;
use tpo_core::weights::{
    DtypePolicy, INDEX_FILE, LoadOptions, SINGLE_FILE, SaveOptions, SaveReport, TensorSource,
    load_module, module_tensors, save_module, save_tensors,
};

use super::directory::TOKENIZER_FILES;
use super::families::onevision::{self, Names};
use super::{
    CONFIG_FILE, Quantize, Tpo, TpoConfig, model_tokenizer, open_weights, read_config_of,
    tokenizer_files,
};
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
    /// Of a LLaVA-OV-TPO: the names that its tensors get, with which the base's `config.json` is written, so that the
    /// base's published code reads the directory too (it passes over the heads). `None` for names of our own,
    /// without that file.
    pub layout: Option<Names>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            lora: LoraExport::default(),
            dtype: None,
            max_shard_bytes: 5_000_000_000,
            overwrite: false,
            layout: None,
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
/// As [`check_target`]; [`Error::Weights`] when a file cannot be written; [`Error::Config`] with everything that a
/// wanted layout cannot hold.
pub fn export_model<H: HeadSet>(
    model: Tpo<H>,
    config: &TpoConfig,
    tokenizer_files: &[(String, Vec<u8>)],
    dir: impl AsRef<Path>,
    options: &ExportOptions,
) -> Result<SaveReport> {
    let dir = dir.as_ref();
    check_target(dir, &[], !tokenizer_files.is_empty(), options.overwrite)?;
    let (mut model, mut config) = (model, config.clone());
    if options.lora == LoraExport::Merged {
        model.llm = model.llm.bake_lora();
        config.llm = model.llm.config().clone();
    } else {
        // A session may have merged them to be faster.
        model.llm = model.llm.unmerge_lora();
    }
    let Some(names) = options.layout else {
        let report = save_module(&model, &config.keys::<H>()?, dir, &options.save())?;
        write_beside(&written(dir, &config)?, tokenizer_files, dir)?;
        return Ok(report);
    };
    let base = onevision::written::config_json(&config, names)?;
    let (save, keys) = (options.save(), config.keys_named::<H>(names)?);
    let unused = onevision::written::unused_norm(&model.vision, names, save.dtype);
    let mut tensors = module_tensors(&model, &keys, save.dtype, &|_| true)?;
    for (key, data) in &unused {
        tensors.push(TensorSource::from_data(key, data)?);
    }
    let report = save_tensors(tensors, dir, &save)?;
    let path = dir.join("config.json");
    let json = format!("{base:#}\n");
    let written_whole = write_whole(&path, |out| out.write_all(json.as_bytes()));
    written_whole.map_err(|e| unwritable(&path, e))?;
    write_beside(&written(dir, &config)?, tokenizer_files, dir)?;
    Ok(report)
}

/// Makes the directory of an export, before the work is done whose result it shall hold, and refuses
/// one that holds a model or a part of one, unless it may be overwritten. One that is or contains one of
/// the `inputs`, the files and directories that the result is made of, is always refused. `tokenizer` says
/// whether a tokenizer's files are written too.
///
/// # Errors
/// [`Error::ModelDir`] when the directory cannot be made, or naming the input or the file that is there.
pub fn check_target(
    dir: impl AsRef<Path>,
    inputs: &[&Path],
    tokenizer: bool,
    overwrite: bool,
) -> Result<()> {
    let dir = dir.as_ref();
    // What does not exist yet holds no input, and an input that is not there is refused where it is read.
    if let Ok(target) = dir.canonicalize() {
        let within = |input: &&&Path| {
            input
                .canonicalize()
                .is_ok_and(|input| input.starts_with(&target))
        };
        if let Some(input) = inputs.iter().find(within) {
            return Err(Error::ModelDir {
                path: dir.into(),
                why: format!(
                    "is or contains the input {}, which could be lost, also with `--overwrite`; choose \
                     another directory",
                    input.display()
                ),
            });
        }
    }
    let failed = |e: std::io::Error| Error::ModelDir {
        path: dir.into(),
        why: format!("cannot be written to: {e}; choose another directory"),
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    if overwrite {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let part = tokenizer && TOKENIZER_FILES.contains(&&*name);
        if weights || part || name == CONFIG_FILE {
            return Err(Error::ModelDir {
                path: dir.join(&*name),
                why: "exists and belongs to a model; choose another directory, or allow it to be \
                      overwritten (`--overwrite`, ExportOptions::overwrite)"
                    .into(),
            });
        }
    }
    Ok(())
}

/// Writes the model of a directory to another, as [`export_model`] does, with linear layers
/// quantised where `quantize` says so, in the memory of the result. `progress` hears (bytes read, bytes in total).
///
/// # Errors
/// As [`Session::open_with_heads`](crate::Session::open_with_heads) and [`export_model`].
pub fn convert_model<H: HeadSet>(
    model: impl AsRef<Path>,
    dir: impl AsRef<Path>,
    quantize: Quantize,
    options: &ExportOptions,
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<SaveReport> {
    let model = model.as_ref();
    let mut config = read_config_of::<H>(model)?;
    check_target(dir.as_ref(), &[model], true, options.overwrite)?;
    // Refused here if it is no tokenizer of this model.
    model_tokenizer(model, &config)?;
    let (checkpoint, keys) = open_weights::<H>(model, &config)?;
    config.quantize(quantize)?;
    if let Some(names) = options.layout {
        // Refused before the weights are read.
        let mut written = config.clone();
        if options.lora == LoraExport::Merged {
            written.llm.lora = None;
        }
        onevision::written::config_json(&written, names)?;
    }
    let load = LoadOptions {
        dtype: options.dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
        progress,
        ..LoadOptions::default()
    };
    let built = config.init::<H>(&Device::flex())?;
    let (built, _) = load_module(built, &checkpoint, &keys, &load)?;
    export_model(built, &config, &tokenizer_files(model)?, dir, options)
}

/// The sizes as [`CONFIG_FILE`] has them.
pub(super) fn written(dir: &Path, config: &TpoConfig) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(config).map_err(|e| Error::ModelDir {
        path: dir.join(CONFIG_FILE),
        why: e.to_string(),
    })
}

/// The tokenizer's files, in place of those of another model, and, last, the sizes.
pub(super) fn write_beside(
    json: &[u8],
    tokenizer_files: &[(String, Vec<u8>)],
    dir: &Path,
) -> Result<()> {
    let kept = |name: &str| tokenizer_files.iter().any(|(n, _)| n == name);
    for name in TOKENIZER_FILES.iter().filter(|n| !kept(n)) {
        let path = dir.join(name);
        // A tokenizer of which nothing is given is copied there by the user.
        if !tokenizer_files.is_empty() && path.is_file() {
            std::fs::remove_file(&path).map_err(|e| unwritable(&path, e))?;
        }
    }
    let files = tokenizer_files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()));
    for (name, bytes) in files.chain([(CONFIG_FILE, json)]) {
        let path = dir.join(name);
        let written = write_whole(&path, |out| out.write_all(bytes));
        written.map_err(|e| unwritable(&path, e))?;
    }
    Ok(())
}

/// Moves the model in the folder `from`, which `saved` tells of, to `dir`, in place of one that is there.
/// What weights are opened by, the index or their one file, goes first and comes last: there is never a
/// mixture that opens.
pub(super) fn move_model(from: &Path, dir: &Path, saved: &mut SaveReport) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(dir).map_err(|e| unwritable(dir, e))?;
        let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
        let names: std::io::Result<_> = names.collect();
        names.map_err(|e| unwritable(dir, e))
    };
    let opened_by = |name: &String| [INDEX_FILE, SINGLE_FILE].contains(&name.as_str());
    let shard = |name: &String| {
        name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors")
    };
    let beside = |name: &String| name == CONFIG_FILE || TOKENIZER_FILES.contains(&name.as_str());
    let mut old = names(dir)?;
    old.retain(|name| opened_by(name) || shard(name) || beside(name));
    old.sort_by_key(|name| !opened_by(name));
    for name in old {
        let path = dir.join(name);
        std::fs::remove_file(&path).map_err(|e| unwritable(&path, e))?;
    }
    let mut new = names(from)?;
    new.sort_by_key(opened_by);
    for name in new {
        let path = dir.join(&name);
        std::fs::rename(from.join(&name), &path).map_err(|e| unwritable(&path, e))?;
    }
    for file in &mut saved.files {
        *file = dir.join(file.file_name().unwrap_or_default());
    }
    Ok(())
}

pub(super) fn unwritable(path: &Path, e: std::io::Error) -> Error {
    Error::ModelDir {
        path: path.into(),
        why: e.to_string(),
    }
}
