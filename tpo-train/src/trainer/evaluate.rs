//! Evaluation on held-out samples while a run goes on.

use std::collections::BTreeMap;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_core::model::TpoModel;
use tpo_core::threads::in_pool;
use tpo_core::traits::{Connector, LanguageModel, VisionEncoder};

use super::data::{TrainBatch, TrainData};
use super::event::{Hooks, Metrics, StepReport, TrainEvent};
use super::plan::OpenStage;
use crate::error::{Result, TrainError};
use crate::loss::LossWeights;
use crate::stage::Stage;

/// Seed of every evaluation: runs of other seeds are judged by the same samples.
const SEED: u64 = 0;

/// A mean that grows.
#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, mean: f64, count: usize) {
        self.sum += mean * count as f64;
        self.count += count as f64;
    }
}

/// Evaluates `model` on the next `batches` batches of `data`, with the true answers as input.
///
/// `model` is without autodiff, as [`Module::valid`](burn::module::Module::valid) gives it; no
/// random number is drawn. What comes out, each only if there is something to measure:
///
/// * `lm/loss`, `lm/token_accuracy`: mean over the labels; `lm/routing_accuracy`: share of the
///   routing tokens among them that the model would have emitted;
/// * `region/loss`: weighted sum of a head's terms, `region/loss/l1`: the terms, means over its
///   targets;
/// * `region/acc@0.5`: the head's own metrics, means over its answers;
/// * `loss`: the stage's weighted sum of all these losses.
///
/// Heads whose loss has no weight are not run, as in training.
///
/// # Errors
/// [`TrainError::Model`] when the model refuses a batch; what the data stream fails with.
pub fn evaluate<V, C, L, H>(
    model: &TpoModel<V, C, L, H>,
    data: &mut dyn TrainData,
    batches: u64,
    weights: &LossWeights,
    device: &Device,
    at: (&str, u64),
) -> Result<Metrics>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    let device = device.clone().inner();
    let mut means: BTreeMap<String, Mean> = BTreeMap::new();
    let mut weight_of: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..batches {
        data.see(model);
        let TrainBatch { mut batch, samples } = data.next_batch(&device)?;
        batch.targets.retain(|head| weights.head(head) != 0.0);
        let found = in_pool(|| model.evaluate(batch, &samples));
        let found = found.map_err(|source| TrainError::Model {
            stage: format!("{}, evaluation", at.0),
            step: at.1,
            samples: samples.iter().map(|s| s.id.clone()).collect(),
            source,
        })?;
        let mut add = |name: String, mean: f64, count: usize| {
            if count > 0 {
                means.entry(name).or_default().add(mean, count);
            }
        };
        let lm = found.language;
        let share = |part: f64, all: usize| part / all.max(1) as f64;
        add("lm/loss".into(), share(lm.loss_sum, lm.count), lm.count);
        let correct = share(lm.correct as f64, lm.count);
        add("lm/token_accuracy".into(), correct, lm.count);
        let calls = share(lm.calls_correct as f64, lm.calls);
        add("lm/routing_accuracy".into(), calls, lm.calls);
        for score in found.heads {
            for term in score.losses.terms() {
                let name = format!("{}/loss/{}", score.head, term.name);
                let value = f64::from(term.value.clone().into_scalar::<f32>());
                let weight = weights.term(&score.head, &term.name, term.weight);
                weight_of.insert(name.clone(), weight);
                add(name, value, score.count);
            }
            for metric in score.metrics {
                add(
                    format!("{}/{}", score.head, metric.name),
                    metric.mean,
                    metric.count,
                );
            }
        }
    }
    let mut metrics: Metrics = means
        .into_iter()
        .map(|(name, mean)| (name, mean.sum / mean.count))
        .collect();
    let mut total = None;
    let mut heads: BTreeMap<String, f64> = BTreeMap::new();
    for (name, weight) in &weight_of {
        let value = metrics[name] * weight;
        if let Some((head, _)) = name.split_once('/') {
            *heads.entry(format!("{head}/loss")).or_default() += value;
        }
        *total.get_or_insert(0.0) += value;
    }
    if let Some(loss) = metrics.get("lm/loss") {
        *total.get_or_insert(0.0) += loss * weights.language;
    }
    metrics.extend(heads);
    metrics.extend(total.map(|t| ("loss".to_string(), t)));
    Ok(metrics)
}

/// Hooks that evaluate every stage on its held-out samples ([`Stage::evaluation`]).
///
/// Join them with those that keep the run: `(StageEvaluation::new(..), keeper)`. Every evaluation
/// of a stage sees the same samples, and the run goes on as if it had not been evaluated: the
/// weights are read only, the training stream is another one, and no random number is drawn.
pub struct StageEvaluation<'a> {
    device: Device,
    stages: Vec<Stage>,
    open: Box<OpenStage<'a>>,
    current: Option<Current>,
}

struct Current {
    stage: Stage,
    data: Box<dyn TrainData>,
    start: serde_json::Value,
    batches: u64,
}

impl<'a> StageEvaluation<'a> {
    /// Evaluation of these stages on `device`. `open` gets a stage whose `data` and `batch_size`
    /// are those of its evaluation.
    pub fn new(
        stages: &[Stage],
        device: &Device,
        open: impl FnMut(&Stage, usize, u64) -> Result<Box<dyn TrainData>> + 'a,
    ) -> Self {
        Self {
            device: device.clone(),
            stages: stages.to_vec(),
            open: Box::new(open),
            current: None,
        }
    }

    fn begin(&mut self, name: &str, index: usize) -> Result<()> {
        self.current = None;
        let Some(stage) = self.stages.iter().find(|s| s.name == name) else {
            return Ok(());
        };
        let Some(spec) = &stage.evaluation else {
            return Ok(());
        };
        let stage = Stage {
            data: Some(spec.data.clone()),
            batch_size: spec.batch_size.unwrap_or(stage.batch_size),
            ..stage.clone()
        };
        let data = (self.open)(&stage, index, SEED)?;
        let pass = data.batches_per_epoch().max(1);
        self.current = Some(Current {
            start: data.cursor(),
            batches: spec.batches.unwrap_or(pass).min(pass),
            stage,
            data,
        });
        Ok(())
    }
}

impl<V, C, L, H> Hooks<TpoModel<V, C, L, H>> for StageEvaluation<'_>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    fn event(&mut self, event: &TrainEvent) -> Result<()> {
        match event {
            TrainEvent::StageStarted { stage, index, .. } => self.begin(stage, *index),
            TrainEvent::StageFinished { .. } => {
                self.current = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn evaluate(
        &mut self,
        model: &TpoModel<V, C, L, H>,
        at: &StepReport,
    ) -> Result<Option<Metrics>> {
        let Some(current) = &mut self.current else {
            return Ok(None);
        };
        current.data.seek(&current.start)?;
        evaluate(
            model,
            &mut *current.data,
            current.batches,
            &current.stage.loss,
            &self.device,
            (&at.stage, at.step),
        )
        .map(Some)
    }
}
