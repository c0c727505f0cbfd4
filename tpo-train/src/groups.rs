//! Parameter groups: which parameters of a module learn, and how fast.

mod resolve;
mod table;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
pub(crate) use tpo_core::weights::PathStack;

pub use resolve::{resolve, resolve_params};

use crate::check::Check;
use crate::error::{Result, TrainError};
use crate::pattern::PathPattern;
use crate::stage::Muon;
pub(crate) use resolve::float_params;
pub(crate) use table::thousands;

/// Parameters that learn with one learning rate and weight decay.
///
/// A parameter belongs to the group when one of the patterns matches its path and none of those
/// with a `!` in front does; their order is of no account. See [`PathPattern`] for the syntax.
///
/// ```toml
/// [[stages.groups]]
/// name = "vision"
/// patterns = ["vision.**", "!vision.**.pos_embed"]
/// learning_rate = 2e-5
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroupSpec {
    /// Name in logs and messages.
    pub name: String,
    /// Which parameters. Each pattern must match something.
    #[serde(deserialize_with = "crate::before::patterns")]
    pub patterns: Vec<String>,
    /// Learning rate before the schedule's factor.
    pub learning_rate: f64,
    /// Decoupled weight decay (AdamW); `None` takes the stage's. Applies to the parameters that
    /// [`ResolvedParam::decays`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Matrices of this group (exactly two axes) are moved by Muon, the rest of it by AdamW; `None`:
    /// everything by AdamW. Muon is meant for the matrices inside of a network: give embeddings and
    /// output layers a group of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<Muon>,
}

impl ParamGroupSpec {
    /// A group with the stage's weight decay.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        patterns: impl IntoIterator<Item = S>,
        learning_rate: f64,
    ) -> Self {
        Self {
            name: name.into(),
            patterns: patterns.into_iter().map(Into::into).collect(),
            learning_rate,
            weight_decay: None,
            muon: None,
        }
    }

    /// Whether the patterns name the parameter at `path`; malformed ones name nothing.
    pub fn selects(&self, path: &str) -> bool {
        let patterns = self
            .patterns
            .iter()
            .filter_map(|p| PathPattern::parse(p).ok());
        let (excluding, including): (Vec<_>, Vec<_>) =
            patterns.partition(PathPattern::is_exclusion);
        let any = |patterns: &[PathPattern]| patterns.iter().any(|p| p.matches(path));
        any(&including) && !any(&excluding)
    }

    /// Appends what is out of range; `at` is where in the plan this group is.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        if self.name.is_empty() {
            problems.push(format!("{at}.name is empty"));
        }
        if !self.patterns.iter().any(|p| !p.starts_with('!')) {
            problems.push(format!(
                "{at}.patterns: needs a pattern that is not an exclusion"
            ));
        }
        for pattern in &self.patterns {
            if let Err(why) = PathPattern::parse(pattern) {
                problems.push(format!("{at}.patterns: `{pattern}` {why}"));
            }
        }
        let mut check = Check::new(at, problems);
        let hint = " (leave a part out of all groups to freeze it)";
        check.positive("learning_rate", self.learning_rate, hint);
        check.not_negative("weight_decay", self.weight_decay.unwrap_or(0.0));
        if let Some(muon) = &self.muon {
            muon.problems(&format!("{at}.muon"), problems);
        }
    }
}

/// A floating-point parameter of a module.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedParam {
    /// Path in the module tree.
    pub path: String,
    /// Burn's identity of the parameter, to which gradients and optimizer state are attached.
    pub id: ParamId,
    /// Shape.
    pub shape: Vec<usize>,
    /// Other paths at which the module holds the same parameter.
    pub tied: Vec<String>,
}

impl ResolvedParam {
    /// Number of values.
    pub fn num_values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether weight decay applies: at least two axes and not named `bias`.
    ///
    /// The rule of the VideoChat2 trainer, on which the reference implementation rests: norms,
    /// biases (`q_bias` and the like have one axis) and activation slopes do not decay; task
    /// tokens and query tokens `[1, n, width]` do.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2 && self.path.rsplit('.').next() != Some("bias")
    }
}

