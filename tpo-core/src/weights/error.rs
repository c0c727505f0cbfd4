//! Errors of reading and writing weights.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

/// How many problems of a kind a message names; the fields hold all of them.
const NAMED: usize = 3;

/// What can go wrong while reading or writing weights.
///
/// Every message is one paragraph that names the file, the key and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The path holds no checkpoint, or several.
    #[error(
        "{path}: {why}; give a directory with model.safetensors.index.json or model.safetensors, \
         or a .safetensors file",
        path = path.display()
    )]
    NotACheckpoint {
        /// The path as given.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// A file whose header is not what the format says, found before any tensor was read.
    #[error(
        "{file}: {why}; the file is damaged or not in the safetensors format, fetch it again",
        file = file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong, with the tensor it is in.
        why: String,
    },
    /// A GGUF file that cannot be read, or holds what is not supported.
    #[error("{file}: {why}", file = file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What was expected, what was found, and what to do.
        why: String,
    },
    /// The index of a sharded checkpoint cannot be read, or does not fit its shards.
    #[error("{index}: {why}", index = index.display())]
    Index {
        /// The index file.
        index: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Checkpoint and module do not fit; nothing was loaded.
    #[error("nothing was loaded. {0}")]
    Refused(Box<Refusal>),
    /// The data of a tensor could not be read, or changed since the header was read.
    #[error("{file}: reading tensor `{key}` of shape {shape:?}: {why}", file = file.display())]
    TensorData {
        /// The file.
        file: PathBuf,
        /// Key of the tensor.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is wrong.
        why: String,
    },
    /// A rule of a key table is not a regular expression.
    #[error("key rule `{pattern}` is not a regular expression: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The parser's message.
        why: String,
    },
    /// A parameter has no key, or shares it, when saving.
    #[error("parameter `{path}` of shape {shape:?} cannot be saved: {why}")]
    Unsavable {
        /// Path in the module tree.
        path: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Why, and what to do.
        why: String,
    },
    /// Checkpoints of which there is no mean.
    #[error("{path}: {why}", path = path.display())]
    Average {
        /// The checkpoint that does not fit, or where the mean should go.
        path: PathBuf,
        /// What does not fit, and what to do.
        why: String,
    },
    /// Saving would overwrite something.
    #[error("{path} exists; choose another place or allow it to be overwritten", path = path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// A manifest or a model configuration cannot be used.
    #[error("{place}: {why}")]
    Manifest {
        /// File, or file and line.
        place: String,
        /// What is wrong.
        why: String,
    },
}

impl WeightsError {
    /// Wraps an I/O error with what was being done to which file.
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> WeightsError {
        let path = path.to_path_buf();
        move |source| WeightsError::Io {
            action,
            path,
            source,
        }
    }
}

/// A parameter for which the checkpoint has no tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MissingTensor {
    /// Path in the module tree.
    pub path: String,
    /// The key it was looked for under.
    pub key: String,
    /// Shape of the parameter.
    pub shape: Vec<usize>,
    /// The tensor of the checkpoint with the nearest name.
    pub nearest: Option<NearTensor>,
}

/// A tensor with a name like the one that is missing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NearTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Name of the file it is in.
    pub file: String,
}

/// A tensor of the checkpoint that no parameter takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnexpectedTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Name of the file it is in.
    pub file: String,
    /// Nearest key the module would take.
    pub nearest: Option<String>,
}

/// A tensor that does not fit its parameter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MismatchedTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Path in the module tree.
    pub path: String,
    /// Shape of the parameter.
    pub expected: Vec<usize>,
    /// Shape in the checkpoint.
    pub found: Vec<usize>,
    /// Name of the file it is in.
    pub file: String,
    /// What does not fit, when it is not the shape.
    pub why: Option<String>,
}

/// Everything that kept a checkpoint from being loaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Refusal {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Parameters without a tensor.
    pub missing: Vec<MissingTensor>,
    /// Tensors without a parameter.
    pub unexpected: Vec<UnexpectedTensor>,
    /// Tensors that do not fit.
    pub mismatched: Vec<MismatchedTensor>,
    /// Whether the unexpected tensors all belong to parts the key table does not cover.
    pub other_parts: bool,
}

impl Refusal {
    /// Whether there is nothing to refuse.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for MissingTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of shape {:?}", self.key, self.shape)?;
        if self.path != self.key {
            write!(f, " (parameter `{}`)", self.path)?;
        }
        match &self.nearest {
            Some(near) => write!(
                f,
                ", nearest name in the checkpoint: `{}` of shape {:?} in {}",
                near.key, near.shape, near.file
            ),
            None => write!(f, ", and no name in the checkpoint is near"),
        }
    }
}

impl fmt::Display for UnexpectedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` of shape {:?} in {}",
            self.key, self.shape, self.file
        )?;
        match &self.nearest {
            Some(name) => write!(f, ", nearest expected name: `{name}`"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for MismatchedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "`{}` in {}: {why}", self.key, self.file),
            None => write!(
                f,
                "`{}` in {}: expected {:?}, found {:?}",
                self.key, self.file, self.expected, self.found
            ),
        }
    }
}

/// Writes the first few of `items` as a sentence.
fn sentence<T: fmt::Display>(f: &mut fmt::Formatter<'_>, title: &str, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, " {title}: ")?;
    for (i, item) in items.iter().take(NAMED).enumerate() {
        if i > 0 {
            write!(f, "; ")?;
        }
        write!(f, "{item}")?;
    }
    if items.len() > NAMED {
        write!(f, "; and {} more", items.len() - NAMED)?;
    }
    write!(f, ".")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} missing, {} unexpected and {} mismatched tensors.",
            self.checkpoint.display(),
            self.missing.len(),
            self.unexpected.len(),
            self.mismatched.len()
        )?;
        sentence(f, "Missing", &self.missing)?;
        sentence(f, "Unexpected", &self.unexpected)?;
        sentence(f, "Mismatched", &self.mismatched)?;
        let hint = if !self.mismatched.is_empty() {
            "Build the module with the sizes of the checkpoint, or load the checkpoint that \
             belongs to this configuration."
        } else if !self.missing.is_empty() && self.missing.iter().all(|m| m.path.contains(".lora."))
        {
            "The checkpoint has no adapters: build the module without LoRA, or list the adapter \
             parameters in LoadOptions::allow_missing to keep their initial values."
        } else if !self.unexpected.is_empty()
            && self.unexpected.iter().all(|u| u.key.contains("lora_"))
        {
            "The checkpoint has adapters: build the module with LoRA, or merge them first."
        } else if self.missing.is_empty() && self.other_parts {
            "They belong to parts this key table does not cover; to load one part out of a whole \
             checkpoint use KeyScope::Part."
        } else {
            "Correct the names, or load the checkpoint that belongs to this configuration."
        };
        write!(f, " {hint}")
    }
}
