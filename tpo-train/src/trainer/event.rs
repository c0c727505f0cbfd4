//! What a run tells the outside, and what it asks of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::TrainState;
use crate::error::Result;

/// Names and values of an evaluation.
pub type Metrics = BTreeMap<String, f64>;

/// One loss term of a step, averaged over the micro-batches that had it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TermValue {
    /// `lm`, or head and term: `region/giou`.
    pub name: String,
    /// The value without its weight.
    pub value: f64,
    /// Its weight in the total.
    pub weight: f64,
    /// Micro-batches that had it.
    pub count: usize,
}

/// Losses of one micro-batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MicroReport {
    /// Weighted sum of the terms; `None` when it had neither labels nor targets.
    pub loss: Option<f64>,
    /// Its terms.
    pub terms: Vec<TermValue>,
}

/// What one optimizer step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Name of the stage.
    pub stage: String,
    /// Steps done in this stage, this one included: from 1.
    pub step: u64,
    /// Steps done since the start of the run.
    pub run_step: u64,
    /// Micro-batches of an epoch.
    pub batches_per_epoch: u64,
    /// Weighted sum of all terms, averaged over the micro-batches of all workers.
    pub loss: f64,
    /// The micro-batches of this worker, in order.
    pub micro_batches: Vec<MicroReport>,
    /// Every term, in the order of its first appearance.
    pub terms: Vec<TermValue>,
    /// Learning rate by group.
    pub learning_rates: Vec<(String, f64)>,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Factor of clipping, 1 when it did nothing.
    pub clip_factor: f64,
    /// Samples of all workers.
    pub samples: usize,
    /// Samples of all workers since the start of the stage.
    pub stage_samples: u64,
    /// Rows of this worker since the start of the stage that could not be used, those included that
    /// were refused when their files were read.
    #[serde(default)]
    pub skipped: u64,
    /// Samples of this worker by task; one that calls several counts for each.
    pub tasks: BTreeMap<String, usize>,
    /// Wall time of the step in seconds, reading the data included.
    pub seconds: f64,
    /// Share of it that was spent waiting for the data, in seconds.
    pub data_seconds: f64,
}

impl StepReport {
    /// Samples of all workers per second.
    pub fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.seconds.max(1e-9)
    }
}

/// Something that happened in a run, for progress bars, logs and curves.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrainEvent {
    /// A stage begins or is taken up again.
    StageStarted {
        /// Name of the stage.
        stage: String,
        /// Its place in the plan, from 0.
        index: usize,
        /// Steps already done: above 0 when the stage is taken up again.
        step: u64,
        /// Steps of the whole stage.
        total_steps: u64,
        /// Steps of an epoch, rounded up.
        steps_per_epoch: u64,
    },
    /// An optimizer step is done.
    StepFinished(StepReport),
    /// The model was evaluated.
    Evaluated {
        /// Name of the stage.
        stage: String,
        /// Steps done.
        step: u64,
        /// What came out.
        metrics: Metrics,
    },
    /// A stage came to its end.
    StageFinished {
        /// Name of the stage.
        stage: String,
        /// Steps done.
        step: u64,
        /// Rows that could not be used since the stream was opened, for people.
        skipped: Option<String>,
    },
}

/// The outside of a run: observers, evaluation, checkpoints. Every method has a default that does
/// nothing.
///
/// `M` is the model. For evaluation and checkpoints it is without autodiff, as
/// [`Module::valid`](burn::module::Module::valid) gives it.
pub trait Hooks<M> {
    /// Something happened.
    ///
    /// # Errors
    /// An error ends the run.
    fn event(&mut self, _event: &TrainEvent) -> Result<()> {
        Ok(())
    }

    /// Evaluates the model. `None` when this run has no evaluation.
    ///
    /// # Errors
    /// An error ends the run.
    fn evaluate(&mut self, _model: &M, _at: &StepReport) -> Result<Option<Metrics>> {
        Ok(None)
    }

    /// Asked after an evaluation: whether to write a checkpoint now, whatever the stage's cadence,
    /// for example because the model was never better.
    fn keep(&mut self) -> bool {
        false
    }

    /// Keeps the model and what is needed to go on; `last` at the end of a stage. A clone of the
    /// model stays as it is while the run goes on.
    ///
    /// # Errors
    /// An error ends the run.
    fn checkpoint(&mut self, _model: &M, _state: &TrainState, _last: bool) -> Result<()> {
        Ok(())
    }

    /// Asked after every step: whether to write a checkpoint and stop, for example because the
    /// user pressed Ctrl-C.
    fn stop(&mut self) -> bool {
        false
    }

    /// The stage has ended or is left after [`stop`](Self::stop): what still goes on in the
    /// background has to come to its end.
    ///
    /// # Errors
    /// An error ends the run.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<M> Hooks<M> for () {}

/// Two sets of hooks: both get every event, either may evaluate, keep or stop.
impl<M, A: Hooks<M>, B: Hooks<M>> Hooks<M> for (A, B) {
    fn event(&mut self, event: &TrainEvent) -> Result<()> {
        self.0.event(event)?;
        self.1.event(event)
    }

    fn evaluate(&mut self, model: &M, at: &StepReport) -> Result<Option<Metrics>> {
        let first = self.0.evaluate(model, at)?;
        let second = self.1.evaluate(model, at)?;
        Ok(match (first, second) {
            (Some(mut a), Some(b)) => {
                a.extend(b);
                Some(a)
            }
            (a, b) => a.or(b),
        })
    }

    fn keep(&mut self) -> bool {
        let (a, b) = (self.0.keep(), self.1.keep());
        a || b
    }

    fn checkpoint(&mut self, model: &M, state: &TrainState, last: bool) -> Result<()> {
        self.0.checkpoint(model, state, last)?;
        self.1.checkpoint(model, state, last)
    }

    fn stop(&mut self) -> bool {
        let (a, b) = (self.0.stop(), self.1.stop());
        a || b
    }

    fn finish(&mut self) -> Result<()> {
        self.0.finish()?;
        self.1.finish()
    }
}
