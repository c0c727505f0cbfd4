//! The small JSON files beside a tokenizer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::added::AddedToken;
use super::guard::read_file;
use crate::error::{LlmError, Result};

/// Names of special tokens, switches, the chat template.
const CONFIG: &str = "tokenizer_config.json";

/// `"<s>"`, or an object with a `content`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "NameForm")]
struct Name(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum NameForm {
    Plain(String),
    Object { content: String },
}

impl From<NameForm> for Name {
    fn from(form: NameForm) -> Self {
        match form {
            NameForm::Plain(name) | NameForm::Object { content: name } => Self(name),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Names {
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    unk_token: Option<Name>,
    pad_token: Option<Name>,
    #[serde(default)]
    additional_special_tokens: Option<Vec<Name>>,
}

/// One template, or several with names.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Debug, Clone, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct ConfigFile {
    #[serde(flatten)]
    names: Names,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    legacy: Option<bool>,
    added_tokens_decoder: Option<HashMap<String, AddedToken>>,
    chat_template: Option<TemplateField>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct GenerationFile {
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Debug, Clone, Deserialize)]
struct TemplateFile {
    chat_template: Option<TemplateField>,
}

/// What the files of a directory say, merged.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectoryFiles {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    pub additional_special: Vec<String>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub legacy: Option<bool>,
    /// Added tokens by ascending id.
    pub added: Vec<(u32, AddedToken)>,
    pub generation_bos: Option<u32>,
    pub generation_eos: Vec<u32>,
    pub generation_pad: Option<u32>,
    /// The chat template: the plain one, the one named `default`, or the only one.
    pub template: Option<String>,
}

/// Files by name: of a directory, or at hand.
#[derive(Debug, Clone, Copy)]
pub(super) enum FilesOf<'a> {
    Dir(&'a Path),
    /// With where they come from, for messages.
    Named(&'a [(String, Vec<u8>)], &'a Path),
}

impl FilesOf<'_> {
    /// The directory, or where the files come from.
    pub fn origin(&self) -> &Path {
        match self {
            Self::Dir(origin) | Self::Named(_, origin) => origin,
        }
    }

    /// What to call a file in messages.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Dir(dir) => dir.join(name),
            Self::Named(_, origin) => origin.to_path_buf(),
        }
    }

    /// The bytes of a file, or `None` when there is none.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Dir(dir) => {
                let path = dir.join(name);
                path.is_file().then(|| read_file(&path)).transpose()
            }
            Self::Named(files, _) => {
                let found = files.iter().find(|(known, _)| known == name);
                Ok(found.map(|(_, bytes)| bytes.clone()))
            }
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = self.bytes(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| LlmError::TokenizerFile {
                path: self.path(name),
                problem: e.to_string(),
            })
    }
}

impl DirectoryFiles {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
    /// `generation_config.json` and `chat_template.jinja` / `.json`, each if it is there.
    pub fn read(files: FilesOf<'_>) -> Result<Self> {
        let config: ConfigFile = files.json(CONFIG)?.unwrap_or_default();
        let map: Names = files.json("special_tokens_map.json")?.unwrap_or_default();
        let plain_added: HashMap<String, u32> =
            files.json("added_tokens.json")?.unwrap_or_default();
        let generation: GenerationFile = files.json("generation_config.json")?.unwrap_or_default();

        // transformers: the map wins unless the config lists its added tokens itself.
        let names = if config.added_tokens_decoder.is_some() {
            merge(config.names, map)
        } else {
            merge(map, config.names)
        };
        let mut out = Self {
            bos: names.bos_token.map(|n| n.0),
            eos: names.eos_token.map(|n| n.0),
            unk: names.unk_token.map(|n| n.0),
            pad: names.pad_token.map(|n| n.0),
            additional_special: names
                .additional_special_tokens
                .unwrap_or_default()
                .into_iter()
                .map(|n| n.0)
                .collect(),
            add_bos: config.add_bos_token,
            add_eos: config.add_eos_token,
            legacy: config.legacy,
            generation_bos: generation.bos_token_id,
            generation_eos: match generation.eos_token_id {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => Vec::new(),
            },
            generation_pad: generation.pad_token_id,
            ..Self::default()
        };
        match config.added_tokens_decoder {
            Some(entries) => {
                for (id, entry) in entries {
                    let id = id.parse().map_err(|_| LlmError::TokenizerFile {
                        path: files.path(CONFIG),
                        problem: format!("`{id}` in added_tokens_decoder is not an id"),
                    })?;
                    out.added.push((id, entry));
                }
            }
            None => {
                let special = |name: &String| {
                    out.additional_special.contains(name)
                        || [&out.bos, &out.eos, &out.unk, &out.pad]
                            .iter()
                            .any(|t| t.as_ref() == Some(name))
                };
                let added = plain_added
                    .into_iter()
                    .map(|(name, id)| {
                        let token = if special(&name) {
                            AddedToken::special(name)
                        } else {
                            AddedToken::new(name)
                        };
                        (id, token)
                    })
                    .collect();
                out.added = added;
            }
        }
        out.added.sort_by_key(|(id, _)| *id);
        out.template = read_template(files, config.chat_template)?;
        Ok(out)
    }
}

fn merge(first: Names, second: Names) -> Names {
    Names {
        bos_token: first.bos_token.or(second.bos_token),
        eos_token: first.eos_token.or(second.eos_token),
        unk_token: first.unk_token.or(second.unk_token),
        pad_token: first.pad_token.or(second.pad_token),
        additional_special_tokens: first
            .additional_special_tokens
            .or(second.additional_special_tokens),
    }
}

/// Template files win over the field of `tokenizer_config.json`, as in transformers.
fn read_template(files: FilesOf<'_>, field: Option<TemplateField>) -> Result<Option<String>> {
    const JINJA: &str = "chat_template.jinja";
    if let Some(bytes) = files.bytes(JINJA)? {
        let text = String::from_utf8(bytes).map_err(|_| LlmError::TokenizerFile {
            path: files.path(JINJA),
            problem: "not UTF-8 text".into(),
        })?;
        return Ok(Some(text));
    }
    let file: Option<TemplateFile> = files.json("chat_template.json")?;
    Ok(match file.and_then(|f| f.chat_template).or(field) {
        Some(TemplateField::One(text)) => Some(text),
        Some(TemplateField::Many(mut list)) => {
            let default = list.iter().position(|t| t.name == "default");
            let at = default.or((list.len() == 1).then_some(0));
            at.map(|at| list.swap_remove(at).template)
        }
        None => None,
    })
}
