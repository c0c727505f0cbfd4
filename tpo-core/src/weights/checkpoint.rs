//! A checkpoint: one file or a directory of shards.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::header::{MAX_HEADER_BYTES, TensorEntry, file_name, open_regular, read_header};
use super::{Result, WeightsError, nearest};

/// Name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Name of a checkpoint of one file.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The headers of a checkpoint, read and checked. Holds no tensor data.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Arc<Path>>,
    tensors: BTreeMap<String, TensorEntry>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Reads the headers of the checkpoint at `path`: a `.safetensors` file, an index file, or a
    /// directory with [`INDEX_FILE`], [`SINGLE_FILE`] or exactly one `.safetensors` file.
    ///
    /// Every tensor must lie inside its file and fill it together with the others; index and
    /// shards must list the same tensors. An index may only name files in its own directory;
    /// such a file may be a symbolic link, as in the Hugging Face cache.
    ///
    /// # Errors
    /// Any difference between the files and what they say about themselves.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(WeightsError::io("opening", path))?;
        if !meta.is_dir() {
            return if path.extension() == Some(OsStr::new("json")) {
                Self::open_sharded(path, path)
            } else {
                Self::open_single(path, path)
            };
        }
        let index = path.join(INDEX_FILE);
        let single = path.join(SINGLE_FILE);
        match (index.exists(), single.exists()) {
            (true, false) => Self::open_sharded(path, &index),
            (false, true) => Self::open_single(path, &single),
            (true, true) => Err(WeightsError::Ambiguous {
                path: path.to_path_buf(),
                candidates: vec![INDEX_FILE.into(), SINGLE_FILE.into()],
            }),
            (false, false) => {
                let mut names = safetensors_names(path);
                match (names.pop(), names.is_empty()) {
                    (Some(name), true) => Self::open_single(path, &path.join(name)),
                    (Some(last), false) => {
                        names.push(last);
                        Err(WeightsError::Ambiguous {
                            path: path.to_path_buf(),
                            candidates: names,
                        })
                    }
                    (None, _) => Err(WeightsError::NotACheckpoint {
                        path: path.to_path_buf(),
                        why: "the directory holds no .safetensors file".into(),
                    }),
                }
            }
        }
    }

    fn open_single(path: &Path, file: &Path) -> Result<Self> {
        let header = read_header(file)?;
        Ok(Self {
            path: path.to_path_buf(),
            files: vec![Arc::from(file)],
            tensors: header
                .tensors
                .into_iter()
                .map(|t| (t.key.clone(), t))
                .collect(),
            metadata: header.metadata,
            notes: Vec::new(),
        })
    }

    fn open_sharded(path: &Path, index_path: &Path) -> Result<Self> {
        let dir = index_path.parent().unwrap_or(Path::new("."));
        let index = read_index(index_path)?;
        let by_shard = check_shards(index_path, dir, &index)?;

        let mut out = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        };
        for shard in by_shard.keys() {
            let header = read_header(&dir.join(shard))?;
            out.files.push(Arc::from(dir.join(shard)));
            out.metadata.extend(header.metadata);
            for t in header.tensors {
                if let Some(first) = out.tensors.get(&t.key) {
                    return Err(WeightsError::Duplicate {
                        key: t.key,
                        first: first.file.to_path_buf(),
                        second: t.file.to_path_buf(),
                    });
                }
                out.tensors.insert(t.key.clone(), t);
            }
        }
        out.compare_with_index(index_path, dir, &index)?;
        out.note_totals(dir, &index, &by_shard);
        Ok(out)
    }

    /// Every key must be where the index says, and nowhere else.
    fn compare_with_index(&self, index_path: &Path, dir: &Path, index: &Index) -> Result<()> {
        let misplaced: Vec<_> = index
            .weight_map
            .iter()
            .filter(|(key, shard)| {
                self.tensors
                    .get(*key)
                    .is_none_or(|t| t.file_name() != **shard)
            })
            .collect();
        if let Some((key, shard)) = misplaced.first() {
            let why = match self.tensors.get(*key) {
                Some(t) => format!(
                    "{} places it in {shard}, but it is in {}",
                    index_path.display(),
                    t.file_name()
                ),
                None => format!(
                    "{} places it in {shard}, which does not hold it",
                    index_path.display()
                ),
            };
            let in_shard = self
                .tensors
                .values()
                .filter(|t| t.file_name() == **shard && !index.weight_map.contains_key(&t.key))
                .map(|t| t.key.as_str());
            return Err(WeightsError::IndexDisagrees {
                nearest: nearest(key, in_shard).map(String::from),
                key: key.to_string(),
                why,
                file: dir.join(shard),
                others: misplaced.len() - 1,
            });
        }
        let unlisted: Vec<_> = self
            .tensors
            .values()
            .filter(|t| !index.weight_map.contains_key(&t.key))
            .collect();
        if let Some(t) = unlisted.first() {
            return Err(WeightsError::IndexDisagrees {
                key: t.key.clone(),
                why: format!(
                    "{} holds it (shape {:?}), but {} does not list it",
                    t.file_name(),
                    t.shape,
                    index_path.display()
                ),
                file: t.file.to_path_buf(),
                others: unlisted.len() - 1,
                nearest: None,
            });
        }
        Ok(())
    }

    fn note_totals(&mut self, dir: &Path, index: &Index, by_shard: &BTreeMap<&str, Vec<&str>>) {
        if let Some(total) = index.total_size
            && total != self.bytes()
        {
            self.notes.push(format!(
                "the index states a total of {total} bytes, the tensors have {}",
                self.bytes()
            ));
        }
        let unused: Vec<_> = safetensors_names(dir)
            .into_iter()
            .filter(|n| !by_shard.contains_key(n.as_str()))
            .collect();
        if !unused.is_empty() {
            self.notes.push(format!(
                "not named by the index and not read: {}",
                unused.join(", ")
            ));
        }
    }

    /// The path as given to [`Checkpoint::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory the files are in.
    pub fn dir(&self) -> &Path {
        self.files
            .first()
            .and_then(|f| f.parent())
            .unwrap_or(Path::new("."))
    }

    /// The files, in order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| &**f)
    }

    /// All tensors in order of their keys.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorEntry> {
        self.tensors.values()
    }

    /// The tensor called `key`.
    pub fn get(&self, key: &str) -> Option<&TensorEntry> {
        self.tensors.get(key)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors, headers not counted.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.len).sum()
    }

    /// Free text its writer stored, of all files together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Oddities that do not keep the checkpoint from being used.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Names of the `.safetensors` files in a directory, sorted. Unreadable directories have none.
