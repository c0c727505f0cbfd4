//! Which tensor of a checkpoint becomes which parameter, and everything that does not fit.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::DType;

use super::error::{MismatchedTensor, MissingTensor, NearTensor, Refusal, UnexpectedTensor};
use super::header::TensorEntry;
use super::key_map::{KeyMap, KeyTarget, compile};
use super::load::{KeyScope, LoadOptions};
use super::nearest::nearest;
use super::params::{ParamInfo, ParamKind, path_set};
use super::read::burn_dtype;
use super::report::{IgnoredTensor, LoadReport};
use super::{Checkpoint, Result, WeightsError};
use crate::ops::QuantFormat;

/// How many problems of a kind get a nearest name; searching all would take quadratic time when
/// every name is wrong.
const NEAREST_FOR: usize = 8;

/// The tensors of `checkpoint` that parameters like these would take, each with its parameter, and the
/// report of a load that is yet to come: what may be missing and is, and what is ignored.
///
/// # Errors
/// [`WeightsError::Refused`] as [`load_module`](super::load_module).
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
pub(super) struct Plan<'a> {
    matched: Vec<(&'a TensorEntry, &'a ParamInfo)>,
    report: LoadReport,
    problems: Refusal,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
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
    pub(super) fn into_allowed(
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
pub(super) fn packed_format(entry: &TensorEntry, packed: &[usize]) -> Option<QuantFormat> {
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
