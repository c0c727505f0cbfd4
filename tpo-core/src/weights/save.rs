//! Writing a module as a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::Serialize;

use super::key_map::KeyMap;
use super::load::DtypePolicy;
use super::manifest::shard_name;
use super::source::{TensorSource, module_tensors, write_tensors};
use super::write::{Scratch, index, sync_dir};
use super::{INDEX_FILE, Result, SINGLE_FILE, WeightsError};

/// Options of [`save_module`] and [`average_checkpoints`](super::average_checkpoints).
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// A directory gets another shard when one would grow past this many bytes. A tensor larger
    /// than this has a shard of its own. Ignored when the destination is a file.
    pub max_shard_bytes: u64,
    /// Data type of float parameters.
    pub dtype: DtypePolicy,
    /// Text stored in every file, beside `format = pt`.
    pub metadata: BTreeMap<String, String>,
    /// Whether a checkpoint at the destination is replaced.
    pub overwrite: bool,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            max_shard_bytes: 5_000_000_000,
            dtype: DtypePolicy::Keep,
            metadata: BTreeMap::new(),
            overwrite: false,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SaveReport {
    /// The files, the index last.
    pub files: Vec<PathBuf>,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Writes the parameters of `module` under the keys of `map`.
///
/// `destination` is a file if it ends in `.safetensors`; otherwise it is a directory, created if
/// need be, and gets [`SINGLE_FILE`] or shards with [`INDEX_FILE`].
///
/// Only one tensor at a time is copied from the device. Files are written under temporary names,
/// flushed and renamed, the index last: a save that is interrupted leaves the old checkpoint, or
/// a directory without an index that is recognised as incomplete; never a mixture that loads.
///
/// # Errors
/// [`WeightsError::Unsavable`] before anything is written when a parameter has no key, shares it
/// or has a type the format lacks; [`WeightsError::Exists`]; [`WeightsError::Io`].
pub fn save_module<M: Module>(
    module: &M,
    map: &dyn KeyMap,
    destination: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveReport> {
    let tensors = module_tensors(module, map, options.dtype, &|_| true)?;
    save_tensors(tensors, destination.as_ref(), options)
}

/// Writes tensors as [`save_module`] does.
///
/// # Errors
/// As [`save_module`].
pub fn save_tensors(
    mut tensors: Vec<TensorSource<'_>>,
    destination: &Path,
    options: &SaveOptions,
) -> Result<SaveReport> {
    tensors.sort_by(|a, b| a.key().cmp(b.key()));

    let is_file = destination.extension().is_some_and(|e| e == "safetensors");
    if is_file {
        if destination.exists() && !options.overwrite {
            return Err(WeightsError::Exists {
                path: destination.to_path_buf(),
            });
        }
        let dir = parent(destination);
        std::fs::create_dir_all(dir).map_err(WeightsError::io("creating", dir))?;
        let file = write_file(destination, &mut tensors, options)?.commit()?;
        sync_dir(dir)?;
        return Ok(report(vec![file], &tensors));
    }
    save_dir(tensors, destination, options)
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn report(files: Vec<PathBuf>, tensors: &[TensorSource<'_>]) -> SaveReport {
    SaveReport {
        files,
        tensors: tensors.len(),
        bytes: tensors.iter().map(TensorSource::bytes).sum(),
    }
}

fn save_dir(
    tensors: Vec<TensorSource<'_>>,
    dir: &Path,
    options: &SaveOptions,
) -> Result<SaveReport> {
    let stale = existing(dir);
    if let Some(first) = stale.first()
        && !options.overwrite
    {
        return Err(WeightsError::Exists {
            path: dir.join(first),
        });
    }
    std::fs::create_dir_all(dir).map_err(WeightsError::io("creating", dir))?;

    let mut shards = split(tensors, options.max_shard_bytes);
    let count = shards.len();
    let name = |i: usize| match count {
        1 => SINGLE_FILE.to_string(),
        _ => shard_name(i + 1, count),
    };
    let mut written = Vec::new();
    for (i, shard) in shards.iter_mut().enumerate() {
        written.push(write_file(&dir.join(name(i)), shard, options)?);
    }
    let index_file = if count > 1 {
        let total = shards.iter().flatten().map(TensorSource::bytes).sum();
        let names: Vec<String> = (0..count).map(name).collect();
        let places = shards
            .iter()
            .zip(&names)
            .flat_map(|(s, n)| s.iter().map(move |t| (t.key(), n.as_str())));
        let mut file = Scratch::create(&dir.join(INDEX_FILE))?;
        file.write(&index(places, total))?;
        file.sync()?;
        Some(file)
    } else {
        None
    };

    // Everything is on the disk. From here until the index is in place the directory holds no
    // index, so nothing takes old and new shards for one checkpoint.
    if stale.iter().any(|n| n == INDEX_FILE) {
        let old = dir.join(INDEX_FILE);
        std::fs::remove_file(&old).map_err(WeightsError::io("removing", &old))?;
        sync_dir(dir)?;
    }
    let mut files = Vec::new();
    for file in written {
        files.push(file.commit()?);
    }
    let kept: BTreeSet<String> = (0..count).map(name).collect();
    for old in stale
        .iter()
        .filter(|n| *n != INDEX_FILE && !kept.contains(*n))
    {
        let old = dir.join(old);
        std::fs::remove_file(&old).map_err(WeightsError::io("removing", &old))?;
    }
    if let Some(file) = index_file {
        sync_dir(dir)?;
        files.push(file.commit()?);
    }
    sync_dir(dir)?;
    let all: Vec<TensorSource<'_>> = shards.into_iter().flatten().collect();
    Ok(report(files, &all))
}

/// Files of a checkpoint that is in `dir`: the single file, the index and the shards it names.
fn existing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = [SINGLE_FILE, INDEX_FILE]
        .into_iter()
        .filter(|n| dir.join(n).exists())
        .map(String::from)
        .collect();
    // Shards in the naming scheme of this function, listed by an index or left behind.
    names.extend(
        super::checkpoint::safetensors_names(dir)
            .into_iter()
            .filter(|n| n.starts_with("model-") && n.contains("-of-")),
    );
    names
}

/// Fills shards in order.
fn split(tensors: Vec<TensorSource<'_>>, max: u64) -> Vec<Vec<TensorSource<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut size = 0_u64;
    for tensor in tensors {
        let bytes = tensor.bytes();
        if size > 0 && size.saturating_add(bytes) > max {
            shards.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_file(
    path: &Path,
    tensors: &mut [TensorSource<'_>],
    options: &SaveOptions,
) -> Result<Scratch> {
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    metadata.extend(options.metadata.clone());
    let mut file = Scratch::create(path)?;
    write_tensors(tensors, &metadata, |bytes| file.write(bytes))?;
    file.sync()?;
    Ok(file)
}
