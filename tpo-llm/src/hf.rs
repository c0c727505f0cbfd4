//! Loading a Hugging Face directory.

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use tpo_core::ops::QuantFormat;
use tpo_core::weights::{Checkpoint, DtypePolicy, KeyRules, LoadOptions, LoadReport, load_module};

use crate::config::LlmConfig;
use crate::decoder::CausalLm;
use crate::error::{LlmError, Result};
use crate::tokenizer::Tokenizer;

/// A language model as a Hugging Face directory holds it.
#[derive(Debug)]
pub struct HfModel {
    /// The model.
    pub lm: CausalLm,
    /// Its tokenizer, with the chat template and the ids that end an answer.
    pub tokenizer: Tokenizer,
    /// What was loaded.
    pub report: LoadReport,
}

/// How the weights of a Hugging Face directory are held in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HfOptions {
    /// Dtype they are cast to; `None` keeps the file's.
    pub dtype: Option<FloatDType>,
    /// Quantises the linear layers of the blocks while they are read.
    pub quantize: Option<QuantFormat>,
}

/// Loads `config.json`, safetensors (one file or sharded) and the tokenizer of a directory.
///
/// `progress` is called with (bytes done, bytes in total).
///
/// # Errors
/// Any missing or malformed file; any weight that is missing, unexpected or of another shape.
pub fn from_hf_dir(
    dir: impl AsRef<Path>,
    device: &Device,
    options: HfOptions,
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<HfModel> {
    let dir = dir.as_ref();
    let mut config = LlmConfig::from_hf_json(&read(&dir.join("config.json"))?)?;
    config.quantization = options.quantize;
    let mut rules = KeyRules::new().ignore(
        r"\.rotary_emb\.inv_freq$",
        "frequencies are computed from the configuration",
    )?;
    if config.tie_word_embeddings {
        rules = rules.ignore(r"^lm_head\.weight$", "tied to the embeddings")?;
    }
    let checkpoint = Checkpoint::open(dir)?;
    let load = LoadOptions {
        dtype: options.dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
        progress,
        ..LoadOptions::default()
    };
    let (lm, report) = load_module(config.init(device)?, &checkpoint, &rules, &load)?;
    let tokenizer = Tokenizer::from_dir(dir)?;
    Ok(HfModel {
        lm,
        tokenizer,
        report,
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| LlmError::Io {
        path: path.into(),
        source,
    })
}
