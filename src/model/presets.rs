//! The model that comes with the library.
//!
//! ```
//! use tpo::prelude::*;
//!
//! # fn main() -> tpo::Result<()> {
//! let device = DeviceChoice::Cpu.open()?;
//! let mut session = tpo::presets::mini(&device, SessionOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! `assets/mini/README.md` says what it learned from, for how long, and how well it answers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_llm::tokenizer::Tokenizer;

use super::{CONFIG_FILE, TpoConfig};
use crate::error::{Error, Result};
use crate::session::{Session, SessionOptions};

const CONFIG: &str = include_str!("../../assets/mini/tpo.json");
const TOKENIZER: &str = include_str!("../../assets/mini/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../assets/mini/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/mini/model.safetensors");

/// The trained mini model: all parts and heads of VideoChat-TPO at small width, for 16 frames of 64
/// pixels of the [synthetic world](tpo_data::synthetic). It knows nothing of real video.
///
/// Its files are part of the program; they are unpacked to a temporary folder while they are read.
///
/// # Errors
/// [`Error::ModelDir`] when the temporary folder cannot be written; as [`Session::open`].
pub fn mini(device: &Device, options: SessionOptions) -> Result<Session> {
    mini_with_heads(device, options)
}

/// [`mini`] for a program with any heads, which must be those of the mini model.
///
/// # Errors
/// As [`mini`]; [`Error::Weights`] naming what the mini model lacks of the heads.
pub fn mini_with_heads<H: HeadSet>(device: &Device, options: SessionOptions) -> Result<Session<H>> {
    let folder = Unpacked::new()?;
    Ok(Session::open_with_heads(&folder.0, device, options, None)?.0)
}

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

/// A folder that goes when it is dropped.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new() -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tpo-mini-{}-{number}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        let failed = |path: &Path, e: std::io::Error| Error::ModelDir {
            path: path.into(),
            why: e.to_string(),
        };
        std::fs::create_dir_all(&folder.0).map_err(|e| failed(&folder.0, e))?;
        let mut files = mini_tokenizer_files();
        files.push((CONFIG_FILE.into(), CONFIG.into()));
        files.push(("model.safetensors".into(), WEIGHTS.into()));
        for (name, bytes) in files {
            let path = folder.0.join(name);
            std::fs::write(&path, bytes).map_err(|e| failed(&path, e))?;
        }
        Ok(folder)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What is left in the temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
