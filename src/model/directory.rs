//! Model directories: the reference's layout and ours.
//!
//! Our layout is the reference's plus `tpo.json`: safetensors under the reference's key names, the
//! tokenizer's files, and the sizes of all parts. A directory without `tpo.json` is that of a published base whose
//! `config.json` says which; without that its tensors tell a LLaVA-OneVision of a published size, and it is else taken for
//! VideoChat-TPO of the published sizes.

use std::path::Path;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_core::weights::{Checkpoint, DtypePolicy, GgufFile, KeyTables, LoadOptions, load_module};
use tpo_llm::tokenizer::Tokenizer;

use super::families::onevision;
use super::families::published::{is_published, published};
use super::{ConnectorConfig, Tpo, TpoConfig};
use crate::error::{Error, Result};

/// File with the sizes of all parts.
pub const CONFIG_FILE: &str = "tpo.json";

/// A byte-level tokenizer with the seven task tokens.
const BYTE_TOKENIZER: &str = include_str!("../../assets/byte_tokenizer.json");
const BYTE_TOKENIZER_CONFIG: &str =
    r#"{"bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>","pad_token":"<unk>"}"#;

/// The files a tokenizer is made of, as far as a directory has them.
pub(super) const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// A byte-level tokenizer.
pub(crate) fn byte_tokenizer() -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_tokenizer_json_bytes(BYTE_TOKENIZER.as_bytes())?;
    tokenizer.set_eos_id(tokenizer.token_to_id("</s>"));
    Ok(tokenizer)
}

/// The files it is made of.
pub(crate) fn byte_tokenizer_files() -> Vec<(String, Vec<u8>)> {
    vec![
        ("tokenizer.json".into(), BYTE_TOKENIZER.into()),
        ("tokenizer_config.json".into(), BYTE_TOKENIZER_CONFIG.into()),
    ]
}

/// The tokenizer of the model in `dir`, task tokens included.
pub(crate) fn model_tokenizer(dir: &Path, config: &TpoConfig) -> Result<Tokenizer> {
    // The reference's ids are those of the slow sentencepiece tokenizer.
    let published = !dir.join(CONFIG_FILE).exists() && dir.join("tokenizer.model").exists();
    let mut tokenizer = if published {
        Tokenizer::from_sentencepiece_dir(dir)?
    } else {
        Tokenizer::from_dir(dir)?
    };
    add_task_tokens(&mut tokenizer, config)?;
    Ok(tokenizer)
}

/// The weights in `dir` of a model of this configuration, and the names they have there: those of a OneVision
/// are told by the tensors.
///
/// # Errors
/// [`Error::Weights`] for files that are damaged, or of which two tensors that must be equal are not.
pub(crate) fn open_weights<H: HeadSet>(
    dir: &Path,
    config: &TpoConfig,
) -> Result<(Checkpoint, KeyTables<'static>)> {
    if !matches!(config.connector, ConnectorConfig::OneVision(_)) {
        return Ok((Checkpoint::open(dir)?, config.keys::<H>()?));
    }
    let (checkpoint, names) = onevision::open_named(dir, &config.llm)?;
    Ok((checkpoint, config.keys_named::<H>(names)?))
}

/// The model in `dir` for training, its floats as `dtype` says. What the files lack of the paths that
/// match `missing` is drawn when it is first looked at.
pub(crate) fn load_model<H: HeadSet>(
    dir: &Path,
    config: &TpoConfig,
    device: &Device,
    dtype: DtypePolicy,
    missing: Vec<String>,
) -> Result<Tpo<H>> {
    let load = LoadOptions {
        allow_missing: missing,
        dtype,
        ..LoadOptions::default()
    };
    let (checkpoint, keys) = open_weights::<H>(dir, config)?;
    let model = config.assemble(device)?;
    let (model, _) = load_module(model, &checkpoint, &keys, &load)?;
    Ok(model)
}

/// `model` with the weights in `dir`, but for the parameters at the paths that `left_out` says; `dir`
/// may be of other sizes there, and lack what matches `missing`.
pub(crate) fn load_over<H: HeadSet>(
    dir: &Path,
    config: &TpoConfig,
    model: Tpo<H>,
    dtype: DtypePolicy,
    missing: Vec<String>,
    left_out: &dyn Fn(&str) -> bool,
) -> Result<Tpo<H>> {
    let why = |path: &str| left_out(path).then(|| "left out".into());
    let load = LoadOptions {
        allow_missing: missing,
        left_out: Some(&why),
        dtype,
        ..LoadOptions::default()
    };
    let (checkpoint, keys) = open_weights::<H>(dir, config)?;
    Ok(load_module(model, &checkpoint, &keys, &load)?.0)
}

