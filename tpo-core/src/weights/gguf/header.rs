//! The header of a GGUF file.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use super::reader::Reader;
use super::{BlockType, GgufFile, GgufValue};
use crate::weights::header::open_regular;
use crate::weights::{Result, TensorEntry, WeightsError};

/// What a file begins with.
const MARK: [u8; 4] = *b"GGUF";
/// Most keys and most tensors; models have some tens and some thousands.
const MAX_ENTRIES: u64 = 1 << 17;
/// Longest key or tensor name, in bytes (the format's limit for keys).
const MAX_NAME_BYTES: u64 = u16::MAX as u64;
/// Most axes of a tensor (the format's limit).
const MAX_RANK: u32 = 4;
/// Where tensors begin if the file does not say otherwise.
const ALIGNMENT: u64 = 32;
/// Largest alignment that is believed.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Types of tensors by their numbers, those that are not read too.
const TYPES: [(u32, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// The data type that a type of a tensor is read as, and its blocks.
fn stored_as(kind: u32) -> Result<(Dtype, Option<BlockType>), String> {
    let blocks = match kind {
        0 => return Ok((Dtype::F32, None)),
        1 => return Ok((Dtype::F16, None)),
        30 => return Ok((Dtype::BF16, None)),
        2 => BlockType::Q4_0,
        3 => BlockType::Q4_1,
        8 => BlockType::Q8_0,
        12 => BlockType::Q4K,
        14 => BlockType::Q6K,
        _ => {
            let name = TYPES.iter().find(|(number, _)| *number == kind);
            let name = name.map_or(format!("number {kind}"), |(_, name)| name.to_string());
            return Err(format!(
                "its type {name} is not read; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K are: \
                 fetch the model in one of these (Q8_0, say), or make it with llama-quantize"
            ));
        }
    };
    Ok((Dtype::F32, Some(blocks)))
}

/// Whether the file at `path` begins with the format's mark.
pub(super) fn is_marked(path: &Path) -> bool {
    let mut mark = [0; MARK.len()];
    let read = open_regular(path).is_ok_and(|(mut file, _)| file.read_exact(&mut mark).is_ok());
    read && mark == MARK
}

/// Reads and checks the header of the file at `path`.
pub(super) fn read(path: &Path) -> Result<GgufFile> {
    let (file, len) = open_regular(path)?;
    header(&mut Reader::new(file, len), path).map_err(|why| WeightsError::Gguf {
        file: path.to_path_buf(),
        why,
    })
}

/// What is wrong with bytes that cannot be what the format says.
fn damaged(why: impl std::fmt::Display) -> String {
    format!("{why}; the file is damaged or not in the GGUF format, fetch it again")
}

/// A tensor as the header lists it.
struct Listed {
    entry: TensorEntry,
    /// Position in the data section.
    begin: u64,
}

fn header(reader: &mut Reader, path: &Path) -> Result<GgufFile, String> {
    let magic = reader.bytes("the format's mark").map_err(damaged)?;
    if magic != MARK {
        return Err(damaged(format_args!(
            "it begins with the bytes {magic:02x?}, expected `GGUF`"
        )));
    }
    let version = reader.u32("the version").map_err(damaged)?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(
                "it is big-endian, only little-endian files are read; convert it with \
                 gguf-convert-endian"
                    .into(),
            );
        }
        _ => {
            return Err(format!(
                "its version is {version}, versions 2 and 3 are read; convert the model again \
                 with a llama.cpp of today"
            ));
        }
    }
    let (tensors, keys) = (
        reader.u64("the number of tensors").map_err(damaged)?,
        reader.u64("the number of keys").map_err(damaged)?,
    );
    // A key takes a length, a type and a value; a tensor a length, axes, a type and a place.
    for (count, least, what) in [(keys, 13, "keys"), (tensors, 32, "tensors")] {
        if count > MAX_ENTRIES {
            return Err(damaged(format_args!(
                "it claims {count} {what}; at most {MAX_ENTRIES} are read"
            )));
        }
        if count > reader.left() / least {
            return Err(damaged(format_args!(
                "it is truncated: it claims {count} {what}, which take {} bytes or more, and the file \
                 has {}",
                count * least,
                reader.file_len()
            )));
        }
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = reader.string("a key", MAX_NAME_BYTES).map_err(damaged)?;
        let value = reader
            .value()
            .map_err(|why| damaged(format_args!("`{key}`: {why}")))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(damaged(format_args!("`{key}` occurs twice")));
        }
    }
    refuse_part(&metadata)?;
    let alignment = alignment(&metadata)?;
    let file: Arc<Path> = Arc::from(path);
    let mut listed = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let key = reader
            .string("the name of a tensor", MAX_NAME_BYTES)
            .map_err(damaged)?;
        if !names.insert(key.clone()) {
            return Err(damaged(format_args!("tensor `{key}` occurs twice")));
        }
        let tensor = tensor(reader, &file, &key);
        listed.push(tensor.map_err(|why| format!("tensor `{key}`: {why}"))?);
    }
    let start = reader.position().next_multiple_of(alignment);
    Ok(GgufFile {
        tensors: place(listed, start, alignment, reader.file_len())?,
        path: file,
        version,
        metadata,
    })
}

