//! Copying a checkpoint into a module.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, TensorData};

use super::header::TensorEntry;
use super::key_map::KeyMap;
use super::params::{PathStack, module_params};
use super::plan::{Plan, packed_format};
use super::read::{read_quantized, read_tensor_as};
use super::report::{CastTensor, LoadReport, LoadedTensor};
use super::{Checkpoint, Result, WeightsError};

/// Data type of the float parameters after loading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum DtypePolicy {
    /// As in the file.
    #[default]
    Keep,
    /// All of this type; each cast is listed in the report.
    Cast(FloatDType),
}

impl DtypePolicy {
    /// What becomes of a data type.
    pub fn of(self, dtype: DType) -> DType {
        match self {
            Self::Cast(to) if dtype.is_float() => to.into(),
            _ => dtype,
        }
    }
}

/// Which keys of the checkpoint the module must account for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum KeyScope {
    /// All of them: a key the table does not cover is unexpected.
    #[default]
    Whole,
    /// Those the table covers; keys of other parts are counted and skipped.
    Part,
}

/// Why the parameter at a path keeps its value, if it does.
pub type LeftOut<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Options of [`load_module`]. The default is strict in everything and keeps data types.
#[derive(Clone, Default)]
pub struct LoadOptions<'a> {
    /// Regular expressions of module paths that may have no tensor, such as `\.lora\.` to start
    /// training from weights without adapters; `.` stands for all.
    pub allow_missing: Vec<String>,
    /// Which parameters keep their values: a tensor for one is listed as ignored with the reason,
    /// and may be absent or of any shape.
    pub left_out: Option<LeftOut<'a>>,
    /// Data type of float parameters.
    pub dtype: DtypePolicy,
    /// Which keys count.
    pub scope: KeyScope,
    /// Called after each tensor with the bytes done and in all.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("allow_missing", &self.allow_missing)
            .field("dtype", &self.dtype)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// Copies the tensors of `checkpoint` into the parameters of `module`.
