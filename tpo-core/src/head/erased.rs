//! A head whose types are not known, as a model calls it.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::{
    Drawing, HeadContext, HeadMetric, LossTerms, Prediction, TargetSet, TaskHead, TaskOutput,
};
use crate::error::{CoreError, Result};
use crate::truth::Truth;

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

/// A [`TaskHead`] without its types. Every head is one; nobody implements it by hand.
pub trait AnyHead {
    /// The head's name.
    fn name(&self) -> &'static str;

    /// [`TaskHead::SCORED_BY_BENCHMARKS`].
    fn scored_by_benchmarks(&self) -> bool;

    /// Loss on task embeddings `[n, d_llm]`; `None` when no target was given for the head.
    fn any_loss(
        &self,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<LossTerms>>;

    /// Loss and metrics, on the conditions of [`AnyHead::any_loss`].
    fn any_score(
        &self,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<HeadScore>>;

    /// Predictions, and how they are shown.
    fn predict(
        &self,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<Vec<(Arc<dyn Prediction>, Drawing)>>;

    /// What an answer is worth against an annotation ([`TaskHead::score`]); no answer, or one of
    /// another head, is a missing one.
    fn score_answer(
        &self,
        answer: Option<&TaskOutput>,
        truth: &Truth,
    ) -> Result<Vec<(&'static str, f64)>>;

    /// The target of one annotation.
    fn make_target(&self, truth: &Truth) -> Result<TargetSet>;

    /// [`TaskHead::encode_boxes`].
    fn embed_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>>;
}

/// The targets of a head, one per task token; `None` if none were set.
fn targets_of<'t, H: TaskHead>(
    task: &Tensor<2>,
    targets: &'t TargetSet,
) -> Result<Option<&'t [H::Target]>> {
    let Some(targets) = targets.get::<H::Target>(H::NAME)? else {
        return Ok(None);
    };
    let tokens = task.dims()[0];
    if tokens != targets.len() {
        return Err(CoreError::SlotCount {
            what: format!("targets of head `{}`", H::NAME),
            slots: tokens,
            found: targets.len(),
        });
    }
    Ok(Some(targets))
}

impl<H: TaskHead> AnyHead for H {
    fn name(&self) -> &'static str {
        H::NAME
    }

    fn scored_by_benchmarks(&self) -> bool {
        H::SCORED_BY_BENCHMARKS
    }

    fn any_loss(
        &self,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<LossTerms>> {
        let Some(targets) = targets_of::<H>(&task, targets)? else {
            return Ok(None);
        };
        let output = self.forward(task, context)?;
        self.loss(&output, targets, context).map(Some)
    }

    fn any_score(
        &self,
        task: Tensor<2>,
        targets: &TargetSet,
        context: &HeadContext<'_>,
    ) -> Result<Option<HeadScore>> {
        let Some(targets) = targets_of::<H>(&task, targets)? else {
            return Ok(None);
        };
        let output = self.forward(task, context)?;
        Ok(Some(HeadScore {
            head: H::NAME.into(),
            losses: self.loss(&output, targets, context)?,
            metrics: self.metrics(output, targets, context)?,
            count: targets.len(),
        }))
    }

    fn predict(
        &self,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<Vec<(Arc<dyn Prediction>, Drawing)>> {
        let output = self.forward(task, context)?;
        let predictions = self.decode(output, context)?;
        Ok(predictions
            .into_iter()
            .map(|p| {
                let drawing = H::draw(&p);
                (Arc::new(p) as Arc<dyn Prediction>, drawing)
            })
            .collect())
    }

    fn score_answer(
        &self,
        answer: Option<&TaskOutput>,
        truth: &Truth,
    ) -> Result<Vec<(&'static str, f64)>> {
        let answer = answer.and_then(|a| a.get::<H::Prediction>());
        Ok(self.score(answer, &self.target(truth)?))
    }

    fn make_target(&self, truth: &Truth) -> Result<TargetSet> {
        Ok(TargetSet::new().with(H::NAME, vec![self.target(truth)?]))
    }

    fn embed_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>> {
        self.encode_boxes(boxes)
    }
}
