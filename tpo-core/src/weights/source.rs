//! Tensors that are about to be written, read from the device one at a time.

use std::collections::{BTreeMap, HashMap};

use burn::backend::flex::FlexTensor;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, BoolStore, DType, Int, Tensor, TensorData};
use safetensors::Dtype;

use super::key_map::KeyMap;
use super::load::DtypePolicy;
use super::params::{PathStack, module_params, path_set};
use super::read::file_dtype;
use super::write::{bytes_of, file_order, header};
use super::{Result, WeightsError};
use crate::ops::plain;

/// A tensor to be written. It may hold a reference to a tensor on a device instead of data.
pub struct TensorSource<'a> {
    key: String,
    path: String,
    shape: Vec<usize>,
    /// Type it is written in.
    to: DType,
    dtype: Dtype,
    values: Values<'a>,
}

/// Where the values of a tensor are.
enum Values<'a> {
    /// In memory, in order and in the type they are written in.
    Held(FlexTensor),
    /// Somewhere else.
    Asked(Box<dyn Fn() -> Result<TensorData, String> + 'a>),
}

impl std::fmt::Debug for TensorSource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorSource")
            .field("key", &self.key)
            .field("shape", &self.shape)
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}

impl<'a> TensorSource<'a> {
    /// A tensor whose data is at hand.
    ///
    /// # Errors
    /// [`WeightsError::Unsavable`] when the format has no such data type.
    pub fn from_data(key: impl Into<String>, data: &'a TensorData) -> Result<Self> {
        let (key, shape) = (key.into(), data.shape().to_vec());
        Self::when_asked(key.clone(), key, shape, data.dtype(), || Ok(data.clone()))
    }

    /// The float tensor `key`, written as `to`. On the CPU it shares the tensor's storage. `path` is what
    /// errors call it.
    ///
    /// # Errors
    /// [`WeightsError::Unsavable`] when the format has no such data type.
    pub fn of<const D: usize>(
        key: String,
        path: String,
        tensor: Tensor<D>,
        to: DType,
    ) -> Result<TensorSource<'static>> {
        let shape = tensor.dims().to_vec();
        let held = plain([tensor.clone().into_dispatch()]).ok();
        let held = held
            .map(|[held]| held)
            .filter(|held| held.dtype() == to && held.layout().contiguous_offsets().is_some());
        let asked = move || tensor.try_to_data().map_err(|e| format!("{e:?}"));
        let mut source = TensorSource::when_asked(key, path, shape, to, asked)?;
        if let Some(held) = held {
            source.values = Values::Held(held);
        }
        Ok(source)
    }

    /// The tensor `key` of this shape, written as `to`, whose data `read` gives when its turn comes; or
    /// why it cannot. `path` is what errors call it.
    ///
    /// # Errors
    /// [`WeightsError::Unsavable`] when the format has no such data type.
    pub fn when_asked(
        key: String,
        path: String,
        shape: Vec<usize>,
        to: DType,
        read: impl Fn() -> Result<TensorData, String> + 'a,
    ) -> Result<Self> {
        match file_dtype(to) {
            Some(dtype) => Ok(Self {
                key,
                path,
                shape,
                to,
                dtype,
                values: Values::Asked(Box::new(read)),
            }),
            None => Err(WeightsError::Unsavable {
                path,
                shape,
                why: format!("the format has no data type for {to:?}; dequantise it first"),
            }),
        }
    }

    /// Key in the file.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Number of bytes in the file.
    pub fn bytes(&self) -> u64 {
        bytes_of(self.dtype, &self.shape)
    }

    /// Hands the bytes over.
    fn write<E: From<WeightsError>>(
        &self,
        write: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let fail = |why: String| WeightsError::Unsavable {
            path: self.path.clone(),
            shape: self.shape.clone(),
            why,
        };
        let read = match &self.values {
            Values::Held(tensor) => {
                let (start, end) = tensor.layout().contiguous_offsets().unwrap_or_default();
                let width = self.dtype.bitsize() / 8;
                return write(&tensor.bytes()[start * width..end * width]);
            }
            Values::Asked(read) => read,
        };
        let data = read().map_err(fail)?;
        let data = data.try_cast(self.to).map_err(|e| fail(e.to_string()))?;
        if data.as_bytes().len() as u64 != self.bytes() {
            return Err(fail(format!(
                "the device returned {} bytes instead of {}",
                data.as_bytes().len(),
                self.bytes()
            ))
            .into());
        }
        write(data.as_bytes())
    }
}

/// Streams `tensors` through `write` as one safetensors file with this metadata, widest data type
/// first. One tensor is in memory at a time. `E` is the error of the writer.
///
/// # Errors
/// What `write` returns, and [`WeightsError::Unsavable`] when a device does not give its tensor.
pub fn write_tensors<E: From<WeightsError>>(
    tensors: &mut [TensorSource<'_>],
    metadata: &BTreeMap<String, String>,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    tensors.sort_by(|a, b| (file_order(a.dtype), &a.key).cmp(&(file_order(b.dtype), &b.key)));
    let listed = tensors.iter().map(|t| (&*t.key, t.dtype, &*t.shape));
    write(&header(listed, metadata))?;
    for tensor in tensors {
        tensor.write(&mut write)?;
    }
    Ok(())
}

/// The parameters of `module` whose path `select` accepts, under the keys of `map`. Nothing is
/// copied from the device yet, and parameters that are not selected are not initialised.
///
/// # Errors
/// [`WeightsError::Unsavable`] when a selected parameter has no key, shares it or has a type the
/// format lacks.
pub fn module_tensors<M: Module>(
    module: &M,
    map: &dyn KeyMap,
    dtype: DtypePolicy,
    select: &dyn Fn(&str) -> bool,
) -> Result<Vec<TensorSource<'static>>> {
    let params = module_params(module);
    let paths = path_set(&params);
    let mut keys: HashMap<String, String> = HashMap::new();
    let mut owner: HashMap<String, &str> = HashMap::new();
    for p in params.iter().filter(|p| select(&p.path)) {
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
        dtype,
        sources: Vec::new(),
    };
    module.visit(&mut collector);
    collector.sources.into_iter().collect()
}

struct Collector {
    stack: PathStack,
    keys: HashMap<String, String>,
    dtype: DtypePolicy,
    sources: Vec<Result<TensorSource<'static>>>,
}

impl Collector {
    fn selects(&self) -> bool {
        self.keys.contains_key(&self.stack.path())
    }

    fn push(
        &mut self,
        shape: Vec<usize>,
        to: DType,
        read: impl Fn() -> Result<TensorData, String> + 'static,
    ) {
        let path = self.stack.path();
        if let Some(key) = self.keys.get(&path).cloned() {
            let source = TensorSource::when_asked(key, path, shape, to, read);
            self.sources.push(source);
        }
    }
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.stack.path();
        if let Some(key) = self.keys.get(&path).cloned() {
            let tensor = param.transform_for_save().val();
            let to = self.dtype.of(tensor.dtype());
            self.sources.push(TensorSource::of(key, path, tensor, to));
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if !self.selects() {
            return;
        }
        let tensor = param.transform_for_save().val();
        self.push(tensor.dims().to_vec(), tensor.dtype(), move || {
            tensor.try_to_data().map_err(|e| format!("{e:?}"))
        });
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        if !self.selects() {
            return;
        }
        let tensor = param.transform_for_save().val();
        let to = DType::Bool(BoolStore::Native);
        self.push(tensor.dims().to_vec(), to, move || {
            tensor.try_to_data().map_err(|e| format!("{e:?}"))
        });
    }
}
