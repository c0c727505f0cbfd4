//! Copying a checkpoint into a module.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, TensorData};

use super::error::{MismatchedTensor, MissingTensor, NearTensor, Refusal, UnexpectedTensor};
use super::header::TensorEntry;
use super::key_map::{KeyMap, KeyTarget, compile};
use super::nearest::nearest;
use super::params::{ParamInfo, ParamKind, PathStack, module_params, path_set};
use super::read::{TensorReader, burn_dtype};
use super::report::{CastTensor, IgnoredTensor, LoadReport, LoadedTensor};
use super::{Checkpoint, Result, WeightsError};
use crate::ops::QuantFormat;

/// How many problems of a kind get a nearest name; searching all would take quadratic time when
/// every name is wrong.
const NEAREST_FOR: usize = 8;

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
/// Names, shapes and kinds are all checked first. Then one tensor after the other is read and
/// becomes its parameter; there is never a second copy of more than one tensor. Parameters keep
/// their id, device, autodiff context and whether they require a gradient; parameters that were
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
        reader: TensorReader::default(),
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

/// The tensors of `checkpoint` that parameters like these would take, each with its parameter, and the
/// report of a load that is yet to come: what may be missing and is, and what is ignored.
///
/// # Errors
/// [`WeightsError::Refused`] as [`load_module`].
pub fn match_tensors(
    params: &[ParamInfo],
    checkpoint: &Checkpoint,
    map: &dyn KeyMap,
    options: &LoadOptions<'_>,
) -> Result<(Vec<(TensorEntry, ParamInfo)>, LoadReport)> {
    let plan = Plan::new(params, checkpoint, map, options);
    let (matched, report) = plan.into_allowed(&options.allow_missing)?;
    let owned = matched.into_iter().map(|(t, p)| (t.clone(), p.clone()));
    Ok((owned.collect(), report))
}

/// Everything that would keep `checkpoint` from being loaded into parameters like these.
pub fn differences(params: &[ParamInfo], checkpoint: &Checkpoint, map: &dyn KeyMap) -> Refusal {
    Plan::new(params, checkpoint, map, &LoadOptions::default()).problems
}

/// What would be loaded, and everything that does not fit.
struct Plan<'a> {
    matched: Vec<(&'a TensorEntry, &'a ParamInfo)>,
    report: LoadReport,
    problems: Refusal,
}

impl<'a> Plan<'a> {
    fn new(
        params: &'a [ParamInfo],
        checkpoint: &'a Checkpoint,
        map: &dyn KeyMap,
        options: &LoadOptions<'_>,
    ) -> Self {
        let by_path: HashMap<&str, &ParamInfo> =
            params.iter().map(|p| (p.path.as_str(), p)).collect();
        let left_out = |path: &str| options.left_out.and_then(|why| why(path));
        let mut plan = Plan {
            matched: Vec::new(),
            report: LoadReport {
                checkpoint: checkpoint.path().to_path_buf(),
                ..LoadReport::default()
            },
            problems: Refusal {
                checkpoint: checkpoint.path().to_path_buf(),
                ..Refusal::default()
            },
        };
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        let mut unexpected: Vec<&TensorEntry> = Vec::new();
        let mut uncovered = 0;
        for entry in checkpoint.tensors() {
            let target = match map.module_path(&entry.key) {
                KeyTarget::Path(path) => match left_out(&path) {
                    Some(reason) => KeyTarget::Ignored(reason),
                    None => KeyTarget::Path(path),
                },
                target => target,
            };
            let path = match target {
                KeyTarget::Path(path) => path,
                KeyTarget::Ignored(reason) => {
                    let key = entry.key.clone();
                    plan.report.ignored.push(IgnoredTensor { key, reason });
                    continue;
                }
                KeyTarget::OtherPart if options.scope == KeyScope::Whole => {
                    uncovered += 1;
                    unexpected.push(entry);
                    continue;
                }
                KeyTarget::OtherPart => {
                    plan.report.other_parts += 1;
                    continue;
                }
            };
            let found = by_path.get(path.as_str()).copied();
            let packed = by_path.get(format!("{path}.packed").as_str()).copied();
            let Some(param) = found.or(packed) else {
                unexpected.push(entry);
                continue;
            };
            let quantised = quantised_as(entry, param).is_some();
            let why = match taken.insert(&param.path, &entry.key) {
                Some(first) => Some(format!(
                    "it leads to the parameter `{path}`, and so does `{first}`; remove one of them"
                )),
                None if quantised => None,
                None => unfit(entry, param),
            };
            if why.is_some() || (entry.shape != param.shape && !quantised) {
                plan.problems.mismatched.push(MismatchedTensor {
                    key: entry.key.clone(),
                    path,
                    expected: param.shape.clone(),
                    found: entry.shape.clone(),
                    file: entry.file_name(),
                    why,
                });
            } else {
                plan.matched.push((entry, param));
            }
        }
        plan.problems.other_parts = uncovered > 0 && uncovered == unexpected.len();
        let missing: Vec<&ParamInfo> = params
            .iter()
            .filter(|p| !taken.contains_key(p.path.as_str()) && left_out(&p.path).is_none())
            .collect();
        plan.name_problems(&missing, &unexpected, params, checkpoint, map);
        plan
    }

