//! Loading the text tower from the files it is published in.

use std::path::PathBuf;

use tpo_core::weights::{
    Checkpoint, KeyRules, KeyScope, Layer, LoadOptions, LoadReport, WeightsError, load_layers,
};

use super::TextTower;
use crate::error::Result;

/// Prefix of the tower's keys in a merged checkpoint.
pub const TEXT_PREFIX: &str = "text_encoder.";

/// Keys of the text tower's files that are known to be unused, with the reason.
pub const TEXT_UNUSED_KEYS: &[(&str, &str)] = &[(
    r"\.rotary_emb\.inv_freq$",
    "frequencies are computed from the configuration",
)];

/// The files of the tower; where both have a tensor, the later one is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFiles {
    /// The InternVL-C file (`internvl_c_13b_224px`): `transformer.*` and `text_projection`. Its
    /// own vision tower and everything else in it are skipped.
    pub text: PathBuf,
    /// The CLIP file (`1B_clip`) with final names; as published it holds nothing of this tower.
    pub clip: Option<PathBuf>,
}

/// The table between the keys of a merged checkpoint (`text_encoder.*`) and the tower's paths.
/// Adapters are accepted in both spellings of peft: `q_proj.base_layer.weight` beside
/// `q_proj.lora_A.default.weight`, and `q_proj.weight` beside it (before 0.6), which the
/// reference's loader would silently leave at random values.
///
/// # Errors
/// None in practice; the patterns are constants.
pub fn text_rules() -> Result<KeyRules, WeightsError> {
    KeyRules::new()
        .owns([TEXT_PREFIX])
        .wrapped_in(WRAPPERS)
        .rewrite(
            &[
                (r"^text_encoder\.transformer\.", "transformer.model."),
                (r"^text_encoder\.", ""),
            ],
            &[
                (r"^transformer\.model\.", "transformer."),
                (r"^", TEXT_PREFIX),
            ],
        )?
        .lora("default")
        .ignore_all(TEXT_UNUSED_KEYS)
}

/// What keys may be wrapped in.
const WRAPPERS: &[&str] = &["module."];

/// The table of the InternVL-C file's own names, [`text_rules`] without [`TEXT_PREFIX`].
fn own_rules() -> Result<KeyRules, WeightsError> {
    KeyRules::new()
        .owns(["transformer.", "text_projection"])
        .wrapped_in(WRAPPERS)
        .rewrite(
            &[(r"^transformer\.", "transformer.model.")],
            &[(r"^transformer\.model\.", "transformer.")],
        )?
        .lora("default")
        .ignore_all(TEXT_UNUSED_KEYS)
}

impl TextTower {
    /// Loads the tower from `files`; the returned reports are in their order. Tensors stream from
    /// the files one at a time.
    ///
    /// # Errors
    /// [`LlmError::Weights`](crate::LlmError::Weights) listing everything that is missing,
    /// unexpected or of another shape.
    pub fn load(
        self,
        files: &TextFiles,
        options: &LoadOptions<'_>,
    ) -> Result<(Self, Vec<LoadReport>)> {
        let (own, merged) = (own_rules()?, text_rules()?);
        let text = Checkpoint::open(&files.text)?;
        let clip = files.clip.as_ref().map(Checkpoint::open).transpose()?;
        let mut layers: Vec<Layer<'_>> = vec![(&text, &own, KeyScope::Part)];
        if let Some(clip) = &clip {
            layers.push((clip, &merged, KeyScope::Part));
        }
        Ok(load_layers(self, &layers, options)?)
    }
}
