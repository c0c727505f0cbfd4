//! The files that the parts of a model are taken from; of VideoChat-TPO, which they are and what their tensors are
//! called there.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use tpo_core::weights::{
    Checkpoint, KeyMap, KeyRules, KeyScope, KeyTables, KeyTarget, ParamInfo, WeightsError,
};
use tpo_heads::mask::sam2::sam2_keys;
use tpo_llm::LlmConfig;
use tpo_llm::tokenizer::Tokenizer;

use super::videochat::{qformer_keys, umt_keys, videochat_tasks};
use crate::error::{Error, Result};
use crate::model::assemble::Plan;
use crate::model::{Quantize, TpoConfig, VisionConfig};

/// Words of the language model that the task tokens come after (reference implementation).
const WORDS: usize = 32_000;

/// What `tokenizer_config.json` of the published model says that bears on ids.
const TOKENIZER_CONFIG: &str = r#"{
  "add_bos_token": true,
  "add_eos_token": false,
  "bos_token": "<s>",
  "eos_token": "</s>",
  "legacy": true,
  "pad_token": "<unk>",
  "unk_token": "<unk>"
}
"#;

/// The dictionaries that PyTorch's files hold a model in.
pub(super) const WRAPPERS: [&str; 3] = ["model.", "module.", "state_dict."];

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
    /// Ends of paths that may be of another width in the file, and are then not taken.
    pub other_width: &'static [&'static str],
    /// Whether a parameter of the model is of this part.
    pub of: fn(&str) -> bool,
}

impl Part {
    pub(super) fn new(
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
            other_width: &[],
            of,
        }
    }

    /// Whether the tensor `key` of the file becomes a parameter of this part.
    pub fn owns(&self, key: &str) -> bool {
        matches!(self.keys.module_path(key), KeyTarget::Path(_))
    }

    /// SAM 2 from its own file.
    pub(super) fn sam2(file: &Path) -> Result<Self> {
        let keys = tables(vec![sam2_keys()?], "heads.mask.sam.");
        Ok(Self {
            scope: KeyScope::Whole,
            ..Self::new(["SAM 2", "--sam2"], file, keys, |path| {
                path.starts_with("heads.mask.sam.")
            })
        })
    }

    /// The paths of `own` that are of another width in the file and may be.
    pub fn of_other_width(&self, checkpoint: &Checkpoint, own: &[ParamInfo]) -> HashSet<String> {
        let may = |path: &str| self.other_width.iter().any(|end| path.ends_with(end));
        let paths = checkpoint.tensors().filter_map(|tensor| {
            let KeyTarget::Path(path) = self.keys.module_path(&tensor.key) else {
                return None;
            };
            let differs = |p: &ParamInfo| p.path == path && p.shape != tensor.shape;
            (may(&path) && own.iter().any(differs)).then_some(path)
        });
        paths.collect()
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

pub(super) fn tables(rules: Vec<KeyRules>, field: &str) -> KeyTables<'static> {
    let mut tables = KeyTables::new();
    for rules in rules {
        tables = tables.with(rules.wrapped_in(&WRAPPERS).within(field));
    }
    tables
}

/// How VideoChat-TPO is put together.
pub(crate) fn plan(files: &PartFiles, sizes: Option<&TpoConfig>) -> Result<Plan> {
    let config = config_of(files, sizes)?;
    let inputs = [&files.llm, &files.vision, &files.qformer, &files.sam2];
    Ok(Plan {
        rows: WORDS,
        used: WORDS,
        new: WORDS..config.llm.vocab_size,
        parts: parts(files, &config)?,
        opened: BTreeMap::new(),
        inputs: inputs.map(Clone::clone).into(),
        tokenizer: tokenizer_files(files, &config)?,
        config,
    })
}

/// The sizes of the whole: those that are given or the published ones, and of the language model those of its own file.
fn config_of(files: &PartFiles, sizes: Option<&TpoConfig>) -> Result<TpoConfig> {
    let wrong = |path: &Path, why: String| Error::ModelDir {
        path: path.into(),
        why,
    };
    let path = files.llm.join("config.json");
    let json = std::fs::read_to_string(&path).map_err(|e| {
        wrong(
            &path,
            format!("{e}; give the directory of Mistral-7B-Instruct as Hugging Face has it"),
        )
    })?;
    let llm = LlmConfig::from_hf_json(&json)?;
    let pieces = Tokenizer::from_sentencepiece_dir(&files.llm)?.vocab_size();
    for (what, found) in [
        (
            "the table of words in config.json (vocab_size)",
            llm.vocab_size,
        ),
        ("tokenizer.model", pieces),
    ] {
        if found != WORDS {
            return Err(wrong(
                &files.llm,
                format!(
                    "{what} has {found} entries, expected {WORDS}: the task tokens are {WORDS} to {}, \
                     after all words; take Mistral-7B-Instruct v0.2 (v0.3 has 32768 words)",
                    WORDS + 6
                ),
            ));
        }
    }
    let mut config = sizes.cloned().unwrap_or_else(TpoConfig::videochat_tpo);
    config.tasks = videochat_tasks(WORDS as u32);
    config.llm = LlmConfig {
        vocab_size: WORDS + 7,
        lora: config.llm.lora,
        ..llm
    };
    config.set_quantization(Quantize::default());
    Ok(config)
}

/// The tokenizer as the published directory has it: the slow one, whose ids the model was trained with,
/// and the task tokens by name.
fn tokenizer_files(files: &PartFiles, config: &TpoConfig) -> Result<Vec<(String, Vec<u8>)>> {
    let path = files.llm.join("tokenizer.model");
    let model = std::fs::read(&path).map_err(|e| Error::ModelDir {
        path,
        why: e.to_string(),
    })?;
    let tokens = config.tasks.tokens();
    let added: BTreeMap<&str, u32> = tokens.map(|t| (t.token.as_str(), t.id)).collect();
    Ok(vec![
        ("tokenizer.model".into(), model),
        ("tokenizer_config.json".into(), TOKENIZER_CONFIG.into()),
        (
            "added_tokens.json".into(),
            serde_json::json!(added).to_string().into_bytes(),
        ),
    ])
}

/// Where the parts of a model of these sizes are.
fn parts(files: &PartFiles, config: &TpoConfig) -> Result<Vec<Part>> {
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
        Part::sam2(&files.sam2)?,
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