    /// Fills in what is missing and unexpected, each with the nearest name on the other side.
    fn name_problems(
        &mut self,
        missing: &[&ParamInfo],
        unexpected: &[&TensorEntry],
        params: &[ParamInfo],
        checkpoint: &Checkpoint,
        map: &dyn KeyMap,
    ) {
        let paths = path_set(params);
        let key_of = |p: &ParamInfo| {
            map.checkpoint_key(&p.path, &|path| paths.contains(path))
                .unwrap_or_else(|| p.path.clone())
        };
        let missing_keys: Vec<String> = missing.iter().map(|p| key_of(p)).collect();
        self.problems.missing = missing
            .iter()
            .zip(&missing_keys)
            .enumerate()
            .map(|(i, (param, key))| MissingTensor {
                path: param.path.clone(),
                key: key.clone(),
                shape: param.shape.clone(),
                nearest: (i < NEAREST_FOR)
                    .then(|| near_entry(key, &param.shape, unexpected, checkpoint))
                    .flatten(),
            })
            .collect();
        let all_keys: Vec<String> = if unexpected.is_empty() {
            Vec::new()
        } else {
            params.iter().map(key_of).collect()
        };
        self.problems.unexpected = unexpected
            .iter()
            .enumerate()
            .map(|(i, entry)| UnexpectedTensor {
                key: entry.key.clone(),
                shape: entry.shape.clone(),
                file: entry.file_name(),
                nearest: (i < NEAREST_FOR)
                    .then(|| {
                        nearest(&entry.key, missing_keys.iter().map(String::as_str))
                            .or_else(|| nearest(&entry.key, all_keys.iter().map(String::as_str)))
                            .map(String::from)
                    })
                    .flatten(),
            })
            .collect();
    }

    /// What is to be loaded, or an error with what is not allowed.
    fn into_allowed(
        mut self,
        allow_missing: &[String],
    ) -> Result<(Vec<(&'a TensorEntry, &'a ParamInfo)>, LoadReport)> {
        let allowed = allow_missing.iter().map(|pattern| compile(pattern));
        let allowed = allowed.collect::<Result<Vec<_>>>()?;
        let missing = std::mem::take(&mut self.problems.missing).into_iter();
        (self.report.missing, self.problems.missing) =
            missing.partition(|m| allowed.iter().any(|pattern| pattern.is_match(&m.path)));
        if self.problems.is_empty() {
            Ok((self.matched, self.report))
        } else {
            Err(WeightsError::Refused(Box::new(self.problems)))
        }
    }
}

/// The nearest key of the checkpoint: among the unexpected ones of the same shape, then among
/// all unexpected ones, then among all.
fn near_entry(
    key: &str,
    shape: &[usize],
    unexpected: &[&TensorEntry],
    checkpoint: &Checkpoint,
) -> Option<NearTensor> {
    let same = unexpected.iter().filter(|e| e.shape == shape);
    nearest(key, same.map(|e| e.key.as_str()))
        .or_else(|| nearest(key, unexpected.iter().map(|e| e.key.as_str())))
        .or_else(|| nearest(key, checkpoint.tensors().map(|e| e.key.as_str())))
        .and_then(|k| checkpoint.get(k))
        .map(|e| NearTensor {
            key: e.key.clone(),
            shape: e.shape.clone(),
            file: e.file_name(),
        })
}

