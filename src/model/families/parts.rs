//! The names that the parts of VideoChat-TPO have in the files they were published in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tpo_core::weights::{
    Checkpoint, KeyMap, KeyRules, KeyScope, KeyTables, KeyTarget, WeightsError,
};
use tpo_heads::mask::sam2::sam2_keys;

use super::videochat::{qformer_keys, umt_keys};
use crate::error::{Error, Result};
use crate::model::{TpoConfig, VisionConfig};

/// The dictionaries that PyTorch's files hold a model in.
const WRAPPERS: [&str; 3] = ["model.", "module.", "state_dict."];

/// The files that parts are taken from. Several may be one file.
#[derive(Debug, Clone)]
pub struct PartFiles {
    /// Mistral-7B-Instruct as a Hugging Face directory: `config.json`, safetensors, `tokenizer.model`.
    pub llm: PathBuf,
    /// UMT-L with the norm after it, under `vision_encoder.encoder.` and `vision_layernorm.`.
    pub vision: PathBuf,
    /// The Q-Former with its queries and its projection to the language model, called `project_up` or,
    /// in VideoChat2, `mistral_proj`. Adapters of the language model that it holds (`mistral_model.`) are
    /// taken too.
    pub qformer: PathBuf,
    /// SAM 2.0 with Hiera-L, `sam2_hiera_large`.
    pub sam2: PathBuf,
}

/// A part of the model and the file it is in.
pub(crate) struct Part {
    pub name: &'static str,
    /// How the file is given on the command line.
    pub flag: &'static str,
    pub file: PathBuf,
    /// Names in the file ↔ paths in the model.
    pub keys: KeyTables<'static>,
    /// Whether the file holds this part alone.
    pub scope: KeyScope,
    /// Whether the file need not have it.
    pub optional: bool,
    /// Paths that the file may lack.
    pub may_lack: Vec<String>,
    /// Whether a parameter of the model is of this part.
    of: fn(&str) -> bool,
}

impl Part {
    fn new(
        [name, flag]: [&'static str; 2],
        file: &Path,
        keys: KeyTables<'static>,
        of: fn(&str) -> bool,
    ) -> Self {
        Self {
            name,
            flag,
            file: file.into(),
            keys,
            scope: KeyScope::Part,
            optional: false,
            may_lack: Vec::new(),
            of,
        }
    }

    /// Whether a parameter of the model is of this part.
    pub fn takes(&self, path: &str) -> bool {
        (self.of)(path)
    }

    /// Whether the tensor `key` of the file becomes a parameter of this part.
    pub fn owns(&self, key: &str) -> bool {
        matches!(self.keys.module_path(key), KeyTarget::Path(_))
    }

    /// What is wrong with its file, and what the file holds.
    pub fn error(&self, source: WeightsError, holds: Option<&Checkpoint>) -> Error {
        let holds = holds.map(|checkpoint| {
            let keys = beginnings(checkpoint.tensors().map(|t| t.key.as_str()));
            let named = keys.iter().take(6).map(|(of, n)| format!("{of} ({n})"));
            let named: Vec<String> = named.collect();
            let more = if keys.len() > 6 { ", .." } else { "" };
            let newer = keys.iter().any(|(of, _)| of.contains("obj_ptr_tpos_proj"));
            let remedy = if newer {
                " It is SAM 2.1; the published model has SAM 2.0, `sam2_hiera_large`."
            } else {
                ""
            };
            format!(" The file holds {}{more}.{remedy}", named.join(", "))
        });
        Error::Part {
            part: self.name.into(),
            flag: self.flag.into(),
            file: self.file.clone(),
            source: Box::new(source),
            holds: holds.unwrap_or_default(),
        }
    }
}

fn tables(rules: Vec<KeyRules>, field: &str) -> KeyTables<'static> {
    let mut tables = KeyTables::new();
    for rules in rules {
        tables = tables.with(rules.wrapped_in(&WRAPPERS).within(field));
    }
    tables
}