/// A group with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedGroup {
    /// Name of the group.
    pub name: String,
    /// Learning rate before the schedule's factor.
    pub learning_rate: f64,
    /// Weight decay of the parameters that decay; `None` when neither group nor stage gave one.
    pub weight_decay: Option<f64>,
    /// Constants of Muon, if it moves the group's matrices.
    pub muon: Option<Muon>,
    /// The parameters, in the order of the module.
    pub params: Vec<ResolvedParam>,
}

impl ResolvedGroup {
    /// Whether Muon moves this parameter of the group; AdamW otherwise.
    pub fn moved_by_muon(&self, param: &ResolvedParam) -> bool {
        self.muon.is_some() && param.shape.len() == 2
    }

    /// Number of tensors.
    pub fn num_tensors(&self) -> usize {
        self.params.len()
    }

    /// Number of values in all tensors.
    pub fn num_parameters(&self) -> usize {
        self.params.iter().map(ResolvedParam::num_values).sum()
    }
}

/// What [`resolve`] found: every floating-point parameter of a module, in one group or frozen.
///
/// `Display` prints a table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResolvedGroups {
    /// The groups in the order given.
    pub groups: Vec<ResolvedGroup>,
    /// The parameters of no group.
    pub frozen: Vec<ResolvedParam>,
}

impl ResolvedGroups {
    /// The group of the parameter at `path`; `None` when it is frozen or does not exist.
    pub fn group_of(&self, path: &str) -> Option<&ResolvedGroup> {
        let is_it = |p: &ResolvedParam| p.path == path || p.tied.iter().any(|t| t == path);
        self.groups.iter().find(|g| g.params.iter().any(is_it))
    }

    /// Number of trainable values.
    pub fn num_trainable(&self) -> usize {
        self.groups.iter().map(ResolvedGroup::num_parameters).sum()
    }

    /// Number of frozen values.
    pub fn num_frozen(&self) -> usize {
        self.frozen.iter().map(ResolvedParam::num_values).sum()
    }

    /// The trainable parameters, group by group.
    pub fn trainable(&self) -> impl Iterator<Item = &ResolvedParam> {
        self.groups.iter().flat_map(|g| &g.params)
    }
}

/// Makes exactly the parameters of the groups require gradients; all others do not.
///
/// Identity is the path, so the groups also fit another module of the same structure, for example
/// one read from a checkpoint. Parameters that are not initialised yet stay so. Training flags
/// are left alone: dropout of a frozen part keeps its setting.
///
/// On a device without autodiff the setting takes effect with
/// [`Module::train`].
///
/// # Errors
/// [`TrainError::OtherModule`] when the paths or shapes are not those that were resolved.
pub fn freeze<M: Module>(module: M, groups: &ResolvedGroups) -> Result<M> {
    use std::collections::{HashMap, HashSet};

    let mut resolved: HashMap<&str, &[usize]> = HashMap::new();
    for param in groups.trainable().chain(&groups.frozen) {
        for path in std::iter::once(&param.path).chain(&param.tied) {
            resolved.insert(path, &param.shape);
        }
    }
    let mut unexpected = Vec::new();
    for param in float_params(&module) {
        match resolved.get(param.path.as_str()) {
            Some(shape) if **shape == param.shape => {
                resolved.remove(param.path.as_str());
            }
            _ => unexpected.push(param.path),
        }
    }
    if !(resolved.is_empty() && unexpected.is_empty()) {
        let mut missing: Vec<String> = resolved.into_keys().map(String::from).collect();
        missing.sort_unstable();
        return Err(TrainError::OtherModule {
            missing,
            unexpected,
        });
    }
    let trainable: HashSet<&str> = groups
        .trainable()
        .flat_map(|p| std::iter::once(&p.path).chain(&p.tied))
        .map(String::as_str)
        .collect();

    struct Setter<'a> {
        stack: PathStack,
        trainable: HashSet<&'a str>,
    }
    impl ModuleMapper for Setter<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.stack.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, container_type: &str) {
            self.stack.exit(container_type);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let require_grad = self.trainable.contains(self.stack.path().as_str());
            param.set_require_grad(require_grad)
        }
    }
    Ok(module.map(&mut Setter {
        stack: PathStack::default(),
        trainable,
    }))
}

#[cfg(test)]
mod tests;
