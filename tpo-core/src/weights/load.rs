//! Copying a checkpoint into a module.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData};
use regex::Regex;

use super::error::{MismatchedTensor, MissingTensor, NearTensor, Refusal, UnexpectedTensor};
use super::header::TensorEntry;
use super::key_map::{KeyMap, KeyTarget};
use super::nearest::nearest;
use super::params::{ParamInfo, ParamKind, PathStack, module_params, path_set};
use super::read::{Access, TensorReader, burn_dtype};
use super::report::{CastTensor, IgnoredTensor, LoadReport, LoadedTensor};
use super::{Checkpoint, Result, WeightsError};

/// How many problems of a kind get a nearest name; searching all would take quadratic time when
/// every name is wrong.
const NEAREST_FOR: usize = 64;

/// Data type of the float parameters after loading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum DtypePolicy {
    /// As in the file.
    #[default]
    Keep,
    /// All of this type; each cast is listed in the report.
    Cast(FloatDType),
}

/// Which keys of the checkpoint the module must account for.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum KeyScope {
    /// All of them: a key the table does not cover is unexpected.
    #[default]
    Whole,
    /// Those the table covers; keys of other parts are counted and skipped.
    Part,
    /// Those that start with one of these prefixes and that the table covers.
    Prefixes(Vec<String>),
}

/// Options of [`load_module`]. The default is strict in everything and keeps data types.
#[derive(Clone)]
pub struct LoadOptions<'a> {
    /// Whether a parameter without a tensor is an error.
    pub strict_missing: bool,
    /// Whether a tensor without a parameter is an error.
    pub strict_unexpected: bool,
    /// Whether a tensor of another shape or kind is an error; otherwise the parameter keeps its
    /// initial values.
    pub strict_mismatched: bool,
    /// Regular expressions of module paths that may be missing although `strict_missing` is set,
    /// such as `\.lora\.` to start training from weights without adapters.
    pub allow_missing: Vec<String>,
    /// Data type of float parameters.
    pub dtype: DtypePolicy,
    /// Which keys count.
    pub scope: KeyScope,
    /// How data is read.
    pub access: Access,
    /// Called after each tensor with the bytes done and in all.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        Self {
            strict_missing: true,
            strict_unexpected: true,
            strict_mismatched: true,
            allow_missing: Vec::new(),
            dtype: DtypePolicy::Keep,
            scope: KeyScope::Whole,
            access: Access::default(),
            progress: None,
        }
    }
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("strict_missing", &self.strict_missing)
            .field("strict_unexpected", &self.strict_unexpected)
            .field("strict_mismatched", &self.strict_mismatched)
            .field("allow_missing", &self.allow_missing)
            .field("dtype", &self.dtype)
            .field("scope", &self.scope)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// Copies the tensors of `checkpoint` into the parameters of `module`.
///
/// Names, shapes and kinds are all checked first. Then one tensor after the other is read and
/// becomes its parameter; there is never a second copy of more than one tensor. Parameters keep
/// their id, device, autodiff context and whether they require a gradient; parameters that were
/// not initialised yet never get their random initial values. Integer parameters take the
/// integer type of their device.
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
    let plan = Plan::new(&params, checkpoint, map, options).into_allowed(options)?;
    let total = plan.matched.iter().map(|(t, _)| t.len).sum();
    let by_path = plan
        .matched
        .iter()
        .map(|(t, p)| (p.path.as_str(), *t))
        .collect();

    let mut loader = Loader {
        stack: PathStack::default(),
        by_path,
        reader: TensorReader::new(options.access, checkpoint.tensors()),
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
    let mut out = plan.report;
    out.cast = loader.cast;
    out.loaded = plan
        .matched
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
        tensors = out.loaded.len(),
        bytes = total,
        cast = out.cast.len(),
        "weights loaded"
    );
    Ok((module, out))
}

/// Everything that would keep `checkpoint` from being loaded into parameters like these.
pub fn differences(
    params: &[ParamInfo],
    checkpoint: &Checkpoint,
    map: &dyn KeyMap,
    options: &LoadOptions<'_>,
) -> Refusal {
    let report = Plan::new(params, checkpoint, map, options).report;
    Refusal {
        checkpoint: report.checkpoint,
        missing: report.missing,
        unexpected: report.unexpected,
        mismatched: report.mismatched,
        other_parts: false,
    }
}

