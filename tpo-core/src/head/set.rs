//! A statically composed set of heads.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;

use super::{HeadContext, HeadMetric, HeadSpec, LossTerms, Prediction, TaskHead};
use crate::error::{CoreError, Result};

/// Targets of a batch, by head. Each head's own type goes in and comes out checked.
#[derive(Default)]
pub struct TargetSet {
    by_head: HashMap<String, Box<dyn Any + Send>>,
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
        self.by_head
            .get(name)
            .map(|t| {
                t.downcast_ref::<Vec<T>>()
                    .map(Vec::as_slice)
                    .ok_or_else(|| CoreError::Task {
                        name: name.into(),
                        why: format!(
                            "its targets must be of type Vec<{}>",
                            std::any::type_name::<T>()
                        ),
                        known: self.names().collect::<Vec<_>>().join(", "),
                    })
            })
            .transpose()
    }
}

impl Debug for TargetSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_head.keys()).finish()
    }
}

/// What an evaluation finds out about a head on one batch.
#[derive(Debug, Clone)]
pub struct HeadScore {
    /// Name of the head.
    pub head: String,
    /// Its loss terms.
    pub losses: LossTerms,
    /// Its metrics.
    pub metrics: Vec<HeadMetric>,
    /// Task tokens they are about.
    pub count: usize,
}

/// Heads of a model. Built with [`heads!`](crate::heads), never implemented by hand.
pub trait HeadSet: Module + ModuleDisplay + 'static {
    /// Specs in order.
    fn specs(&self) -> Vec<HeadSpec>;

    /// Loss of the head called `name` on task embeddings `[n, d_llm]`, or `None` when the set
    /// holds no such head or no target was given for it.
    fn loss(
        &self,
        name: &str,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<LossTerms>>;

    /// Loss and metrics of the head called `name`, on the conditions of [`HeadSet::loss`].
    fn evaluate(
        &self,
        name: &str,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<HeadScore>>;

    /// Predictions of the head called `name`, or `None` when the set holds no such head.
    fn predict(
        &self,
        name: &str,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<Option<Vec<Arc<dyn Prediction>>>>;

    /// Embeds boxes `[n, 4]` of a question with the first head that can.
    fn encode_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>>;
}

/// The end of a set.
#[derive(Module, Debug, Default)]
pub struct NoHeads {
    #[module(skip)]
    end: (),
}

/// A head and the heads after it.
#[derive(Module, Debug)]
pub struct HeadNode<H, R> {
    /// This head.
    pub head: H,
    /// The others.
    pub rest: R,
}

impl HeadSet for NoHeads {
    fn specs(&self) -> Vec<HeadSpec> {
        Vec::new()
    }
    fn loss(
        &self,
        _: &str,
        _: Tensor<2>,
        _: &TargetSet,
        _: &HeadContext<'_>,
    ) -> Result<Option<LossTerms>> {
        Ok(None)
    }
    fn evaluate(
        &self,
        _: &str,
        _: Tensor<2>,
        _: &TargetSet,
        _: &HeadContext<'_>,
    ) -> Result<Option<HeadScore>> {
        Ok(None)
    }
    fn predict(
        &self,
        _: &str,
        _: Tensor<2>,
        _: &HeadContext<'_>,
    ) -> Result<Option<Vec<Arc<dyn Prediction>>>> {
        Ok(None)
    }
    fn encode_boxes(&self, _: Tensor<2>) -> Option<Tensor<2>> {
        None
    }
}

/// The targets of a head, one per task token; `None` if none were set.
fn targets_of<'t, H: TaskHead>(
    name: &str,
    task: &Tensor<2>,
    targets: &'t TargetSet,
) -> Result<Option<&'t [H::Target]>> {
    let Some(targets) = targets.get::<H::Target>(name)? else {
        return Ok(None);
    };
    let tokens = task.dims()[0];
    if tokens != targets.len() {
        return Err(CoreError::SlotCount {
            what: format!("targets of head `{name}`"),
            slots: tokens,
            found: targets.len(),
        });
    }
    Ok(Some(targets))
}

impl<H: TaskHead + Debug, R: HeadSet + Debug> HeadSet for HeadNode<H, R> {
    fn specs(&self) -> Vec<HeadSpec> {
        let mut specs = vec![self.head.spec()];
        specs.extend(self.rest.specs());
        specs
    }

    fn loss(
        &self,
        name: &str,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<LossTerms>> {
        if self.head.spec().name != name {
            return self.rest.loss(name, task, targets, context);
        }
        let Some(targets) = targets_of::<H>(name, &task, targets)? else {
            return Ok(None);
        };
        let output = self.head.forward(task, context)?;
        self.head.loss(&output, targets, context).map(Some)
    }

    fn evaluate(
        &self,
        name: &str,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<HeadScore>> {
        if self.head.spec().name != name {
            return self.rest.evaluate(name, task, targets, context);
        }
        let Some(targets) = targets_of::<H>(name, &task, targets)? else {
            return Ok(None);
        };
        let output = self.head.forward(task, context)?;
        Ok(Some(HeadScore {
            head: name.into(),
            losses: self.head.loss(&output, targets, context)?,
            metrics: self.head.metrics(output, targets, context)?,
            count: targets.len(),
        }))
    }

    fn predict(
        &self,
        name: &str,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<Option<Vec<Arc<dyn Prediction>>>> {
        if self.head.spec().name != name {
            return self.rest.predict(name, task, context);
        }
        let output = self.head.forward(task, context)?;
        let predictions = self.head.decode(output, context)?;
        Ok(Some(
            predictions
                .into_iter()
                .map(|p| Arc::new(p) as Arc<dyn Prediction>)
                .collect(),
        ))
    }

    fn encode_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>> {
        self.head
            .encode_boxes(boxes.clone())
            .or_else(|| self.rest.encode_boxes(boxes))
    }
}