pub(crate) fn safetensors_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
}

/// Groups keys by shard and checks that every shard is a file in `dir`.
fn check_shards<'a>(
    index_path: &Path,
    dir: &Path,
    index: &'a Index,
) -> Result<BTreeMap<&'a str, Vec<&'a str>>> {
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, shard) in &index.weight_map {
        by_shard.entry(shard).or_default().push(key);
    }
    let present = safetensors_names(dir);
    let near = |shard: &str| {
        nearest(shard, present.iter().map(String::as_str))
            .filter(|n| *n != shard)
            .map(String::from)
    };
    for (shard, keys) in &by_shard {
        if !is_plain_name(shard) {
            let last = shard.rsplit(['/', '\\']).next().unwrap_or_default();
            return Err(WeightsError::ShardOutside {
                index: index_path.to_path_buf(),
                key: keys[0].to_string(),
                shard: shard.to_string(),
                nearest: nearest(last, present.iter().map(String::as_str)).map(String::from),
            });
        }
    }
    let absent: BTreeSet<&str> = by_shard
        .keys()
        .copied()
        .filter(|shard| !dir.join(shard).exists())
        .collect();
    if let Some(shard) = absent.first() {
        return Err(WeightsError::ShardMissing {
            index: index_path.to_path_buf(),
            shard: shard.to_string(),
            key: by_shard[shard][0].to_string(),
            keys: by_shard[shard].len(),
            others: absent.len() - 1,
            nearest: near(shard),
        });
    }
    Ok(by_shard)
}

/// Whether a name is one normal path component on every platform.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(c)) if c == OsStr::new(name))
        && components.next().is_none()
        && !name.contains(['/', '\\', ':', '\0'])
}

struct Index {
    weight_map: BTreeMap<String, String>,
    total_size: Option<u64>,
}

fn read_index(path: &Path) -> Result<Index> {
    let wrong = |why: String| WeightsError::Index {
        index: path.to_path_buf(),
        why,
    };
    let (file, len) = open_regular(path)?;
    if len > MAX_HEADER_BYTES {
        return Err(wrong(format!("{len} bytes is too long for an index")));
    }
    let mut text = Vec::new();
    file.take(MAX_HEADER_BYTES)
        .read_to_end(&mut text)
        .map_err(WeightsError::io("reading", path))?;
    let raw: RawIndex = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if raw.weight_map.0.is_empty() {
        return Err(wrong("it lists no tensor".into()));
    }
    Ok(Index {
        weight_map: raw.weight_map.0,
        total_size: raw
            .metadata
            .as_ref()
            .and_then(|m| m.get("total_size"))
            .and_then(|v| v.as_u64().or_else(|| v.as_f64().map(|f| f as u64))),
    })
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: WeightMap,
    metadata: Option<serde_json::Value>,
}

/// Key → shard, refusing a key that occurs twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, shard)) = map.next_entry::<String, String>()? {
                    if pairs.contains_key(&key) {
                        return Err(A::Error::custom(format!("tensor `{key}` is listed twice")));
                    }
                    pairs.insert(key, shard);
                }
                Ok(WeightMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} tensors, {} bytes in {}",
            self.path.display(),
            self.len(),
            self.bytes(),
            self.files
                .iter()
                .map(|p| file_name(p))
                .collect::<Vec<_>>()
                .join(", ")
        )
    }
}
