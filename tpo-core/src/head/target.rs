//! Targets of a batch, by head, each of its head's own type.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;

use super::HeadSet;
use crate::error::{CoreError, Result};
use crate::truth::Truth;

/// A `Vec` of any type.
trait AnyVec: Any + Send {
    /// Adds the members of `other`; `false` when it is of another type.
    fn append(&mut self, other: Box<dyn AnyVec>) -> bool;
}

impl<T: Send + 'static> AnyVec for Vec<T> {
    fn append(&mut self, other: Box<dyn AnyVec>) -> bool {
        let other: Box<dyn Any> = other;
        match other.downcast::<Self>() {
            Ok(mut other) => {
                Vec::append(self, &mut other);
                true
            }
            Err(_) => false,
        }
    }
}

/// Targets of a batch, by head. Each head's own type goes in and comes out checked.
#[derive(Default)]
pub struct TargetSet {
    by_head: HashMap<String, Box<dyn AnyVec>>,
}

impl TargetSet {
    /// No targets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the targets of the head called `name`, one per task token in row-major order over
    /// the batch.
    pub fn with<T: Send + 'static>(mut self, name: impl Into<String>, targets: Vec<T>) -> Self {
        self.by_head.insert(name.into(), Box::new(targets));
        self
    }

    /// Adds the targets of the next row of the batch after those that are there.
    ///
    /// # Errors
    /// [`CoreError::Task`] when a head's are of another type than before.
    pub fn append(&mut self, other: Self) -> Result<()> {
        for (name, targets) in other.by_head {
            let joined = match self.by_head.get_mut(&name) {
                Some(own) => own.append(targets),
                None => self.by_head.insert(name.clone(), targets).is_none(),
            };
            if !joined {
                return Err(self.of_other_type(&name, "one type in all rows".into()));
            }
        }
        Ok(())
    }

    /// Drops the targets of the heads that `keep` refuses, so that those heads are not run.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.by_head.retain(|name, _| keep(name));
    }

    /// Names of the heads that have targets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_head.keys().map(String::as_str)
    }

    /// The targets of a head; `None` if none were set.
    ///
    /// # Errors
    /// [`CoreError::Task`] when they are not of type `T`.
    pub fn get<T: 'static>(&self, name: &str) -> Result<Option<&[T]>> {
        let Some(targets) = self.by_head.get(name) else {
            return Ok(None);
        };
        let any: &dyn Any = &**targets;
        match any.downcast_ref::<Vec<T>>() {
            Some(targets) => Ok(Some(targets)),
            None => {
                let expected = format!("type Vec<{}>", std::any::type_name::<T>());
                Err(self.of_other_type(name, expected))
            }
        }
    }

    fn of_other_type(&self, name: &str, expected: String) -> CoreError {
        CoreError::Task {
            name: name.into(),
            why: format!("its targets must be of {expected}"),
            known: self.names().collect::<Vec<_>>().join(", "),
        }
    }
}

impl Debug for TargetSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_head.keys()).finish()
    }
}

/// Makes the targets of annotations on the threads that read data. Every [`HeadSet`] does.
pub trait TargetMaker: Send + Sync {
    /// Adds the target of `truth` after those of its head in `targets`.
    ///
    /// # Errors
    /// [`CoreError::Task`] for a task without a head; as [`TaskHead::target`](super::TaskHead::target).
    fn add_target(&self, truth: &Truth, targets: &mut TargetSet) -> Result<()>;
}

impl<H: HeadSet> TargetMaker for H {
    fn add_target(&self, truth: &Truth, targets: &mut TargetSet) -> Result<()> {
        let Some(head) = self.head(&truth.task) else {
            let known: Vec<String> = H::specs().into_iter().map(|s| s.name).collect();
            return Err(CoreError::Task {
                name: truth.task.clone(),
                why: "no head learns it".into(),
                known: known.join(", "),
            });
        };
        targets.append(head.make_target(truth)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined_in_order_and_types_are_checked() {
        let mut set = TargetSet::new().with("a", vec![1.0f32]);
        set.append(
            TargetSet::new()
                .with("a", vec![2.0f32])
                .with("b", vec![3u8]),
        )
        .unwrap();
        assert_eq!(set.get::<f32>("a").unwrap().unwrap(), [1.0, 2.0]);
        assert_eq!(set.get::<u8>("b").unwrap().unwrap(), [3]);
        assert!(set.get::<u8>("a").is_err());
        assert!(set.append(TargetSet::new().with("a", vec![1u8])).is_err());
        set.retain(|name| name == "b");
        assert!(set.get::<f32>("a").unwrap().is_none());
    }
}
