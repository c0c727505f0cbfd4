//! Loading a Hugging Face directory, or a GGUF file in its place.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use tpo_core::ops::QuantFormat;
use tpo_core::weights::{
    Checkpoint, DtypePolicy, GgufFile, KeyRules, LoadOptions, LoadReport, WeightsError, load_module,
};

use crate::config::LlmConfig;
use crate::decoder::CausalLm;
use crate::error::{LlmError, Result};
use crate::gguf::GgufModel;
use crate::tokenizer::Tokenizer;

/// A language model as a Hugging Face directory or a GGUF file holds it.
#[derive(Debug)]
pub struct HfModel {
    /// The model.
    pub lm: CausalLm,
    /// Its tokenizer, with the chat template and the ids that end an answer.
    pub tokenizer: Tokenizer,
    /// What was loaded.
    pub report: LoadReport,
}

/// How the weights are held in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HfOptions {
    /// Dtype they are cast to; `None` keeps that of a directory's file, and of a GGUF file that of
    /// the token embeddings (`f32` if these are quantised).
    pub dtype: Option<FloatDType>,
    /// Quantises the linear layers of the blocks while they are read, and the output layer, which has
    /// 8 bits in every format. What a GGUF file has in this format is taken as it is.
    pub quantize: Option<QuantFormat>,
}

/// Loads a language model with its tokenizer: `config.json`, safetensors (one file or sharded) and
/// the tokenizer of a Hugging Face directory, or all of a GGUF file ([`GgufModel`]).
///
/// `progress` is called with (bytes done, bytes in total).
///
/// # Errors
/// Any missing or malformed file; any weight that is missing, unexpected or of another shape.
pub fn from_pretrained(
    path: impl AsRef<Path>,
    device: &Device,
    options: HfOptions,
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<HfModel> {
    let path = path.as_ref();
    // A file that is not there is missed under its own name.
    if path.is_file() || GgufFile::is_one(path) {
        return GgufModel::open(path)?.load(device, options, progress);
    }
    if !path.join("config.json").exists()
        && let Some(file) = gguf_in(path)
    {
        return Err(WeightsError::NotACheckpoint {
            path: path.into(),
            why: format!(
                "it has no config.json, but GGUF files; give one itself: {}",
                file.display()
            ),
        }
        .into());
    }
    let mut config = LlmConfig::from_hf_json(&read(&path.join("config.json"))?)?;
    config.quantization = options.quantize;
    let mut rules = KeyRules::new().ignore(
        r"\.rotary_emb\.inv_freq$",
        "frequencies are computed from the configuration",
    )?;
    if config.tie_word_embeddings {
        rules = rules.ignore(r"^lm_head\.weight$", "tied to the embeddings")?;
    }
    let checkpoint = Checkpoint::open(path)?;
    let load = LoadOptions {
        dtype: options.dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
        progress,
        ..LoadOptions::default()
    };
    let (lm, report) = load_module(config.init(device)?, &checkpoint, &rules, &load)?;
    let tokenizer = Tokenizer::from_dir(path)?;
    Ok(HfModel {
        lm,
        tokenizer,
        report,
    })
}

/// A GGUF file in a directory, the first by name.
fn gguf_in(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| GgufFile::is_one(path)).min()
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| LlmError::Io {
        path: path.into(),
        source,
    })
}