///
/// Names, shapes and kinds are all checked first. Then one tensor after the other is read, by all
/// threads, and becomes its parameter: what is cast or quantised on the way is so in pieces of a MiB, and
/// there is never a second copy of more than these. Parameters keep their id, device, autodiff context and whether they require a gradient; parameters that were
/// not initialised yet never get their random initial values. Integer parameters take the
/// integer type of their device. A quantised weight takes its packed words, or the float tensor of
/// the weight's own name, which is quantised when it is read.
///
/// # Errors
/// [`WeightsError::Refused`] lists everything that is missing, unexpected or mismatched, and
/// nothing was loaded. [`WeightsError::TensorData`] when a file cannot be read after its header
/// was. In either case a clone of the module taken before is unchanged.
pub fn load_module<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    map: &dyn KeyMap,
    options: &LoadOptions<'_>,
) -> Result<(M, LoadReport)> {
    let params = module_params(&module);
    let (matched, mut report) =
        Plan::new(&params, checkpoint, map, options).into_allowed(&options.allow_missing)?;
    let total = matched.iter().map(|(t, _)| t.len).sum();
    let mut loader = Loader {
        stack: PathStack::default(),
        by_path: matched.iter().map(|(t, p)| (p.path.as_str(), *t)).collect(),
        options,
        done: 0,
        total,
        cast: Vec::new(),
        error: None,
    };
    let module = module.map(&mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    report.cast = loader.cast;
    report.loaded = matched
        .iter()
        .map(|(t, p)| LoadedTensor {
            key: t.key.clone(),
            path: p.path.clone(),
            shape: t.shape.clone(),
            dtype: t.dtype,
            bytes: t.len,
        })
        .collect();
    tracing::debug!(
        tensors = report.loaded.len(),
        bytes = total,
        cast = report.cast.len(),
        "weights loaded"
    );
    Ok((module, report))
}

/// A checkpoint that holds parts of a module, its key table and which of its keys count.
pub type Layer<'a> = (&'a Checkpoint, &'a dyn KeyMap, KeyScope);

/// Loads a module from several checkpoints; where two have a tensor, that of the later one is
/// used. Together they must have all of it. Reports are in the order of the checkpoints.
///
/// # Errors
/// As [`load_module`].
pub fn load_layers<M: Module>(
    module: M,
    layers: &[Layer<'_>],
    options: &LoadOptions<'_>,
) -> Result<(M, Vec<LoadReport>)> {
    let mut module = module;
    let mut reports = Vec::new();
    let mut taken: HashMap<String, String> = HashMap::new();
    // The last one goes first, and each earlier one leaves out what is taken.
    for (at, (checkpoint, map, scope)) in layers.iter().enumerate().rev() {
        let left_out = |path: &str| {
            let asked = || options.left_out.and_then(|why| why(path));
            taken.get(path).cloned().or_else(asked)
        };
        let mut of_layer = LoadOptions {
            left_out: Some(&left_out),
            scope: *scope,
            ..options.clone()
        };
        // What a later one lacks, an earlier one must have.
        if at > 0 {
            of_layer.allow_missing.push(".".into());
        }
        let (loaded, mut report) = load_module(module, checkpoint, *map, &of_layer)?;
        module = loaded;
        if at > 0 {
            report.missing.clear();
        }
        let why = format!("replaced by {}", checkpoint.path().display());
        let loaded = report.loaded.iter();
        taken.extend(loaded.map(|t| (t.path.clone(), why.clone())));
        reports.insert(0, report);
    }
    Ok((module, reports))
}

/// Replaces parameters by tensors of the checkpoint.
struct Loader<'a> {
    stack: PathStack,
    by_path: HashMap<&'a str, &'a TensorEntry>,
    options: &'a LoadOptions<'a>,
    done: u64,
    total: u64,
    cast: Vec<CastTensor>,
    error: Option<WeightsError>,
}

impl Loader<'_> {
    /// The data of the parameter being visited in the wanted type, or in packed lines of the shape
    /// `packed`; `None` to leave it as it is.
    fn data(
        &mut self,
        packed: Option<&[usize]>,
        want: impl FnOnce(DType) -> DType,
    ) -> Option<TensorData> {
        if self.error.is_some() {
            return None;
        }
        let entry = *self.by_path.get(self.stack.path().as_str())?;
        match self.read(entry, packed, want) {
            Ok(data) => {
                self.done += entry.len;
                if let Some(progress) = self.options.progress {
                    progress(self.done, self.total);
                }
                Some(data)
            }
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    /// Reads a tensor, recording a cast.
    fn read(
        &mut self,
        entry: &TensorEntry,
        packed: Option<&[usize]>,
        want: impl FnOnce(DType) -> DType,
    ) -> Result<TensorData> {
        let format = packed.and_then(|shape| packed_format(entry, shape));
        let from = entry.element_type()?;
        let to = format.map_or_else(|| want(from), |_| DType::F32);
        if to != from {
            self.cast.push(CastTensor {
                key: entry.key.clone(),
                from: entry.dtype,
                to: format!("{to:?}"),
            });
        }
        match format {
            Some(format) => read_quantized(entry, format),
            None => read_tensor_as(entry, to),
        }
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let policy = self.options.dtype;
        let Some(data) = self.data(None, |from| policy.of(from)) else {
            return param;
        };
        // The parameter's own device, so that its autodiff context survives.
        let (device, dtype, id) = (param.lazy_device(), data.dtype(), param.id);
        let tensor = Tensor::from_data(data, (&device, dtype));
        param.transform_for_load(tensor, id)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (device, id) = (param.lazy_device(), param.id);
        // The integer type tensors of the device have, but for the words of quantised weights.
        let dtype = device.settings().int_dtype.into();
        let want = |from| match from {
            DType::U32 => from,
            _ => dtype,
        };
        let shape = param.lazy_shape();
        let Some(data) = self.data(Some(shape.as_slice()), want) else {
            return param;
        };
        let dtype = data.dtype();
        let tensor = Tensor::from_data(data, (&device, dtype));
        param.transform_for_load(tensor, id)
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let Some(data) = self.data(None, |from| from) else {
            return param;
        };
        let (device, id) = (param.lazy_device(), param.id);
        param.transform_for_load(Tensor::from_data(data, &device), id)
    }
}