/// The format in which this parameter holds the tensor's elements, if it is a quantised weight and
/// the tensor is not yet.
fn quantised_as(entry: &TensorEntry, param: &ParamInfo) -> Option<QuantFormat> {
    (param.kind == ParamKind::Int && param.path.ends_with(".packed"))
        .then(|| packed_format(entry, &param.shape))?
}

/// The format in which packed lines of this shape hold the elements of a float tensor.
fn packed_format(entry: &TensorEntry, packed: &[usize]) -> Option<QuantFormat> {
    let ([rows, d_in], [lines, words]) = (entry.shape.as_slice(), packed) else {
        return None;
    };
    (burn_dtype(entry.dtype)?.is_float() && rows == lines)
        .then(|| QuantFormat::of(*d_in, *words))?
}

/// Why a tensor cannot become this parameter, its shape aside.
fn unfit(entry: &TensorEntry, param: &ParamInfo) -> Option<String> {
    let Some(dtype) = burn_dtype(entry.dtype) else {
        return Some(format!(
            "its data type {:?} is not supported; convert it to BF16, F16 or F32",
            entry.dtype
        ));
    };
    let kind = match dtype {
        d if d.is_float() => ParamKind::Float,
        DType::Bool(_) => ParamKind::Bool,
        _ => ParamKind::Int,
    };
    (kind != param.kind).then(|| {
        format!(
            "its data type is {:?} but the parameter `{}` is of kind {:?}",
            entry.dtype, param.path, param.kind
        )
    })
}

/// Replaces parameters by tensors of the checkpoint.
struct Loader<'a> {
    stack: PathStack,
    by_path: HashMap<&'a str, &'a TensorEntry>,
    reader: TensorReader,
    options: &'a LoadOptions<'a>,
    done: u64,
    total: u64,
    cast: Vec<CastTensor>,
    error: Option<WeightsError>,
}

impl Loader<'_> {
    /// The data of the parameter being visited in the wanted type, or `None` to leave it as it is.
    fn data(&mut self, want: impl Fn(DType) -> DType) -> Option<TensorData> {
        self.data_by(|loader, entry| loader.read(entry, want))
    }

    /// The data of the parameter being visited as `read` reads it.
    fn data_by(
        &mut self,
        read: impl FnOnce(&mut Self, &TensorEntry) -> Result<TensorData>,
    ) -> Option<TensorData> {
        if self.error.is_some() {
            return None;
        }
        let entry = *self.by_path.get(self.stack.path().as_str())?;
        match read(self, entry) {
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
    fn read(&mut self, entry: &TensorEntry, want: impl Fn(DType) -> DType) -> Result<TensorData> {
        let data = self.reader.read(entry)?;
        let to = want(data.dtype());
        if to == data.dtype() {
            return Ok(data);
        }
        self.cast.push(CastTensor {
            key: entry.key.clone(),
            from: entry.dtype,
            to: format!("{to:?}"),
        });
        data.try_cast(to)
            .map_err(|e| entry.fault(format!("it cannot be cast to {to:?}: {e}")))
    }
}

/// The words of a quantised weight `[d_out, words]` from its elements `[d_out, d_in]`.
fn quantised(data: &TensorData, shape: &[usize]) -> Option<TensorData> {
    let values = data.as_slice::<f32>().ok()?;
    let ([_, d_in], [rows, words]) = (&data.shape()[..], shape) else {
        return None;
    };
    let packed = QuantFormat::of(*d_in, *words)?.quantize(values, *d_in)?;
    Some(TensorData::new(packed, [*rows, *words]))
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
        let Some(data) = self.data(|from| policy.of(from)) else {
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
        let want = |from: DType| match from {
            DType::U32 => from,
            float if float.is_float() => DType::F32,
            _ => dtype,
        };
        let shape = param.lazy_shape();
        let data = self.data_by(|loader, entry| {
            // Blocks of the same kind are taken as they are.
            if let Some(format) = packed_format(entry, &shape)
                && let Some(packed) = loader.reader.read_packed(entry, format)?
            {
                return Ok(packed);
            }
            let data = loader.read(entry, want)?;
            Ok(quantised(&data, &shape).unwrap_or(data))
        });
        let Some(data) = data else {
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
        let Some(data) = self.data(|from| from) else {
            return param;
        };
        let (device, id) = (param.lazy_device(), param.id);
        param.transform_for_load(Tensor::from_data(data, &device), id)
    }
}
