//! Writing a module as a checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, BoolStore, DType, Int, Tensor, TensorData};
use safetensors::Dtype;
use serde::Serialize;

use super::key_map::KeyMap;
use super::load::DtypePolicy;
use super::manifest::shard_name;
use super::params::{PathStack, module_params, path_set};
use super::write::{Planned, Scratch, file_order, header, index, sync_dir};
use super::{INDEX_FILE, Result, SINGLE_FILE, WeightsError};

/// Options of [`save_module`].
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
    let destination = destination.as_ref();
    let mut tensors = collect(module, map, options)?;
    tensors.sort_by(|a, b| a.key.cmp(&b.key));

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

fn report(files: Vec<PathBuf>, tensors: &[Source]) -> SaveReport {
    SaveReport {
        files,
        tensors: tensors.len(),
        bytes: tensors.iter().map(Source::bytes).sum(),
    }
}

fn save_dir(tensors: Vec<Source>, dir: &Path, options: &SaveOptions) -> Result<SaveReport> {
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
        let total = shards.iter().flatten().map(Source::bytes).sum();
        let names: Vec<String> = (0..count).map(name).collect();
        let places = shards
            .iter()
            .zip(&names)
            .flat_map(|(s, n)| s.iter().map(move |t| (t.key.as_str(), n.as_str())));
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
    let all: Vec<Source> = shards.into_iter().flatten().collect();
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
fn split(tensors: Vec<Source>, max: u64) -> Vec<Vec<Source>> {
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

fn write_file(path: &Path, tensors: &mut [Source], options: &SaveOptions) -> Result<Scratch> {
    tensors.sort_by(|a, b| (file_order(a.dtype), &a.key).cmp(&(file_order(b.dtype), &b.key)));
    let planned: Vec<_> = tensors
        .iter()
        .map(|t| Planned {
            key: &t.key,
            dtype: t.dtype,
            shape: &t.shape,
            bytes: t.bytes(),
        })
        .collect();
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    metadata.extend(options.metadata.clone());
    let mut file = Scratch::create(path)?;
    file.write(&header(&planned, &metadata))?;
    for tensor in tensors {
        let data = tensor.data()?;
        file.write(data.as_bytes())?;
    }
    file.sync()?;
    Ok(file)
}

/// A parameter to be written; holds a reference to the tensor, not its data.
struct Source {
    key: String,
    path: String,
    shape: Vec<usize>,
    /// Type it is written in.
    to: DType,
    dtype: Dtype,
    read: Box<dyn Fn() -> Result<TensorData, String>>,
}

impl Source {
    fn bytes(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }

    fn data(&self) -> Result<TensorData> {
        let fail = |why: String| WeightsError::Unsavable {
            path: self.path.clone(),
            shape: self.shape.clone(),
            why,
        };
        let data = (self.read)().map_err(fail)?;
        let data = data.try_cast(self.to).map_err(|e| fail(e.to_string()))?;
        if data.as_bytes().len() as u64 != self.bytes() {
            return Err(fail(format!(
                "the device returned {} bytes instead of {}",
                data.as_bytes().len(),
                self.bytes()
            )));
        }
        Ok(data)
    }
}

fn collect<M: Module>(module: &M, map: &dyn KeyMap, options: &SaveOptions) -> Result<Vec<Source>> {
    let params = module_params(module);
    let paths = path_set(&params);
    let mut keys: HashMap<String, String> = HashMap::new();
    let mut owner: HashMap<String, &str> = HashMap::new();
    for p in &params {
        let fail = |why: String| WeightsError::Unsavable {
            path: p.path.clone(),
            shape: p.shape.clone(),
            why,
        };
        let key = map
            .checkpoint_key(&p.path, &|path| paths.contains(path))
            .ok_or_else(|| fail("no key table covers it; add one for its part".into()))?;
        if key == "__metadata__" {
            return Err(fail("`__metadata__` is a reserved key".into()));
        }
        if let Some(first) = owner.insert(key.clone(), &p.path) {
            return Err(fail(format!(
                "its key `{key}` is also the key of `{first}`; correct the key table"
            )));
        }
        keys.insert(p.path.clone(), key);
    }
    let mut collector = Collector {
        stack: PathStack::default(),
        keys,
        dtype: options.dtype,
        sources: Vec::new(),
        error: None,
    };
    module.visit(&mut collector);
    match collector.error {
        Some(error) => Err(error),
        None => Ok(collector.sources),
    }
}

struct Collector {
    stack: PathStack,
    keys: HashMap<String, String>,
    dtype: DtypePolicy,
    sources: Vec<Source>,
    error: Option<WeightsError>,
}

impl Collector {
    fn push(
        &mut self,
        shape: Vec<usize>,
        to: DType,
        read: impl Fn() -> Result<TensorData, String> + 'static,
    ) {
        let path = self.stack.path();
        let Some(dtype) = file_dtype(to) else {
            self.error.get_or_insert(WeightsError::Unsavable {
                path,
                shape,
                why: format!("the format has no data type for {to:?}; dequantise it first"),
            });
            return;
        };
        let key = self
            .keys
            .get(&path)
            .cloned()
            .unwrap_or_else(|| path.clone());
        self.sources.push(Source {
            key,
            path,
            shape,
            to,
            dtype,
            read: Box::new(read),
        });
    }
}

/// The format's type for one of Burn's.
fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native) => Dtype::BOOL,
        _ => return None,
    })
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.transform_for_save().val();
        let to = match self.dtype {
            DtypePolicy::Keep => tensor.dtype(),
            DtypePolicy::Cast(to) => to.into(),
        };
        self.push(tensor.dims().to_vec(), to, move || {
            tensor.try_to_data().map_err(|e| format!("{e:?}"))
        });
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let tensor = param.transform_for_save().val();
        self.push(tensor.dims().to_vec(), tensor.dtype(), move || {
            tensor.try_to_data().map_err(|e| format!("{e:?}"))
        });
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        let tensor = param.transform_for_save().val();
        let to = DType::Bool(BoolStore::Native);
        self.push(tensor.dims().to_vec(), to, move || {
            tensor.try_to_data().map_err(|e| format!("{e:?}"))
        });
    }
}
