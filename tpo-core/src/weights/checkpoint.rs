//! A checkpoint: one file or a directory of shards.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::header::{MAX_HEADER_BYTES, TensorEntry, open_regular, read_header};
use super::{GgufFile, Result, WeightsError, nearest};

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
            if GgufFile::is_one(path) {
                return Err(WeightsError::NotACheckpoint {
                    path: path.to_path_buf(),
                    why: "a GGUF file holds a language model alone: `tpo generate --model`, `tpo \
                          inspect` and `model.llm` of a recipe take it"
                        .into(),
                });
            }
            return if path.extension() == Some(OsStr::new("json")) {
                Self::open_sharded(path, path)
            } else {
                Self::open_single(path, path)
            };
        }
        let index = path.join(INDEX_FILE);
        let single = path.join(SINGLE_FILE);
        let candidates = match (index.exists(), single.exists()) {
            (true, false) => return Self::open_sharded(path, &index),
            (false, true) => return Self::open_single(path, &single),
            (true, true) => vec![INDEX_FILE.into(), SINGLE_FILE.into()],
            (false, false) => safetensors_names(path),
        };
        let why = match &candidates[..] {
            [name] => return Self::open_single(path, &path.join(name)),
            [] => "the directory holds no .safetensors file".into(),
            several => format!(
                "it holds several checkpoints and none is the obvious one: {}",
                several.join(", ")
            ),
        };
        Err(WeightsError::NotACheckpoint {
            path: path.to_path_buf(),
            why,
        })
    }

    /// What another header lists of the file at `path`.
    pub(super) fn of_file(path: Arc<Path>, tensors: impl Iterator<Item = TensorEntry>) -> Self {
        Self {
            path: path.to_path_buf(),
            files: vec![path],
            tensors: tensors.map(|t| (t.key.clone(), t)).collect(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
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
        let index = Index::read(index_path)?;
        index.check_shards(dir)?;

        let mut out = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        };
        for shard in index.shards.keys() {
            let header = read_header(&dir.join(shard))?;
            out.files.push(Arc::from(dir.join(shard)));
            out.metadata.extend(header.metadata);
            for t in header.tensors {
                if let Some(first) = out.tensors.get(&t.key) {
                    return Err(index.wrong(format!(
                        "tensor `{}` occurs in {} and again in {shard}; one of them is stale, \
                         remove it",
                        t.key,
                        first.file_name()
                    )));
                }
                out.tensors.insert(t.key.clone(), t);
            }
        }
        out.compare_with(&index)?;
        out.note_totals(dir, &index);
        Ok(out)
    }

    /// Every key must be where the index says, and nowhere else.
    fn compare_with(&self, index: &Index) -> Result<()> {
        let fail = |key: &str, why: String, others: usize| {
            Err(index.wrong(format!(
                "tensor `{key}`: {why}{}; index and shards are from different checkpoints, fetch \
                 both again",
                and_more(others, "tensors")
            )))
        };
        let mut misplaced = index.places.iter().filter(|(key, shard)| {
            let found = self.tensors.get(*key);
            found.is_none_or(|t| t.file_name() != **shard)
        });
        if let Some((key, shard)) = misplaced.next() {
            let why = match self.tensors.get(key) {
                Some(t) => format!("it is listed in {shard}, but it is in {}", t.file_name()),
                None => {
                    let there = self.tensors.values().filter(|t| t.file_name() == **shard);
                    let free = there.filter(|t| !index.places.contains_key(&t.key));
                    let near = nearest(key, free.map(|t| t.key.as_str()));
                    let near = near.map(|n| format!(" (nearest name there: `{n}`)"));
                    format!(
                        "it is listed in {shard}, which does not hold it{}",
                        near.unwrap_or_default()
                    )
                }
            };
            return fail(key, why, misplaced.count());
        }
        let unlisted = |t: &&TensorEntry| !index.places.contains_key(&t.key);
        let mut unlisted = self.tensors.values().filter(unlisted);
        if let Some(t) = unlisted.next() {
            let (file, shape) = (t.file_name(), &t.shape);
            let why = format!("{file} holds it (shape {shape:?}), but the index does not list it");
            return fail(&t.key, why, unlisted.count());
        }
        Ok(())
    }

    fn note_totals(&mut self, dir: &Path, index: &Index) {
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
            .filter(|n| !index.shards.contains_key(n))
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

    /// The same checkpoint with `tensor` in place of the one of its name.
    pub fn with(mut self, tensor: TensorEntry) -> Self {
        self.tensors.insert(tensor.key.clone(), tensor);
        self
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

/// Whether a name is one normal path component on every platform.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(c)) if c == OsStr::new(name))
        && components.next().is_none()
        && !name.contains(['/', '\\', ':', '\0'])
}

/// The index of a sharded checkpoint.
struct Index {
    path: PathBuf,
    /// Key → shard.
    places: BTreeMap<String, String>,
    /// Shard → keys.
    shards: BTreeMap<String, Vec<String>>,
    total_size: Option<u64>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| WeightsError::Index {
            index: path.to_path_buf(),
            why: format!("{why}; fetch the index again"),
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
        let places = raw.weight_map.0;
        if places.is_empty() {
            return Err(wrong("it lists no tensor".into()));
        }
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, shard) in &places {
            shards.entry(shard.clone()).or_default().push(key.clone());
        }
        let total = raw.metadata.as_ref().and_then(|m| m.get("total_size"));
        Ok(Self {
            path: path.to_path_buf(),
            places,
            shards,
            total_size: total.and_then(|v| v.as_u64().or_else(|| v.as_f64().map(|f| f as u64))),
        })
    }

    fn wrong(&self, why: String) -> WeightsError {
        WeightsError::Index {
            index: self.path.clone(),
            why,
        }
    }

    /// Checks that every shard is a file in `dir`.
    fn check_shards(&self, dir: &Path) -> Result<()> {
        let present = safetensors_names(dir);
        let near = |name: &str| {
            let near = nearest(name, present.iter().map(String::as_str));
            let near = near.map(|n| format!(" (nearest file: {n})"));
            near.unwrap_or_default()
        };
        let mut outside = self
            .shards
            .iter()
            .filter(|(shard, _)| !is_plain_name(shard));
        if let Some((shard, keys)) = outside.next() {
            let last = shard.rsplit(['/', '\\']).next().unwrap_or_default();
            return Err(self.wrong(format!(
                "it places tensor `{}` in `{shard}`, which is not a plain file name{}; an index \
                 may only name files in its own directory, so nothing was opened: do not use this \
                 checkpoint, or correct the index",
                keys[0],
                near(last)
            )));
        }
        let mut absent = self.shards.iter().filter(|(s, _)| !dir.join(s).exists());
        if let Some((shard, keys)) = absent.next() {
            return Err(self.wrong(format!(
                "it places {} tensors, the first of them `{}`, in {shard}, which is not in the \
                 directory{}{}; fetch the missing file",
                keys.len(),
                keys[0],
                near(shard),
                and_more(absent.count(), "shards")
            )));
        }
        Ok(())
    }
}

/// How many others have the problem that was told of one.
fn and_more(others: usize, what: &str) -> String {
    match others {
        0 => String::new(),
        _ => format!("; the same holds for {others} more {what}"),
    }
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
