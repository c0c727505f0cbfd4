//! Computed features on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tpo_heads::temporal::features::{ClipInput, FeatureMatrix};

use crate::error::{Error, Result};
use crate::files::write_whole;

/// Version of the entries; another one is never read.
const FORMAT: &str = "tpo-features-1";
/// Largest entry that is read, in bytes.
const MAX_ENTRY: u64 = 4 << 30;
/// Name of the array in an entry, which [`read_features`] looks for first.
///
/// [`read_features`]: tpo_heads::temporal::features::read_features
const ARRAY: &str = "features";

/// What features depend on: the bytes of the media or the text of the query, the tower and its
/// weights, and which frames it was shown how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey(String);

impl CacheKey {
    /// The key of a media file with this hash.
    pub fn new(media: &blake3::Hash, extractor: &str, input: &ClipInput, antialias: bool) -> Self {
        Self(format!(
            "{FORMAT}\nmedia {media}\nextractor {extractor}\nframes {} per second, {} per clip, \
             {} pixels, antialias {antialias}, mean {:?}, std {:?}, rule {:?}",
            input.frames_per_second,
            input.frames_per_clip,
            input.size,
            input.mean,
            input.std,
            input.rule
        ))
    }

    /// The key of a query; the extractor is the text tower with its tokenizer.
    pub fn query(text: &str, extractor: &str) -> Self {
        Self(format!("{FORMAT}\nextractor {extractor}\nquery {text}"))
    }

    fn file_name(&self) -> String {
        format!("{}.safetensors", blake3::hash(self.0.as_bytes()).to_hex())
    }
}

/// What the cache did for one video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheUse {
    /// There was none.
    None,
    /// The features were read from it; no frame was decoded.
    Hit,
    /// The features were computed and stored.
    Stored,
    /// The features were computed and could not be stored, for this reason.
    NotStored(String),
}

/// A directory of computed features.
///
/// An entry is written under a temporary name and renamed, and carries a checksum, so readers see
/// a whole entry or none: what is half-written, damaged or of another version counts as absent and
/// is computed again. Several processes may share a directory.
#[derive(Debug, Clone)]
pub struct FeatureCache {
    dir: PathBuf,
}

impl FeatureCache {
    /// Opens a directory, and creates it if need be.
    ///
    /// # Errors
    /// [`Error::FeatureIo`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(Error::feature_io(&dir))?;
        Ok(Self { dir })
    }

    /// The file of an entry, whether it exists or not.
    pub fn path(&self, key: &CacheKey) -> PathBuf {
        self.dir.join(key.file_name())
    }

    /// An entry, if there is a whole and undamaged one.
    pub fn get(&self, key: &CacheKey) -> Option<FeatureMatrix> {
        let path = self.path(key);
        let meta = std::fs::metadata(&path).ok()?;
        if !meta.is_file() || meta.len() > MAX_ENTRY {
            return None;
        }
        let bytes = std::fs::read(&path).ok()?;
        let entry = decode(&bytes, key);
        if entry.is_none() {
            tracing::warn!(path = %path.display(), "damaged feature cache entry; computing again");
        }
        entry
    }

    /// Stores an entry, replacing any other of that key.
    ///
    /// # Errors
    /// [`Error::FeatureIo`]; nothing half-written is left under the entry's name.
    pub fn put(&self, key: &CacheKey, features: &FeatureMatrix) -> Result<()> {
        let data: Vec<u8> = features
            .values()
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let metadata = HashMap::from([
            ("key".to_string(), key.0.clone()),
            (
                "blake3".to_string(),
                blake3::hash(&data).to_hex().to_string(),
            ),
        ]);
        write_features(&self.path(key), features, data, metadata)
    }

    /// [`hash_file`] of a large file, which is read once: the hash is noted under the file's place, size
    /// and time of change.
    ///
    /// # Errors
    /// [`Error::FeatureIo`] of the file; a note that cannot be written is none.
    pub fn hash_noted(&self, path: &Path) -> Result<blake3::Hash> {
        let meta = std::fs::metadata(path).map_err(Error::feature_io(path))?;
        let place = path.canonicalize().map_err(Error::feature_io(path))?;
        let changed = meta.modified().map_err(Error::feature_io(path))?;
        let state = format!("{FORMAT}\n{place:?}\n{}\n{changed:?}", meta.len());
        let name = format!("{}.hash", blake3::hash(state.as_bytes()).to_hex());
        let note = self.dir.join(name);
        let noted = std::fs::read_to_string(&note).ok();
        if let Some(hash) = noted.and_then(|text| blake3::Hash::from_hex(text.trim()).ok()) {
            return Ok(hash);
        }
        let hash = hash_file(path)?;
        let written = write_whole(&note, |out| writeln!(out, "{}", hash.to_hex()));
        if let Err(e) = written {
            tracing::warn!(path = %note.display(), "the hash of a tower was not noted: {e}");
        }
        Ok(hash)
    }
}

fn decode(bytes: &[u8], key: &CacheKey) -> Option<FeatureMatrix> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    if metadata.get("key") != Some(&key.0) {
        return None;
    }
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let view = tensors.tensor(ARRAY).ok()?;
    let &[rows, width] = view.shape() else {
        return None;
    };
    let data = view.data();
    let sum = blake3::hash(data).to_hex().to_string();
    if view.dtype() != Dtype::F32 || metadata.get("blake3") != Some(&sum) {
        return None;
    }
    let values = data.as_chunks::<4>().0.iter().copied();
    FeatureMatrix::new(rows, width, values.map(f32::from_le_bytes).collect())
}

/// Writes a feature file under a temporary name and renames it.
pub(super) fn write_features(
    path: &Path,
    features: &FeatureMatrix,
    data: Vec<u8>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let shape = vec![features.rows(), features.width()];
    let bytes = TensorView::new(Dtype::F32, shape, &data)
        .and_then(|view| safetensors::serialize([(ARRAY, view)], Some(metadata)))
        .map_err(|e| std::io::Error::other(e.to_string()));
    let written = bytes.and_then(|bytes| write_whole(path, |out| out.write_all(&bytes)));
    written.map_err(Error::feature_io(path))
}

/// Hash of a file's bytes (BLAKE3), read in pieces.
///
/// # Errors
/// [`Error::FeatureIo`].
pub fn hash_file(path: impl AsRef<Path>) -> Result<blake3::Hash> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::feature_io(path))?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(file)
        .map_err(Error::feature_io(path))?;
    Ok(hasher.finalize())
}
