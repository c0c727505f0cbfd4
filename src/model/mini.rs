//! The files of the model that comes with the library.

use std::path::Path;

use tempfile::TempDir;
use tpo_llm::tokenizer::Tokenizer;

use super::{CONFIG_FILE, TpoConfig};
use crate::error::{Error, Result};

const CONFIG: &str = include_str!("../../assets/mini/tpo.json");
const TOKENIZER: &str = include_str!("../../assets/mini/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../assets/mini/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/mini/model.safetensors");

/// Sizes of all parts of the mini model.
///
/// # Errors
/// None that an intact build can cause.
pub fn mini_config() -> Result<TpoConfig> {
    TpoConfig::from_json(CONFIG).map_err(|e| Error::ModelDir {
        path: CONFIG_FILE.into(),
        why: format!("the configuration in this build: {e}"),
    })
}

/// The tokenizer of the mini model.
///
/// # Errors
/// None that an intact build can cause.
pub fn mini_tokenizer() -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_tokenizer_json_bytes(TOKENIZER.as_bytes())?;
    tokenizer.set_eos_id(tokenizer.token_to_id("</s>"));
    Ok(tokenizer)
}

/// The files it is made of.
pub(crate) fn mini_tokenizer_files() -> Vec<(String, Vec<u8>)> {
    vec![
        ("tokenizer.json".into(), TOKENIZER.into()),
        ("tokenizer_config.json".into(), TOKENIZER_CONFIG.into()),
    ]
}

/// The model's directory in a temporary folder, which goes when it is dropped.
pub(crate) fn unpacked() -> Result<TempDir> {
    let failed = |path: &Path, e: std::io::Error| Error::ModelDir {
        path: path.into(),
        why: e.to_string(),
    };
    let folder = tempfile::Builder::new().prefix("tpo-mini-").tempdir();
    let folder = folder.map_err(|e| failed(&std::env::temp_dir(), e))?;
    let mut files = mini_tokenizer_files();
    files.push((CONFIG_FILE.into(), CONFIG.into()));
    files.push(("model.safetensors".into(), WEIGHTS.into()));
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(|e| failed(&path, e))?;
    }
    Ok(folder)
}