/// A tensor of the header, after its name.
fn tensor(reader: &mut Reader, file: &Arc<Path>, key: &str) -> Result<Listed, String> {
    let rank = reader.u32("the number of axes").map_err(damaged)?;
    if rank == 0 || rank > MAX_RANK {
        return Err(damaged(format_args!(
            "it has {rank} axes, 1 to {MAX_RANK} are possible"
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let size = reader.u64("the size of an axis").map_err(damaged)?;
        let small = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(small.ok_or_else(|| damaged(format_args!("the axis size {size}")))?);
    }
    let (dtype, blocks) = stored_as(reader.u32("its type").map_err(damaged)?)?;
    let begin = reader.u64("its place").map_err(damaged)?;
    // The first size is that of a line.
    let per_line = blocks.map_or(1, BlockType::elements);
    if !shape[0].is_multiple_of(per_line) {
        return Err(damaged(format_args!(
            "lines of {} elements are no whole blocks of {per_line}",
            shape[0]
        )));
    }
    let unit = blocks.map_or(dtype.bitsize() / 8, BlockType::bytes);
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
    let len = elements.and_then(|n| (n / per_line as u64).checked_mul(unit as u64));
    let len = len.ok_or_else(|| damaged("its size overflows"))?;
    shape.reverse();
    let entry = TensorEntry {
        key: key.to_string(),
        dtype,
        blocks,
        interleaved_heads: None,
        shape,
        file: file.clone(),
        offset: 0,
        len,
    };
    Ok(Listed { entry, begin })
}

/// A model cut into several files is put together first.
fn refuse_part(metadata: &BTreeMap<String, GgufValue>) -> Result<(), String> {
    match metadata.get("split.count") {
        Some(GgufValue::Unsigned(count)) if *count > 1 => Err(format!(
            "it is one of {count} parts of a model; join them with `llama-gguf-split --merge \
             FIRST-PART.gguf WHOLE.gguf` and give the whole, or fetch the model in one file"
        )),
        _ => Ok(()),
    }
}

fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n),
        Some(value) => Err(damaged(format_args!(
            "`general.alignment`: expected a power of two up to {MAX_ALIGNMENT}, found {}",
            value.kind()
        ))),
    }
}

/// Checks that the tensors lie one after the other in the data section, and gives them their
/// positions in the file.
fn place(
    mut listed: Vec<Listed>,
    start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<TensorEntry>, String> {
    listed.sort_by_key(|t| (t.begin, t.entry.len));
    // Where the next tensor must begin, and where the last ended.
    let (mut next, mut end) = (start, start);
    let mut tensors = Vec::with_capacity(listed.len());
    for Listed { mut entry, begin } in listed {
        let key = &entry.key;
        let offset = start.saturating_add(begin);
        if offset != next {
            let relation = if offset < next {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(damaged(format_args!(
                "tensor `{key}` of shape {:?}: its data begins at byte {begin} of the data section, \
                 which {relation} (expected {})",
                entry.shape,
                next - start
            )));
        }
        end = offset.saturating_add(entry.len);
        if end > file_len {
            return Err(damaged(format_args!(
                "it is truncated: tensor `{key}` of shape {:?} would end at byte {end}, and the file \
                 has {file_len}",
                entry.shape
            )));
        }
        next = end.next_multiple_of(alignment);
        entry.offset = offset;
        tensors.push(entry);
    }
    if file_len > next {
        return Err(damaged(format_args!(
            "{} bytes after byte {end} belong to no tensor",
            file_len - end
        )));
    }
    Ok(tensors)
}
