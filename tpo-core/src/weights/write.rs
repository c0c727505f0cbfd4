//! Writing safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype;

use super::{Result, WeightsError};

/// Bytes of a tensor in a file.
pub(crate) fn bytes_of(dtype: Dtype, shape: &[usize]) -> u64 {
    shape.iter().map(|&d| d as u64).product::<u64>() * dtype.bitsize() as u64 / 8
}

/// The length field and header of a file that holds tensors of these keys, types and shapes in this
/// order, padded to a multiple of eight bytes so that data is aligned.
pub(crate) fn header<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>,
    metadata: &BTreeMap<String, String>,
) -> Vec<u8> {
    use serde_json::{Map, Value, json};
    let mut object = Map::new();
    if !metadata.is_empty() {
        object.insert("__metadata__".into(), json!(metadata));
    }
    let mut at = 0_u64;
    for (key, dtype, shape) in tensors {
        let end = at + bytes_of(dtype, shape);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
        object.insert(key.into(), entry);
        at = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}

/// The index of a sharded checkpoint.
pub(crate) fn index<'a>(
    places: impl Iterator<Item = (&'a str, &'a str)>,
    total_size: u64,
) -> Vec<u8> {
    let weight_map: BTreeMap<&str, &str> = places.collect();
    let value = serde_json::json!({
        "metadata": { "total_size": total_size },
        "weight_map": weight_map,
    });
    format!("{value:#}\n").into_bytes()
}

/// Order of tensors in a file: widest type first, so that each is aligned to its own size.
pub(crate) fn file_order(dtype: Dtype) -> std::cmp::Reverse<usize> {
    std::cmp::Reverse(dtype.bitsize())
}

/// A file that is written under a temporary name beside its destination and removed again unless
/// it is committed.
pub(crate) struct Scratch {
    file: File,
    scratch: PathBuf,
    destination: PathBuf,
    committed: bool,
}

impl Scratch {
    pub(crate) fn create(destination: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = destination
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let scratch = destination.with_file_name(format!(
            ".{name}.{}-{}.tmp",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let file = File::create_new(&scratch).map_err(WeightsError::io("creating", &scratch))?;
        Ok(Self {
            file,
            scratch,
            destination: destination.to_path_buf(),
            committed: false,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(WeightsError::io("writing", &self.destination))
    }

    /// Extends the file to `len` bytes with a hole.
    pub(crate) fn set_len(&mut self, len: u64) -> Result<()> {
        self.file
            .set_len(len)
            .map_err(WeightsError::io("extending", &self.destination))
    }

    /// Makes sure the bytes are on the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(WeightsError::io("flushing", &self.destination))
    }

    /// Gives the file its name, replacing what has it.
    pub(crate) fn commit(mut self) -> Result<PathBuf> {
        std::fs::rename(&self.scratch, &self.destination)
            .map_err(WeightsError::io("renaming to", &self.destination))?;
        self.committed = true;
        Ok(self.destination.clone())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here, and the name says what it is.
            let _ = std::fs::remove_file(&self.scratch);
        }
    }
}

/// Makes renames in a directory durable. Platforms where a directory cannot be opened as a file
/// do this on their own.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(WeightsError::io("flushing", dir))?;
    }
    Ok(())
}
