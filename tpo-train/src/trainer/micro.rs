//! One micro-batch: losses, gradients, and the numbers for the log.

use burn::tensor::{FloatDType, Tensor};
use tpo_core::CoreError;
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::head::HeadSet;
use tpo_core::model::TpoModel;
use tpo_core::traits::{Connector, LanguageModel, VisionEncoder};

use super::data::TrainBatch;
use super::event::TermValue;
use crate::loss::LossWeights;
use crate::optim::GradientSet;

/// Name of the language model's loss in logs.
pub(super) const LANGUAGE: &str = "lm";

/// What came of a micro-batch.
pub(super) struct Micro {
    /// Weighted sum of the terms; `None` when there were none.
    pub total: Option<f64>,
    /// The terms.
    pub terms: Vec<TermValue>,
}

/// Runs the model forward and backward and adds the gradients to `grads`.
///
/// With `gradient_checkpointing` the blocks' activations are computed again in the backward pass; the seed
/// makes their dropout repeat.
pub(super) fn micro_batch<V, C, L, H>(
    model: &TpoModel<V, C, L, H>,
    batch: TrainBatch,
    weights: &LossWeights,
    checkpointing: Option<u64>,
    grads: &mut GradientSet,
) -> Result<Micro, CoreError>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    let TrainBatch { mut batch, samples } = batch;
    // What has no weight is not computed.
    if weights.language == 0.0 {
        batch.labels = None;
    }
    batch.targets.retain(|head| weights.head(head) != 0.0);
    let mut tape = checkpointing.map(|seed| Tape::new(Some(seed)));
    let output = model.forward_with(batch, &samples, tape.as_mut())?;

    let mut values: Vec<Tensor<1>> = Vec::new();
    let mut terms = Vec::new();
    let mut total: Option<Tensor<1>> = None;
    let mut add = |name: String, value: Tensor<1>, weight: f64| {
        let value = value.cast(FloatDType::F32);
        let weighted = value.clone() * weight;
        total = Some(match total.take() {
            Some(sum) => sum + weighted,
            None => weighted,
        });
        values.push(value.inner());
        terms.push(TermValue {
            name,
            value: 0.0,
            weight,
            count: 1,
        });
    };
    if let Some(loss) = output.lm_loss {
        add(LANGUAGE.into(), loss, weights.language);
    }
    for (head, losses) in &output.head_losses {
        for term in losses.terms() {
            let weight = weights.term(head, &term.name, term.weight);
            let name = format!("{head}/{}", term.name);
            add(name, term.value.clone(), weight);
        }
    }
    let Some(total) = total else {
        return Ok(Micro { total: None, terms });
    };
    if total.is_tracked() {
        match tape {
            Some(tape) => tape.backward(&total, |part| grads.add(model, part)),
            None => grads.add(model, &total.backward()),
        }
    }
    // All numbers in one read, after the work was queued.
    values.push(total.inner());
    let numbers = Tensor::cat(values, 0).into_data();
    let mut numbers = numbers.iter::<f32>().map(f64::from);
    for (term, value) in terms.iter_mut().zip(numbers.by_ref()) {
        term.value = value;
    }
    Ok(Micro {
        total: numbers.next(),
        terms,
    })
}
