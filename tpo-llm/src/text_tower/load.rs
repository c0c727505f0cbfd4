//! Loading the text tower from the files it is published in.

use std::path::PathBuf;

use tpo_core::weights::{
    Checkpoint, KeyMap, KeyRules, KeyScope, KeyTarget, LoadOptions, LoadReport, WeightsError,
    load_module,
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
    let mut rules = KeyRules::new()
        .owns([TEXT_PREFIX])
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
        .lora("default");
    for (pattern, reason) in TEXT_UNUSED_KEYS {
        rules = rules.ignore(pattern, reason)?;
    }
    Ok(rules)
}

/// A key without the dictionary that PyTorch's files wrap it in.
fn unwrapped(key: &str) -> &str {
    key.strip_prefix("module.").unwrap_or(key)
}

/// The InternVL-C file's own names, without what the later file replaced.
struct OwnNames<'a> {
    rules: &'a KeyRules,
    replaced: Vec<String>,
    by: String,
}

impl KeyMap for OwnNames<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        let key = unwrapped(key);
        if !key.starts_with("transformer.") && key != "text_projection" {
            return KeyTarget::OtherPart;
        }
        match self.rules.module_path(&format!("{TEXT_PREFIX}{key}")) {
            KeyTarget::Path(path) if self.replaced.contains(&path) => {
                KeyTarget::Ignored(format!("replaced by {}", self.by))
            }
            target => target,
        }
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        let key = self.rules.checkpoint_key(path, has)?;
        key.strip_prefix(TEXT_PREFIX).map(String::from)
    }
}

/// Final names, without wrapping.
struct FinalNames<'a>(&'a KeyRules);

impl KeyMap for FinalNames<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        self.0.module_path(unwrapped(key))
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        self.0.checkpoint_key(path, has)
    }
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
        let rules = text_rules()?;
        let mut tower = self;
        let mut names = OwnNames {
            rules: &rules,
            replaced: Vec::new(),
            by: String::new(),
        };
        let mut later = None;
        // The later file is loaded first, and the earlier one then leaves out what it provided.
        if let Some(clip) = &files.clip {
            let part = LoadOptions {
                strict_missing: false,
                strict_unexpected: true,
                strict_mismatched: true,
                scope: KeyScope::Part,
                ..options.clone()
            };
            let checkpoint = Checkpoint::open(clip)?;
            let (loaded, mut report) = load_module(tower, &checkpoint, &FinalNames(&rules), &part)?;
            tower = loaded;
            names.by = clip.display().to_string();
            names.replaced = report.loaded.iter().map(|t| t.path.clone()).collect();
            // The earlier file must have the rest, or it is rejected.
            report.missing.clear();
            later = Some(report);
        }
        let mut allow_missing = options.allow_missing.clone();
        let anchored = |p: &String| format!("^{}$", p.replace('.', r"\."));
        allow_missing.extend(names.replaced.iter().map(anchored));
        let strict = LoadOptions {
            strict_missing: true,
            strict_unexpected: true,
            strict_mismatched: true,
            allow_missing,
            scope: KeyScope::Part,
            ..options.clone()
        };
        let (tower, mut report) =
            load_module(tower, &Checkpoint::open(&files.text)?, &names, &strict)?;
        report.missing.retain(|m| !names.replaced.contains(&m.path));
        Ok((tower, std::iter::once(report).chain(later).collect()))
    }
}
