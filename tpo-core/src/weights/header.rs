//! The header of one safetensors file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use super::{BlockType, Result, WeightsError};

/// Largest header accepted, in bytes: the limit of the safetensors crate.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most axes a tensor may have.
const MAX_RANK: usize = 16;

/// One tensor of a checkpoint: where it is and what it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorEntry {
    /// Key in the checkpoint.
    pub key: String,
    /// Data type in the file; of blocks the type that they are read as.
    pub dtype: Dtype,
    /// The blocks it is stored as, in a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockType>,
    /// Heads whose rows are in the order of interleaved RoPE in the file; they are read in that of
    /// rotate-half RoPE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interleaved_heads: Option<usize>,
    /// Shape.
    pub shape: Vec<usize>,
    /// The file.
    #[serde(skip)]
    pub file: Arc<Path>,
    /// Position of the first byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl TensorEntry {
    /// Name of the file without its directory.
    pub fn file_name(&self) -> String {
        file_name(&self.file)
    }

    /// Some of its lines (along the first axis) as a tensor; `None` where it has not as many, or where lines
    /// are not stored one after the other, as blocks may not be.
    pub fn lines(&self, lines: Range<usize>) -> Option<Self> {
        let count = *self.shape.first()?;
        let plain = self.blocks.is_none() && self.interleaved_heads.is_none();
        if !plain || lines.start > lines.end || lines.end > count {
            return None;
        }
        let line = self.len.checked_div(count as u64)?;
        let mut shape = self.shape.clone();
        *shape.first_mut()? = lines.len();
        Some(Self {
            shape,
            offset: self.offset + lines.start as u64 * line,
            len: lines.len() as u64 * line,
            ..self.clone()
        })
    }

    /// Why the values cannot be had.
    pub(super) fn fault(&self, why: impl Into<String>) -> WeightsError {
        WeightsError::TensorData {
            file: self.file.to_path_buf(),
            key: self.key.clone(),
            shape: self.shape.clone(),
            why: why.into(),
        }
    }
}

/// Name of a file without its directory.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// The header of one file, checked against its length.
#[derive(Debug)]
pub(crate) struct Header {
    /// Tensors in order of their position.
    pub tensors: Vec<TensorEntry>,
    /// Free text the writer stored.
    pub metadata: BTreeMap<String, String>,
}

/// Opens a regular file and returns it with its length in bytes.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    // Looked at before it is opened: opening a pipe would block.
    let meta = std::fs::metadata(path).map_err(WeightsError::io("opening", path))?;
    if !meta.is_file() {
        return Err(WeightsError::NotACheckpoint {
            path: path.to_path_buf(),
            why: "not a regular file".into(),
        });
    }
    let file = File::open(path).map_err(WeightsError::io("opening", path))?;
    Ok((file, meta.len()))
}

/// What [`WeightsError::Damaged`] a reason makes of the file at `path`.
fn damaged(path: &Path) -> impl Fn(String) -> WeightsError {
    move |why| WeightsError::Damaged {
        file: path.to_path_buf(),
        why,
    }
}

/// Reads and checks the header of the file at `path`.
pub(crate) fn read_header(path: &Path) -> Result<Header> {
    let (file, file_len) = open_regular(path)?;
    let bytes = header_bytes(path, file, file_len)?;
    let raw: RawHeader = serde_json::from_slice(&bytes)
        .map_err(|e| damaged(path)(format!("its header is not valid: {e}")))?;
    check(path, raw, 8 + bytes.len() as u64, file_len)
}

fn header_bytes(path: &Path, mut file: File, file_len: u64) -> Result<Vec<u8>> {
    let fail = damaged(path);
    if file_len < 8 {
        return Err(fail(format!("it has only {file_len} bytes")));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size)
        .map_err(WeightsError::io("reading the header of", path))?;
    let claimed = u64::from_le_bytes(size);
    let limit = MAX_HEADER_BYTES.min(file_len - 8);
    if claimed > limit {
        return Err(fail(format!(
            "it claims a header of {claimed} bytes but {limit} are possible (the file has \
             {file_len} bytes, and no header may pass {MAX_HEADER_BYTES}), so it may be truncated"
        )));
    }
    let mut bytes = Vec::new();
    file.take(claimed)
        .read_to_end(&mut bytes)
        .map_err(WeightsError::io("reading the header of", path))?;
    if bytes.len() as u64 != claimed {
        return Err(fail("it ended while its header was read".into()));
    }
    Ok(bytes)
}