/// What would be loaded, and everything that does not fit.
struct Plan<'a> {
    matched: Vec<(&'a TensorEntry, &'a ParamInfo)>,
    report: LoadReport,
    uncovered: usize,
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
        let mut plan = Plan {
            matched: Vec::new(),
            report: LoadReport {
                checkpoint: checkpoint.path().to_path_buf(),
                ..LoadReport::default()
            },
            uncovered: 0,
        };
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        let mut unexpected: Vec<&TensorEntry> = Vec::new();
        for entry in checkpoint.tensors() {
            if let KeyScope::Prefixes(prefixes) = &options.scope
                && !prefixes.iter().any(|p| entry.key.starts_with(p.as_str()))
            {
                plan.report.other_parts += 1;
                continue;
            }
            let path = match map.module_path(&entry.key) {
                KeyTarget::Path(path) => path,
                KeyTarget::Ignored(reason) => {
                    plan.report.ignored.push(IgnoredTensor {
                        key: entry.key.clone(),
                        reason,
                    });
                    continue;
                }
                KeyTarget::OtherPart if options.scope == KeyScope::Whole => {
                    plan.uncovered += 1;
                    unexpected.push(entry);
                    continue;
                }
                KeyTarget::OtherPart => {
                    plan.report.other_parts += 1;
                    continue;
                }
            };
            let Some(param) = by_path.get(path.as_str()) else {
                unexpected.push(entry);
                continue;
            };
            let why = match taken.insert(&param.path, &entry.key) {
                Some(first) => Some(format!(
                    "it leads to the parameter `{path}`, and so does `{first}`; remove one of them"
                )),
                None => unfit(entry, param),
            };
            if why.is_some() || entry.shape != param.shape {
                plan.report.mismatched.push(MismatchedTensor {
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
        let missing: Vec<&ParamInfo> = params
            .iter()
            .filter(|p| !taken.contains_key(p.path.as_str()))
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
        self.report.missing = missing
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
        self.report.unexpected = unexpected
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

    /// Turns what is not allowed into an error.
    fn into_allowed(self, options: &LoadOptions<'_>) -> Result<Self> {
        let allowed = options
            .allow_missing
            .iter()
            .map(|pattern| {
                Regex::new(pattern).map_err(|e| WeightsError::Pattern {
                    pattern: pattern.clone(),
                    why: e.to_string(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let forbidden = |m: &MissingTensor| {
            options.strict_missing && !allowed.iter().any(|r| r.is_match(&m.path))
        };
        let report = &self.report;
        let refused = report.missing.iter().any(forbidden)
            || (options.strict_unexpected && !report.unexpected.is_empty())
            || (options.strict_mismatched && !report.mismatched.is_empty());
        if !refused {
            return Ok(self);
        }
        Err(WeightsError::Refused(Box::new(Refusal {
            checkpoint: report.checkpoint.clone(),
            missing: report
                .missing
                .iter()
                .filter(|m| forbidden(m))
                .cloned()
                .collect(),
            other_parts: self.uncovered > 0 && self.uncovered == report.unexpected.len(),
            unexpected: self.report.unexpected,
            mismatched: self.report.mismatched,
        })))
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
    reader: TensorReader<'a>,
    options: &'a LoadOptions<'a>,
    done: u64,
    total: u64,
    cast: Vec<CastTensor>,
    error: Option<WeightsError>,
}

impl<'a> Loader<'a> {
    /// The entry of the parameter being visited, or `None` to leave it as it is.
    fn entry(&self) -> Option<&'a TensorEntry> {
        if self.error.is_some() {
            return None;
        }
        self.by_path.get(self.stack.path().as_str()).copied()
    }

    /// Reads the tensor in the wanted type, recording a cast and the progress.
    fn data(&mut self, entry: &TensorEntry, want: impl Fn(DType) -> DType) -> Option<TensorData> {
        let result = self.try_data(entry, want);
        match result {
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

    fn try_data(
        &mut self,
        entry: &TensorEntry,
        want: impl Fn(DType) -> DType,
    ) -> Result<TensorData> {
        let fail = |why: String| entry.fault(why);
        let from = burn_dtype(entry.dtype)
            .ok_or_else(|| fail(format!("data type {:?} is not supported", entry.dtype)))?;
        let bytes = self.reader.read(entry)?;
        let data = TensorData::try_from_bytes(bytes, entry.shape.clone(), from)
            .map_err(|e| fail(e.to_string()))?;
        let to = want(from);
        if to == from {
            return Ok(data);
        }
        self.cast.push(CastTensor {
            key: entry.key.clone(),
            from: entry.dtype,
            to: format!("{to:?}"),
        });
        data.try_cast(to)
            .map_err(|e| fail(format!("it cannot be cast to {to:?}: {e}")))
    }
}

/// The integer type tensors of a device have.
fn int_dtype(device: &Device) -> DType {
    device.settings().int_dtype.into()
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(entry) = self.entry() else {
            return param;
        };
        let policy = self.options.dtype;
        let want = |from| match policy {
            DtypePolicy::Keep => from,
            DtypePolicy::Cast(to) => to.into(),
        };
        let Some(data) = self.data(entry, want) else {
            return param;
        };
        // The parameter's own device, so that its autodiff context survives.
        let (device, dtype, id) = (param.lazy_device(), data.dtype(), param.id);
        let tensor = Tensor::from_data(data, (&device, dtype));
        param.transform_for_load(tensor, id)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(entry) = self.entry() else {
            return param;
        };
        let device = param.lazy_device();
        let dtype = int_dtype(&device);
        let Some(data) = self.data(entry, |_| dtype) else {
            return param;
        };
        let id = param.id;
        let tensor = Tensor::from_data(data, (&device, dtype));
        param.transform_for_load(tensor, id)
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let Some(entry) = self.entry() else {
            return param;
        };
        let Some(data) = self.data(entry, |from| from) else {
            return param;
        };
        let (device, id) = (param.lazy_device(), param.id);
        let tensor = Tensor::from_data(data, &device);
        param.transform_for_load(tensor, id)
    }
}