/// Adds the task tokens that the tokenizer's files do not name.
fn add_task_tokens(tokenizer: &mut Tokenizer, config: &TpoConfig) -> Result<()> {
    let mut missing: Vec<(&str, u32)> = config
        .tasks
        .tokens()
        .filter(|t| tokenizer.token_to_id(&t.token).is_none())
        .map(|t| (t.token.as_str(), t.id))
        .collect();
    missing.sort_by_key(|t| t.1);
    Ok(tokenizer.add_tokens_with_ids(missing)?)
}

pub(crate) fn tokenizer_files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in TOKENIZER_FILES {
        let path = dir.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| Error::ModelDir {
                path,
                why: e.to_string(),
            })?;
            files.push((name.to_string(), bytes));
        }
    }
    Ok(files)
}

/// The configuration of the model in `dir`, checked for a model with the heads `H`. What is wrong names
/// the file that says so.
pub(crate) fn read_config_of<H: HeadSet>(dir: &Path) -> Result<TpoConfig> {
    let config = read_config(dir)?;
    config.validate::<H>().map_err(|e| match e {
        Error::Config { problems } => {
            let file = [CONFIG_FILE, "config.json"].map(|name| dir.join(name));
            let file = file.into_iter().find(|path| path.is_file());
            let file = file.unwrap_or_else(|| dir.into());
            Error::Config {
                problems: format!("{}: {problems}", file.display()),
            }
        }
        other => other,
    })?;
    Ok(config)
}

pub(crate) fn read_config(dir: &Path) -> Result<TpoConfig> {
    if !dir.is_dir() {
        // What a GGUF file is for is said there.
        if GgufFile::is_one(dir) {
            Checkpoint::open(dir)?;
        }
        let what = if dir.exists() {
            "is not a directory"
        } else {
            "does not exist"
        };
        return Err(Error::ModelDir {
            path: dir.into(),
            why: format!("{what}; give the folder that holds the model's files"),
        });
    }
    let path = dir.join(CONFIG_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => TpoConfig::from_json(&text).map_err(|e| Error::ModelDir {
            path,
            why: format!("is not a model configuration: {e}"),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(config) = published_config(dir)? {
                return Ok(config);
            }
            // Weights tell by their headers; where there are none, nothing is known better.
            let weights = Checkpoint::open(dir);
            let base = weights
                .as_ref()
                .ok()
                .and_then(onevision::published::of_width);
            if let Some(config) = base {
                return Ok(config);
            }
            let config = TpoConfig::videochat_tpo();
            let width = config.llm.hidden_size;
            let published = weights.map_or(true, |weights| {
                let mut own = weights.tensors().filter(|t| t.key.starts_with("lm."));
                own.any(|t| t.shape.contains(&width))
            });
            if published {
                return Ok(config);
            }
            Err(Error::ModelDir {
                path: dir.into(),
                why: format!(
                    "has no {CONFIG_FILE}, and its weights are not those of the published \
                     VideoChat-TPO, which a directory without one is taken for; a model of this \
                     library needs its {CONFIG_FILE}, and a language model alone is asked with \
                     `tpo generate` and trained with as `model.llm` of a recipe"
                ),
            })
        }
        Err(e) => Err(Error::ModelDir {
            path,
            why: e.to_string(),
        }),
    }
}

/// The configuration that a published model's `config.json` and the weights beside it say, if there is such a
/// file: VideoChat-TPO's, or that of a LLaVA-OneVision, whose heads are still to be trained.
pub(crate) fn published_config(dir: &Path) -> Result<Option<TpoConfig>> {
    let path = dir.join("config.json");
    let wrong = |why: String| Error::ModelDir {
        path: path.clone(),
        why,
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(wrong(e.to_string())),
    };
    let json = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let config = if onevision::published::is_base(&json) {
        onevision::published::published(&json)
    } else if is_published(&json) {
        published(&json, &Checkpoint::open(dir)?)
    } else {
        return Ok(None);
    };
    config.map(Some).map_err(wrong)
}