/// Checks that the tensors tile the data section exactly.
fn check(path: &Path, raw: RawHeader, data_start: u64, file_len: u64) -> Result<Header> {
    let fail = damaged(path);
    let file: Arc<Path> = Arc::from(path);
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (key, info) in raw.tensors {
        let entry = check_entry(&file, &key, &info, data_start).map_err(|why| {
            let (dtype, shape) = (&info.dtype, &info.shape.0);
            fail(format!(
                "tensor `{key}` (dtype {dtype}, shape {shape:?}): {why}"
            ))
        })?;
        tensors.push(entry);
    }
    tensors.sort_by_key(|t| (t.offset, t.len));

    let mut end = data_start;
    for t in &tensors {
        if t.offset != end {
            let relation = if t.offset < end {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(fail(format!(
                "tensor `{}` (dtype {:?}, shape {:?}): its data starts at byte {} of the data \
                 section, which {relation} (expected {})",
                t.key,
                t.dtype,
                t.shape,
                t.offset - data_start,
                end - data_start
            )));
        }
        end = t.offset.saturating_add(t.len);
    }
    if end != file_len {
        let beyond = |t: &&TensorEntry| t.offset.saturating_add(t.len) > file_len;
        let how = match tensors.iter().find(beyond) {
            Some(t) => format!(
                "it is truncated: tensor `{}` of shape {:?} would end after the end of the file",
                t.key, t.shape
            ),
            None => "it has bytes that belong to no tensor".into(),
        };
        return Err(fail(format!(
            "it has {file_len} bytes but its header describes {end}; {how}"
        )));
    }
    Ok(Header {
        tensors,
        metadata: raw.metadata,
    })
}

fn check_entry(
    file: &Arc<Path>,
    key: &str,
    info: &RawEntry,
    data_start: u64,
) -> Result<TensorEntry, String> {
    let dtype: Dtype = serde_json::from_value(serde_json::Value::String(info.dtype.clone()))
        .map_err(|_| "the data type is not one of the format's".to_string())?;
    let bits = info
        .shape
        .0
        .iter()
        .try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d))
        .ok_or("its size overflows")?;
    if bits % 8 != 0 {
        return Err("its size is not a whole number of bytes".into());
    }
    let (begin, end) = info.data_offsets;
    let len = end
        .checked_sub(begin)
        .ok_or_else(|| format!("its data ends ({end}) before it begins ({begin})"))?;
    if len != bits / 8 {
        return Err(format!(
            "its shape takes {} bytes but the header gives it {len}",
            bits / 8
        ));
    }
    let shape = info
        .shape
        .0
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| "its size overflows".to_string()))
        .collect::<Result<_, _>>()?;
    Ok(TensorEntry {
        key: key.to_string(),
        dtype,
        blocks: None,
        interleaved_heads: None,
        shape,
        file: file.clone(),
        offset: data_start
            .checked_add(begin)
            .ok_or("its position overflows")?,
        len,
    })
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

#[derive(DeriveDeserialize)]
struct RawEntry {
    dtype: String,
    shape: RawShape,
    data_offsets: (u64, u64),
}

/// A shape whose number of axes is bounded while it is read.
struct RawShape(Vec<u64>);

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Axes;
        impl<'de> Visitor<'de> for Axes {
            type Value = RawShape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawShape, A::Error> {
                let mut axes = Vec::new();
                while let Some(axis) = seq.next_element()? {
                    if axes.len() == MAX_RANK {
                        return Err(A::Error::custom(format!(
                            "a shape of more than {MAX_RANK} axes"
                        )));
                    }
                    axes.push(axis);
                }
                Ok(RawShape(axes))
            }
        }
        deserializer.deserialize_seq(Axes)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader {
                    metadata: BTreeMap::new(),
                    tensors: Vec::new(),
                };
                // serde's own maps keep the last of two equal keys without a word.
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("`{key}` occurs twice")));
                    }
                    if key == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
