//! What a GGUF file holds.

use std::path::Path;

use burn::tensor::Device;
use tpo_core::weights::{Checkpoint, GgufFile, Refusal, WeightsError, differences, module_params};
use tpo_llm::{GgufModel, LlmError};

use crate::error::Result;

use super::{Inspection, LayoutChoice, report, top_level_parts};

/// Reads the header of the GGUF file at `path` and compares its tensors with those that a language
/// model of its sizes has. A sound file whose model this program does not compute is none of its errors: a note says
/// why. Sizes, tokenizer and chat template are checked as opening the model checks them.
pub(super) fn inspect(path: &Path, choice: LayoutChoice) -> Result<Inspection> {
    let file = GgufFile::open(path)?;
    let mut notes = vec![summary(&file)?];
    let nothing = Refusal {
        checkpoint: path.to_path_buf(),
        ..Refusal::default()
    };
    let compared = match choice {
        LayoutChoice::Auto => compare(&file),
        LayoutChoice::None => Ok(None),
        _ => {
            return Err(file
                .error(
                    "a GGUF file is compared with the sizes it states; leave --layout out".into(),
                )
                .into());
        }
    };
    let (layout, found, checkpoint) = match compared {
        Ok(Some((layout, found, checkpoint))) => (Some(layout), found, checkpoint),
        Ok(None) => (None, nothing, file.checkpoint(|_| None)),
        Err(error @ LlmError::Unsupported { .. }) => {
            notes.push(format!("tpo does not open it: {error}"));
            (None, nothing, file.checkpoint(|_| None))
        }
        Err(error) => return Err(error.into()),
    };
    let parts = top_level_parts(&checkpoint);
    Ok(report(&checkpoint, &parts, layout, found, notes))
}

type Compared = (String, Refusal, Checkpoint);

fn compare(file: &GgufFile) -> Result<Option<Compared>, LlmError> {
    let model = GgufModel::from_file(file.clone())?;
    model.tokenizer()?.chat_template()?;
    let params = module_params(&model.config().init(&Device::flex())?);
    let found = differences(&params, model.checkpoint(), model.keys());
    let layout = format!(
        "of a {} model in GGUF",
        file.need::<&str>("general.architecture")?
    );
    Ok(Some((layout, found, model.checkpoint().clone())))
}

/// What the metadata says, in a line.
fn summary(file: &GgufFile) -> Result<String, WeightsError> {
    let mut words = vec![format!("GGUF version {}", file.version())];
    let mut say = |what: &str, key: &str| -> Result<(), WeightsError> {
        let text = file.get::<&str>(key)?;
        words.extend(text.map(|text| format!("{what} {text:?}")));
        Ok(())
    };
    say("architecture", "general.architecture")?;
    say("name", "general.name")?;
    say("licence", "general.license")?;
    say("tokenizer", "tokenizer.ggml.model")?;
    say("pre-tokenizer", "tokenizer.ggml.pre")?;
    if let Some(tokens) = file.get::<&[String]>("tokenizer.ggml.tokens")? {
        words.push(format!("{} tokens", tokens.len()));
    }
    let template = file.get::<&str>("tokenizer.chat_template")?.is_some();
    let with = if template { "a" } else { "no" };
    words.push(format!("{with} chat template"));
    Ok(words.join(", "))
}
