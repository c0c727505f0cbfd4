//! Errors of reading and writing weights.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::header::MAX_HEADER_BYTES;

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
    /// The path holds no checkpoint.
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
    /// The directory holds several checkpoints.
    #[error(
        "{path} holds several checkpoints and none is the obvious one: {}; give the path of the \
         file to read",
        candidates.join(", "),
        path = path.display()
    )]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// Names of the candidates.
        candidates: Vec<String>,
    },
    /// A header that is not what the format says, found before any tensor was read.
    #[error(
        "{file}: {why}; the file is damaged or not in the safetensors format, fetch it again",
        file = file.display()
    )]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The header claims more bytes than are allowed or than the file has.
    #[error(
        "{file} claims a header of {claimed} bytes but {limit} are possible (the file has \
         {file_len} bytes, and no header may pass {max}); it is truncated or not in the \
         safetensors format, fetch it again",
        file = file.display(), max = MAX_HEADER_BYTES
    )]
    HeaderSize {
        /// The file.
        file: PathBuf,
        /// Bytes claimed.
        claimed: u64,
        /// Largest header this file could have.
        limit: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// One tensor of a header is not usable.
    #[error(
        "{file}: tensor `{key}` (dtype {dtype}, shape {shape:?}): {why}; the file is damaged, \
         fetch it again",
        file = file.display()
    )]
    Entry {
        /// The file.
        file: PathBuf,
        /// Key of the tensor.
        key: String,
        /// Data type as written.
        dtype: String,
        /// Shape as written.
        shape: Vec<u64>,
        /// What is wrong.
        why: String,
    },
    /// The file is not as long as its header says.
    #[error(
        "{file} has {found} bytes but its header describes {expected}{}; {}, fetch the file again",
        last.as_ref().map(|(key, shape)| format!(
            " (tensor `{key}` of shape {shape:?} would end after the end of the file)"
        )).unwrap_or_default(),
        if found < expected { "it is truncated" } else { "it has bytes that belong to no tensor" },
        file = file.display()
    )]
    Length {
        /// The file.
        file: PathBuf,
        /// Bytes the header describes.
        expected: u64,
        /// Bytes in the file.
        found: u64,
        /// Key and shape of the first tensor that does not fit, if any.
        last: Option<(String, Vec<usize>)>,
    },
    /// The index of a sharded checkpoint cannot be read.
    #[error("{index}: {why}; fetch the index again", index = index.display())]
    Index {
        /// The index file.
        index: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The index names a file that is not a plain name in its own directory.
    #[error(
        "{index} places tensor `{key}` in `{shard}`, which is not a plain file name{}; an index may \
         only name files in its own directory, so nothing was opened: do not use this checkpoint, \
         or correct the index",
        nearest.as_ref().map(|n| format!(" (nearest file beside the index: {n})")).unwrap_or_default(),
        index = index.display()
    )]
    ShardOutside {
        /// The index file.
        index: PathBuf,
        /// A key that is placed there.
        key: String,
        /// The name as written.
        shard: String,
        /// Nearest file name in the directory.
        nearest: Option<String>,
    },
    /// A shard named by the index is absent.
    #[error(
        "{index} places {keys} tensors, the first of them `{key}`, in {shard}, which is not in the \
         directory{}{}; fetch the missing file",
        nearest.as_ref().map(|n| format!(" (nearest file: {n})")).unwrap_or_default(),
        if *others > 0 { format!("; {others} more shards are absent too") } else { String::new() },
        index = index.display()
    )]
    ShardMissing {
        /// The index file.
        index: PathBuf,
        /// Name of the shard.
        shard: String,
        /// First key it should hold.
        key: String,
        /// Number of keys it should hold.
        keys: usize,
        /// Other shards that are absent too.
        others: usize,
        /// Nearest file name in the directory.
        nearest: Option<String>,
    },
    /// The index and a shard disagree about where a tensor is.
    #[error(
        "tensor `{key}`: {why}{}{}; index and shards are from different checkpoints, fetch both again",
        nearest.as_ref().map(|n| format!("; nearest name in {}: `{n}`", file.display())).unwrap_or_default(),
        if *others > 0 { format!("; the same holds for {others} more tensors") } else { String::new() }
    )]
    IndexDisagrees {
        /// Key in question.
        key: String,
        /// Which file lists or lacks it.
        why: String,
        /// The shard.
        file: PathBuf,
        /// Other keys with the same problem.
        others: usize,
        /// Nearest name in the shard.
        nearest: Option<String>,
    },
    /// A key occurs twice.
    #[error(
        "tensor `{key}` occurs in {first} and again in {second}; one of them is stale, remove it",
        first = first.display(), second = second.display()
    )]
    Duplicate {
        /// The key.
        key: String,
        /// File of the first occurrence.
        first: PathBuf,
        /// File of the second.
        second: PathBuf,
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