/// Where the parts of a model of these sizes are.
pub(crate) fn parts(files: &PartFiles, config: &TpoConfig) -> Result<Vec<Part>> {
    let llm = KeyRules::new().ignore(
        r"\.rotary_emb\.inv_freq$",
        "frequencies are computed from the configuration",
    )?;
    let mut vision = Vec::new();
    for rules in umt_keys()? {
        vision.push(
            rules
                .ignore(
                    &unused_blocks(config),
                    "a block after the one whose output is used",
                )?
                .ignore(
                    r"^vision_encoder\.(encoder\.norm|clip_|decoder|mask_token)",
                    "of the pretraining; the model has no place for it",
                )?,
        );
    }
    let mut connector = Vec::new();
    for rules in qformer_keys()? {
        connector.push(
            rules
                .owns(["mistral_proj."])
                .rewrite(&[(r"^mistral_proj\.", "project_up.")], &[])?
                .ignore(r"^qformer\.cls\.", "BERT's output layer, which is not used")?,
        );
    }
    let adapters = KeyRules::new()
        .owns(["mistral_model."])
        .prefix("mistral_model.base_model.model.", "")
        .lora("default")
        .ignore(
            r"^mistral_model\..*(\.base_layer\.weight|embed_tokens\.weight|norm\.weight|inv_freq)$",
            "the language model is that of --llm",
        )?;
    let (llm, vision) = (
        KeyTables::new().with(llm.within("llm.")),
        tables(vision, "vision."),
    );
    let (connector, adapters) = (
        tables(connector, "connector."),
        tables(vec![adapters], "llm."),
    );
    let sam2 = tables(vec![sam2_keys()?], "heads.mask.sam.");
    Ok(vec![
        Part {
            scope: KeyScope::Whole,
            ..Part::new(["language model", "--llm"], &files.llm, llm, |path| {
                path.starts_with("llm.") && !path.contains(".lora.")
            })
        },
        Part::new(
            ["vision encoder", "--vision"],
            &files.vision,
            vision,
            |path| path.starts_with("vision."),
        ),
        Part {
            may_lack: vec![
                r"^connector\.(project_down|merge_proj)\.".into(),
                r"^connector\.qformer\.extra_query_tokens$".into(),
            ],
            ..Part::new(
                ["Q-Former", "--qformer"],
                &files.qformer,
                connector,
                |path| path.starts_with("connector."),
            )
        },
        Part {
            optional: true,
            ..Part::new(
                ["adapters", "--qformer"],
                &files.qformer,
                adapters,
                |path| path.starts_with("llm.") && path.contains(".lora."),
            )
        },
        Part {
            scope: KeyScope::Whole,
            ..Part::new(["SAM 2", "--sam2"], &files.sam2, sam2, |path| {
                path.starts_with("heads.mask.sam.")
            })
        },
    ])
}

/// The pretrained encoder's blocks that the model does not build.
fn unused_blocks(config: &TpoConfig) -> String {
    let unused: Vec<String> = match &config.vision {
        VisionConfig::Umt(umt) => (umt.blocks()..umt.encoder_depth)
            .map(|block| block.to_string())
            .collect(),
        VisionConfig::InternVideo2(_) | VisionConfig::Siglip(_) => Vec::new(),
    };
    format!(
        r"^vision_encoder\.encoder\.blocks\.(none|{})\.",
        unused.join("|")
    )
}

/// Names grouped by their first part, or two where the first is of the whole model.
pub(crate) fn beginnings<'k>(keys: impl Iterator<Item = &'k str>) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for key in keys {
        let of = match key.match_indices('.').nth(1) {
            Some((end, _)) => &key[..end],
            None => key,
        };
        *counts.entry(of.into()).or_default() += 1;
    }
    counts.into_iter().collect()
}
