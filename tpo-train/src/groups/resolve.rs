//! Looking groups up in a module.

use std::collections::HashMap;

use burn::module::{Module, ParamId};
use tpo_core::weights::{ParamKind, module_params};

use super::{ParamGroupSpec, ResolvedGroup, ResolvedGroups, ResolvedParam};
use crate::error::{GroupProblem, Result, TrainError};
use crate::pattern::PathPattern;

/// How many patterns an error offers instead of one that matches nothing.
const OFFERED: usize = 3;

/// Assigns every floating-point parameter of `module` to one of the groups or to the frozen rest.
///
/// Only paths, identities and shapes are read: no parameter is initialised. Integer and boolean
/// parameters cannot learn and are not listed. Buffers that Burn keeps as floating-point
/// parameters (running statistics of batch norm) are listed like any other; leave them out of the
/// patterns.
///
/// # Errors
/// [`TrainError::Groups`] with every problem: a pattern that is malformed, matches nothing or
/// excludes nothing, a parameter in two groups, a group that is empty or given twice, a parameter
/// at two paths that are treated differently.
pub fn resolve<M: Module>(module: &M, specs: &[ParamGroupSpec]) -> Result<ResolvedGroups> {
    resolve_params(float_params(module), specs)
}

/// [`resolve`] on a list of parameters in place of a module; one entry per path.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_params(
    found: Vec<ResolvedParam>,
    specs: &[ParamGroupSpec],
) -> Result<ResolvedGroups> {
    let paths: Vec<Vec<&str>> = found.iter().map(|p| p.path.split('.').collect()).collect();
    let mut problems = Vec::new();

    // owners[i]: the groups that match parameter i.
    let mut owners: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
    for (g, spec) in specs.iter().enumerate() {
        if specs[..g].iter().any(|s| s.name == spec.name) {
            problems.push(GroupProblem::DuplicateName {
                group: spec.name.clone(),
            });
        }
        for i in members(spec, &paths, &mut problems) {
            owners[i].push(g);
        }
    }
    problems.extend(overlaps(specs, &found, &owners));

    let mut groups: Vec<ResolvedGroup> = specs
        .iter()
        .map(|spec| ResolvedGroup {
            name: spec.name.clone(),
            learning_rate: spec.learning_rate,
            weight_decay: spec.weight_decay,
            muon: spec.muon,
            params: Vec::new(),
        })
        .collect();
    let mut frozen: Vec<ResolvedParam> = Vec::new();
    // Where each parameter went: its group and its place there.
    let mut seen: HashMap<ParamId, (Option<usize>, usize)> = HashMap::new();
    for (param, owners) in found.into_iter().zip(owners) {
        let owner = owners.first().copied();
        if let Some(&(first_owner, place)) = seen.get(&param.id) {
            let list = first_owner.map_or(&mut frozen, |g| &mut groups[g].params);
            if first_owner != owner {
                let name = |g: Option<usize>| g.map(|g| specs[g].name.clone());
                problems.push(GroupProblem::Tied {
                    path: list[place].path.clone(),
                    group: name(first_owner),
                    tied: param.path.clone(),
                    tied_group: name(owner),
                });
            }
            list[place].tied.push(param.path);
            continue;
        }
        let list = owner.map_or(&mut frozen, |g| &mut groups[g].params);
        seen.insert(param.id, (owner, list.len()));
        list.push(param);
    }

    if problems.is_empty() {
        Ok(ResolvedGroups { groups, frozen })
    } else {
        Err(TrainError::Groups { problems })
    }
}

/// Indices of the parameters that the patterns of `spec` select.
fn members(
    spec: &ParamGroupSpec,
    paths: &[Vec<&str>],
    problems: &mut Vec<GroupProblem>,
) -> Vec<usize> {
    let before = problems.len();
    let mut patterns = Vec::new();
    for text in &spec.patterns {
        match PathPattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => problems.push(GroupProblem::InvalidPattern {
                group: spec.name.clone(),
                pattern: text.clone(),
                why,
            }),
        }
    }
    let (excluding, including): (Vec<_>, Vec<_>) =
        patterns.into_iter().partition(PathPattern::is_exclusion);

    let mut selected = vec![false; paths.len()];
    for pattern in &including {
        let mut matched = false;
        for (path, selected) in paths.iter().zip(&mut selected) {
            if pattern.matches_segments(path) {
                matched = true;
                *selected = true;
            }
        }
        if !matched {
            let (group, pattern_text) = (spec.name.clone(), pattern.to_string());
            let of_adapters = pattern_text.split('.').any(|segment| segment == "lora");
            let adapted = paths.iter().any(|path| path.contains(&"lora"));
            problems.push(if of_adapters && !adapted {
                GroupProblem::NoAdapters {
                    group,
                    pattern: pattern_text,
                }
            } else {
                GroupProblem::Unmatched {
                    group,
                    pattern: pattern_text,
                    nearest: pattern.nearest(paths, OFFERED),
                }
            });
        }
    }
    let included = selected.clone();
    for pattern in &excluding {
        let mut useful = false;
        for (i, path) in paths.iter().enumerate() {
            if included[i] && pattern.matches_segments(path) {
                useful = true;
                selected[i] = false;
            }
        }
        if !useful {
            problems.push(GroupProblem::UselessExclusion {
                group: spec.name.clone(),
                pattern: pattern.to_string(),
            });
        }
    }
    let members: Vec<usize> = (0..paths.len()).filter(|&i| selected[i]).collect();
    if members.is_empty() && problems.len() == before {
        problems.push(GroupProblem::Empty {
            group: spec.name.clone(),
        });
    }
    members
}

/// One problem per pair of groups that share parameters.
fn overlaps(
    specs: &[ParamGroupSpec],
    found: &[ResolvedParam],
    owners: &[Vec<usize>],
) -> Vec<GroupProblem> {
    let mut pairs: Vec<((usize, usize), Vec<String>)> = Vec::new();
    for (param, owners) in found.iter().zip(owners) {
        for (k, &second) in owners.iter().enumerate() {
            for &first in &owners[..k] {
                let path = param.path.clone();
                match pairs.iter_mut().find(|(pair, _)| *pair == (first, second)) {
                    Some((_, paths)) => paths.push(path),
                    None => pairs.push(((first, second), vec![path])),
                }
            }
        }
    }
    pairs
        .into_iter()
        .map(|((first, second), paths)| GroupProblem::Overlap {
            first: specs[first].name.clone(),
            second: specs[second].name.clone(),
            paths,
        })
        .collect()
}

/// The floating-point parameters of a module in the order of its fields, one entry per path.
/// Nothing is initialised.
pub(crate) fn float_params<M: Module>(module: &M) -> Vec<ResolvedParam> {
    module_params(module)
        .into_iter()
        .filter(|p| p.kind == ParamKind::Float)
        .map(|p| ResolvedParam {
            path: p.path,
            id: p.id,
            shape: p.shape,
            tied: Vec::new(),
        })
        .collect()
}
