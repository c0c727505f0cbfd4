//! Reading one feature file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use tpo_core::weights::{Checkpoint, Dtype};
use zip::ZipArchive;

use super::{FeatureMatrix, PrecomputedOptions, npy};
use crate::error::HeadsError;

/// Names of the array that are tried in turn.
const USUAL_KEYS: [&str; 2] = ["features", "last_hidden_state"];
/// Most members of an archive.
const MAX_MEMBERS: usize = 10_000;

/// Reads the features of one `.npz`, `.npy` or `.safetensors` file: f16, f32 or f64 (bf16 in
/// safetensors), `[rows, width]`, or `[1, rows, width]`.
///
/// # Errors
/// [`HeadsError::FeatureFile`] naming what is wrong: an unknown extension, a damaged or too
/// large file, an array that is not there, has another shape or type, or holds NaN or infinity.
pub fn read_features(
    path: &Path,
    options: &PrecomputedOptions,
) -> Result<FeatureMatrix, HeadsError> {
    let fail = |why: String| HeadsError::FeatureFile {
        path: path.to_path_buf(),
        why,
    };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let (values, shape) = match extension {
        "npy" => read_npy(path, options),
        "npz" => read_npz(path, options),
        "safetensors" => read_safetensors(path, options),
        _ => Err("its name ends in none of .npz, .npy and .safetensors".into()),
    }
    .map_err(fail)?;
    let (rows, width) = match shape[..] {
        [rows, width] | [1, rows, width] if rows > 0 && width > 0 => (rows, width),
        _ => {
            return Err(fail(format!(
                "its array has shape {shape:?}, [rows, width] was expected"
            )));
        }
    };
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(fail(format!(
            "row {} holds {}, which is not finite",
            at / width,
            values[at]
        )));
    }
    FeatureMatrix::new(rows, width, values)
        .ok_or_else(|| fail(format!("its array does not fill its shape {shape:?}")))
}

fn open(path: &Path) -> Result<(File, u64), String> {
    // Looked at before it is opened: opening a pipe would block.
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is not a regular file".into());
    }
    let file = File::open(path).map_err(|e| e.to_string())?;
    Ok((file, meta.len()))
}

fn check_size(bytes: u64, options: &PrecomputedOptions) -> Result<(), String> {
    if bytes > options.max_bytes {
        return Err(format!(
            "its array has {bytes} bytes, more than the {} that PrecomputedOptions::max_bytes \
             allows",
            options.max_bytes
        ));
    }
    Ok(())
}

/// Reads at most what the options allow, whatever the source claims.
fn read_bounded(source: impl Read, options: &PrecomputedOptions) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    source
        .take(options.max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    check_size(bytes.len() as u64, options)?;
    Ok(bytes)
}

fn read_npy(path: &Path, options: &PrecomputedOptions) -> Result<npy::Array, String> {
    let (file, len) = open(path)?;
    check_size(len, options)?;
    npy::parse(&read_bounded(file, options)?)
}

/// The name to read among those there are.
fn choose<'a>(names: &[&'a str], options: &PrecomputedOptions) -> Result<&'a str, String> {
    let find = |key: &str| names.iter().copied().find(|n| *n == key);
    let list = || {
        let some: Vec<&str> = names.iter().copied().take(10).collect();
        some.join(", ")
    };
    if let Some(key) = &options.key {
        return find(key).ok_or_else(|| format!("it has no array `{key}`; it has: {}", list()));
    }
    if let Some(name) = USUAL_KEYS.iter().find_map(|key| find(key)) {
        return Ok(name);
    }
    match names {
        [only] => Ok(only),
        [] => Err("it holds no array".into()),
        _ => Err(format!(
            "it has none of the arrays {} and more than one other: {}; set \
             PrecomputedOptions::key",
            USUAL_KEYS.join(" and "),
            list()
        )),
    }
}

fn read_npz(path: &Path, options: &PrecomputedOptions) -> Result<npy::Array, String> {
    let (file, _) = open(path)?;
    let damaged = |e: zip::result::ZipError| format!("it is not a readable archive: {e}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    if archive.len() > MAX_MEMBERS {
        return Err(format!("it has {} members", archive.len()));
    }
    let names: Vec<String> = archive.file_names().map(String::from).collect();
    let keys: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_suffix(".npy"))
        .collect();
    let member = format!("{}.npy", choose(&keys, options)?);
    let entry = archive.by_name(&member).map_err(damaged)?;
    check_size(entry.size(), options)?;
    npy::parse(&read_bounded(entry, options)?)
}

fn read_safetensors(path: &Path, options: &PrecomputedOptions) -> Result<npy::Array, String> {
    open(path)?;
    let checkpoint = Checkpoint::open(path).map_err(|e| e.to_string())?;
    let keys: Vec<&str> = checkpoint.tensors().map(|t| t.key.as_str()).collect();
    let key = choose(&keys, options)?;
    let entry = checkpoint.get(key).ok_or("it changed while it was read")?;
    check_size(entry.len, options)?;
    let mut file = File::open(&entry.file).map_err(|e| e.to_string())?;
    file.seek(SeekFrom::Start(entry.offset))
        .map_err(|e| e.to_string())?;
    let data = read_bounded(file.take(entry.len), options)?;
    if data.len() as u64 != entry.len {
        return Err("it is truncated".into());
    }
    match floats(&data, entry.dtype) {
        Some(values) => Ok((values, entry.shape.clone())),
        None => Err(format!(
            "`{key}` holds {:?}, floats were expected",
            entry.dtype
        )),
    }
}

/// Little-endian floats; `None` for elements of another kind.
pub(super) fn floats(data: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    fn numbers<const N: usize>(data: &[u8], from: fn([u8; N]) -> f32) -> Vec<f32> {
        data.as_chunks().0.iter().copied().map(from).collect()
    }
    Some(match dtype {
        Dtype::F32 => numbers(data, f32::from_le_bytes),
        Dtype::F16 => numbers(data, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => numbers(data, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => numbers(data, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}
