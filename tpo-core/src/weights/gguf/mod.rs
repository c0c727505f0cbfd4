//! GGUF files: metadata, and tensors that may be stored as quantised blocks.
//!
//! [`GgufFile::open`] reads and checks the header; no tensor data is touched.
//! [`GgufFile::checkpoint`] makes of it a [`Checkpoint`] that [`load_module`](super::load_module)
//! takes as it takes safetensors.

mod blocks;
mod header;
mod reader;
mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use blocks::BlockType;
pub use value::{FromGguf, GgufValue};

use super::header::TensorEntry;
use super::{Checkpoint, Result, WeightsError};

/// The header of a GGUF file, read and checked. Holds no tensor data.
#[derive(Debug, Clone)]
pub struct GgufFile {
    path: Arc<Path>,
    version: u32,
    metadata: BTreeMap<String, GgufValue>,
    tensors: Vec<TensorEntry>,
}

impl GgufFile {
    /// Reads the header of the little-endian file at `path`, of version 2 or 3.
    ///
    /// No count, length or offset is believed before it is checked against the length of the file;
    /// tensors must lie one after the other, padded to the file's alignment, and end with the file.
    ///
    /// # Errors
    /// [`WeightsError::Gguf`] for a damaged file, a part of a split one, and tensors of a type that
    /// is not read (its name is given); [`WeightsError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        header::read(path.as_ref())
    }

    /// Whether the file at `path` begins as a GGUF file does, or is called one.
    pub fn is_one(path: &Path) -> bool {
        let called = path.extension();
        let called = called.is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        !path.is_dir() && (called || header::is_marked(path))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tensors in order of their position. A shape is that of PyTorch: the axis that lies densely
    /// in the file is the last.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The value of a key of the metadata, if it is there.
    ///
    /// # Errors
    /// [`WeightsError::Gguf`] for a value of another type.
    pub fn get<'a, T: FromGguf<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let wrong = || {
            let (kind, found) = (T::KIND, value.kind());
            self.error(format!("`{key}`: expected {kind}, found {found}"))
        };
        T::from_gguf(value).map(Some).ok_or_else(wrong)
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// As [`get`](Self::get), and when the key is not there.
    pub fn need<'a, T: FromGguf<'a>>(&'a self, key: &str) -> Result<T> {
        let lacking = || {
            self.error(format!(
                "its metadata lacks `{key}`; convert the model to GGUF again"
            ))
        };
        self.get(key)?.ok_or_else(lacking)
    }

    /// The tensors as a checkpoint. `heads` says of a tensor's key how many heads the rows are of,
    /// where they are in the order of interleaved RoPE (as llama.cpp stores q and k of Llama): they
    /// are read in the order of rotate-half RoPE.
    pub fn checkpoint(&self, heads: impl Fn(&str) -> Option<usize>) -> Checkpoint {
        let tensors = self.tensors.iter().cloned().map(|mut entry| {
            entry.interleaved_heads = heads(&entry.key);
            entry
        });
        Checkpoint::of_file(self.path.clone(), tensors)
    }

    /// An error that names the file.
    pub fn error(&self, why: String) -> WeightsError {
        WeightsError::Gguf {
            file: self.path.to_path_buf(),
            why,
        }
    }
}
