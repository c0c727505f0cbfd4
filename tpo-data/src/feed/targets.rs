//! From annotations to the target type of each head, without knowing the heads.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;

use tpo_core::geometry::BoxXyxy;
use tpo_core::head::TargetSet;

use super::truth::Truth;
use crate::DataError;

/// A target of one task token, of the type its head wants.
pub type AnyTarget = Box<dyn Any + Send>;

type Make = Box<dyn Fn(&Truth) -> Result<AnyTarget, DataError> + Send + Sync>;
type Gather = Box<dyn Fn(TargetSet, &str, Vec<AnyTarget>) -> TargetSet + Send + Sync>;

/// What turns annotations into targets, by task.
///
/// ```
/// use tpo_core::geometry::BoxXyxy;
/// use tpo_data::feed::{Targets, TruthTarget};
/// use tpo_data::DataError;
///
/// let targets = Targets::new()
///     .with("region", |truth| truth.to_box())
///     .with("count", |truth| match &truth.target {
///         TruthTarget::Value(v) => v.as_f64().map(|n| n as f32),
///         _ => None,
///     }.ok_or_else(|| DataError::Prepare { reason: "a count is a number".into() }));
/// # let _ = targets;
/// ```
#[derive(Default)]
pub struct Targets {
    makers: BTreeMap<String, (Make, Gather)>,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.makers.keys()).finish()
    }
}

impl Targets {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The region head of this project: boxes.
    pub fn region() -> Self {
        Self::new().with::<BoxXyxy>("region", Truth::to_box)
    }

    /// Adds what makes targets of type `T` for `task`; an error of `make` costs that row.
    pub fn with<T: Send + 'static>(
        mut self,
        task: impl Into<String>,
        make: impl Fn(&Truth) -> Result<T, DataError> + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Box::new(move |truth| Ok(Box::new(make(truth)?)));
        let gather: Gather = Box::new(|set, task, targets| {
            let typed: Vec<T> = targets
                .into_iter()
                .filter_map(|t| t.downcast::<T>().ok().map(|t| *t))
                .collect();
            set.with(task, typed)
        });
        self.makers.insert(task.into(), (make, gather));
        self
    }

    /// The target of one annotation.
    ///
    /// # Errors
    /// [`DataError::Prepare`] for a task without a maker, and what the maker says.
    pub fn make(&self, truth: &Truth) -> Result<AnyTarget, DataError> {
        let (make, _) = self
            .makers
            .get(&truth.task)
            .ok_or_else(|| DataError::Prepare {
                reason: format!(
                    "nothing makes targets for task `{}`; add it with Targets::with",
                    truth.task
                ),
            })?;
        make(truth)
    }

    /// Joins the targets of a batch, each task's in the order of its tokens.
    pub fn gather(&self, by_task: BTreeMap<String, Vec<AnyTarget>>) -> TargetSet {
        let mut set = TargetSet::new();
        for (task, targets) in by_task {
            if let Some((_, gather)) = self.makers.get(&task) {
                set = gather(set, &task, targets);
            }
        }
        set
    }
}
