//! The mean of models that continued from the same weights.

use std::path::{Path, PathBuf};

use tpo_core::weights::{Checkpoint, SaveReport, average_checkpoints};

use super::export::{ExportOptions, check_target, write_beside, written};
use super::{CONFIG_FILE, read_config, tokenizer_files as files_of_tokenizer};
use crate::error::{Error, Result};

/// Writes the mean of the models in `dirs` to `dir`: a model soup
/// ([`average_checkpoints`]). They must be of one configuration and have one tokenizer; with adapters
/// beside the weights, export them with [`LoraExport::Merged`](crate::export::LoraExport::Merged) first.
///
/// `options.lora` and `options.layout` are not used: there is nothing to merge, and names stay.
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
    // One alone is refused below, whatever is in the way.
    if !others.is_empty() {
        let inputs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        check_target(dir, &inputs, true, options.overwrite)?;
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
