//! Checkpoints of full size without their data.

use std::collections::BTreeMap;
use std::path::Path;

use super::write::{Scratch, file_order, header, index, sync_dir};
use super::{INDEX_FILE, Manifest, ManifestTensor, Result, SINGLE_FILE, WeightsError};

/// Writes a checkpoint directory with every tensor of `manifest` as zeros that take no space on
/// the disk (where the file system has sparse files). Tensors are distributed over shards as the
/// manifest says; without shards all go into one file.
///
/// Such a directory has true names, shapes and sizes and serves to test tools at full size.
///
/// # Errors
/// [`WeightsError::Exists`] when the directory holds a checkpoint, [`WeightsError::Io`], and
/// [`WeightsError::Manifest`] for a shard that is not a plain file name.
pub fn write_sparse(manifest: &Manifest, dir: &Path) -> Result<()> {
    for name in [INDEX_FILE, SINGLE_FILE] {
        if dir.join(name).exists() {
            return Err(WeightsError::Exists {
                path: dir.join(name),
            });
        }
    }
    let mut shards: BTreeMap<&str, Vec<&ManifestTensor>> = BTreeMap::new();
    for t in &manifest.tensors {
        let shard = t.shard.as_deref().unwrap_or(SINGLE_FILE);
        if shard.is_empty() || shard.contains(['/', '\\', ':']) || shard.starts_with('.') {
            return Err(WeightsError::Manifest {
                place: manifest.name.clone(),
                why: format!("`{}` is placed in `{shard}`, which is no file name", t.key),
            });
        }
        shards.entry(shard).or_default().push(t);
    }
    std::fs::create_dir_all(dir).map_err(WeightsError::io("creating", dir))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    for (name, tensors) in &mut shards {
        tensors.sort_by(|a, b| (file_order(a.dtype), &a.key).cmp(&(file_order(b.dtype), &b.key)));
        let listed = tensors.iter().map(|t| (&*t.key, t.dtype, &*t.shape));
        let head = header(listed, &metadata);
        let data: u64 = tensors.iter().map(|t| t.bytes()).sum();
        let mut file = Scratch::create(&dir.join(name))?;
        file.write(&head)?;
        file.set_len(head.len() as u64 + data)?;
        file.commit()?;
    }
    if shards.len() > 1 || !shards.contains_key(SINGLE_FILE) {
        let places = shards
            .iter()
            .flat_map(|(name, tensors)| tensors.iter().map(move |t| (t.key.as_str(), *name)));
        let mut file = Scratch::create(&dir.join(INDEX_FILE))?;
        file.write(&index(places, manifest.bytes()))?;
        file.sync()?;
        file.commit()?;
    }
    sync_dir(dir)
}
