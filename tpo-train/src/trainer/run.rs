//! The training loop of one stage.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_core::model::TpoModel;
use tpo_core::threads::in_pool;
use tpo_core::traits::{Connector, LanguageModel, VisionEncoder};

use super::data::{TrainBatch, TrainData};
use super::event::{Hooks, MicroReport, StepReport, TermValue, TrainEvent};
use super::firing::SilentHeads;
use super::micro::micro_batch;
use super::parallel::Worker;
use super::prepare::prepare;
use super::state::{TrainState, step_seed};
use crate::error::{Result, TrainError};
use crate::groups::ResolvedGroups;
use crate::optim::{GradientSet, Optimizer};
use crate::stage::{Stage, StageLength};

/// What a run needs to know besides its stage.
#[derive(Debug)]
pub struct TrainOptions {
    /// The device that trains; autodiff is switched on by the trainer.
    pub device: Device,
    /// Seed of the stage, unless the stage has one.
    pub seed: u64,
    /// Place of the stage in the plan, from 0.
    pub stage_index: usize,
    /// Steps done in earlier stages.
    pub steps_before: u64,
    /// Forget the activations of the blocks and compute them again in the backward pass: about a
    /// third more time for a fraction of the memory.
    pub gradient_checkpointing: bool,
    /// This worker of a data-parallel run.
    pub worker: Worker,
}

impl TrainOptions {
    /// One worker on `device`, the first stage, everything else off.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            seed: 0,
            stage_index: 0,
            steps_before: 0,
            gradient_checkpointing: false,
            worker: Worker::alone(),
        }
    }
}

/// How a run of a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// The stage is done.
    Finished,
    /// The hooks asked to stop; a checkpoint was handed out.
    Stopped,
}

/// Trains a model through one stage.
///
/// Micro-batches come from a [`TrainData`]; each optimizer step averages the gradients of
/// [`Stage::accumulation`] of them (and of all workers), clips them by one norm and takes an AdamW
/// step. The loss of a micro-batch is the weighted sum of the language model's and the heads'
/// terms, each a mean over its own micro-batch, as in the reference; accumulation therefore equals
/// a large batch when every micro-batch has the same number of labels and targets.
#[derive(Debug)]
pub struct Trainer<V, C, L, H> {
    /// Absent only while a step is being taken.
    model: Option<TpoModel<V, C, L, H>>,
    stage: Stage,
    groups: ResolvedGroups,
    optimizer: Optimizer,
    options: TrainOptions,
    seed: u64,
    step: u64,
    total_steps: u64,
    batches_per_epoch: u64,
    samples: u64,
    /// Rows that could not be used before the stream was opened again.
    skipped_before: u64,
    silent: SilentHeads,
    /// Steps in a row of which nothing could be learned.
    idle: u64,
}

impl<V, C, L, H> Trainer<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Prepares `model` for `stage`: exactly the parameters of its groups learn, everything else
    /// is taken off the autodiff device. `data` tells how long an epoch is.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`] for a stage that does not validate, [`TrainError::Groups`] when
    /// its groups do not fit the model.
    pub fn new(
        model: TpoModel<V, C, L, H>,
        stage: Stage,
        data: &dyn TrainData,
        options: TrainOptions,
    ) -> Result<Self> {
        stage.validate()?;
        if options.gradient_checkpointing && options.worker.world() > 1 {
            return Err(TrainError::InvalidPlan {
                problems: vec![format!(
                    "gradient checkpointing with {} workers in one process: they draw from one generator, so \
                     dropout would not be the same when a segment is run again; turn it off, \
                     or run one worker",
                    options.worker.world()
                )],
            });
        }
        let groups = stage.resolve(&model)?;
        let silent = SilentHeads::new::<H>(&stage, &groups);
        let mut optimizer = Optimizer::new(&groups, stage.adamw, stage.clip_norm);
        let device = &options.device;
        let model = prepare(model, &groups, stage.precision, device, &mut optimizer)?;
        let batches_per_epoch = data.batches_per_epoch().max(1);
        let mut trainer = Self {
            model: Some(model),
            groups,
            optimizer,
            seed: stage.seed.unwrap_or(options.seed),
            step: 0,
            total_steps: 0,
            batches_per_epoch,
            samples: 0,
            skipped_before: 0,
            silent,
            idle: 0,
            stage,
            options,
        };
        trainer.total_steps = trainer.steps_of(trainer.stage.length);
        Ok(trainer)
    }

    /// Takes up a run where [`Trainer::state`] was taken; the model must have the weights of that
    /// moment. `data` goes to the position it had.
    ///
    /// # Errors
    /// As [`Trainer::new`]; [`TrainError::InvalidPlan`] when the state is of another stage,
    /// [`TrainError::OptimizerState`] or [`TrainError::Cursor`] when it does not fit.
    pub fn resume(
        model: TpoModel<V, C, L, H>,
        stage: Stage,
        data: &mut dyn TrainData,
        options: TrainOptions,
        state: TrainState,
    ) -> Result<Self> {
        let mut trainer = Self::new(model, stage, data, options)?;
        let mut problems = Vec::new();
        if state.stage != trainer.stage.name {
            problems.push(format!(
                "the state is of stage `{}`, the run of `{}`",
                state.stage, trainer.stage.name
            ));
        }
        if state.total_steps != trainer.total_steps {
            problems.push(format!(
                "the stage had {} steps and now has {}; length, batch size or data changed",
                state.total_steps, trainer.total_steps
            ));
        }
        if !problems.is_empty() {
            return Err(TrainError::InvalidPlan { problems });
        }
        trainer
            .optimizer
            .load_state(state.optimizer, &trainer.options.device)?;
        data.seek(&state.cursor).map_err(|e| match e {
            TrainError::Cursor { cursor, why } => TrainError::Cursor {
                cursor,
                why: format!(
                    "the data of stage `{}` are not those of the checkpoint: {why}",
                    state.stage
                ),
            },
            other => other,
        })?;
        // What is refused when files are read is counted again.
        trainer.skipped_before = state.skipped.saturating_sub(data.skipped());
        trainer.step = state.step;
        trainer.seed = state.seed;
        trainer.samples = state.samples;
        trainer.silent.0.retain(|h| state.silent_heads.contains(h));
        trainer.options.stage_index = state.stage_index;
        trainer.options.steps_before = state.run_step.saturating_sub(state.step);
        Ok(trainer)
    }

    /// Optimizer steps of a length, at least 1: epochs are rounded up to whole steps.
    pub fn steps_of(&self, length: StageLength) -> u64 {
        match length {
            StageLength::Steps(steps) => steps,
            StageLength::Epochs(epochs) => epochs
                .saturating_mul(self.batches_per_epoch)
                .div_ceil(self.stage.accumulation.max(1) as u64),
        }
        .max(1)
    }

    /// The stage.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// What learns in it.
    pub fn groups(&self) -> &ResolvedGroups {
        &self.groups
    }

    /// The model as it is being trained: what learns is on the autodiff device.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`] after a step that failed inside the optimizer.
    pub fn model(&self) -> Result<&TpoModel<V, C, L, H>> {
        self.model.as_ref().ok_or_else(lost)
    }

    /// The trained model, without autodiff.
    ///
    /// # Errors
    /// As [`Trainer::model`].
    pub fn into_model(self) -> Result<TpoModel<V, C, L, H>> {
        Ok(self.model.ok_or_else(lost)?.valid())
    }

    /// The trained model without autodiff, and the options for the next stage.
    pub(super) fn into_parts(self) -> Result<(TpoModel<V, C, L, H>, TrainOptions)> {
        let mut options = self.options;
        options.steps_before += self.step;
        Ok((self.model.ok_or_else(lost)?.valid(), options))
    }

    /// Everything besides the weights that is needed to go on.
    pub fn state(&self, data: &dyn TrainData) -> TrainState {
        TrainState {
            stage: self.stage.name.clone(),
            stage_index: self.options.stage_index,
            step: self.step,
            run_step: self.options.steps_before + self.step,
            samples: self.samples,
            skipped: self.skipped_before + data.skipped(),
            total_steps: self.total_steps,
            seed: self.seed,
            silent_heads: self.silent.0.clone(),
            cursor: data.cursor(),
            optimizer: self.optimizer.state(),
        }
    }

    /// Runs the stage to its end, or until the hooks ask to stop. Evaluation and checkpoints come
    /// as often as the stage says, and at its end.
    ///
    /// # Errors
    /// Everything that ends a run; the model then has the weights of the last whole step.
    pub fn run(
        &mut self,
        data: &mut dyn TrainData,
        hooks: &mut dyn Hooks<TpoModel<V, C, L, H>>,
    ) -> Result<RunEnd> {
        hooks.event(&TrainEvent::StageStarted {
            stage: self.stage.name.clone(),
            index: self.options.stage_index,
            step: self.step,
            total_steps: self.total_steps,
            steps_per_epoch: self.steps_of(StageLength::Epochs(1)),
        })?;
        let evaluate_every = self.stage.evaluate_every.map(|l| self.steps_of(l));
        let checkpoint_every = self.stage.checkpoint_every.map(|l| self.steps_of(l));
        while self.step < self.total_steps {
            let report = self.step(data)?;
            let step = report.step;
            hooks.event(&TrainEvent::StepFinished(report.clone()))?;
            let last = step == self.total_steps;
            let due = |every: Option<u64>| every.is_some_and(|n| step.is_multiple_of(n));
            let mut keep = false;
            if (last || due(evaluate_every))
                && let Some(metrics) = hooks.evaluate(&self.model()?.valid(), &report)?
            {
                hooks.event(&TrainEvent::Evaluated {
                    stage: self.stage.name.clone(),
                    step,
                    metrics,
                })?;
                keep = hooks.keep();
            }
            let stop = !last && hooks.stop();
            if last || stop || keep || due(checkpoint_every) {
                let state = self.state(data);
                hooks.checkpoint(&self.model()?.valid(), &state, last)?;
            }
            if stop {
                hooks.finish()?;
                return Ok(RunEnd::Stopped);
            }
        }
        hooks.finish()?;
        hooks.event(&TrainEvent::StageFinished {
            stage: self.stage.name.clone(),
            step: self.step,
            skipped: data.skipped_rows(),
        })?;
        Ok(RunEnd::Finished)
    }

    /// One optimizer step. A step whose rows reach no trainable parameter (the head that learns is
    /// not called in them) changes nothing and counts; its gradient's norm is 0.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] when a loss or the gradient's norm is infinite or not a number;
    /// the weights are then those of the step before. [`TrainError::SilentHeads`] when a head that
    /// learns had no loss within [`Stage::heads_must_fire_within`] or the stage, and
    /// [`TrainError::NothingToLearn`] when nothing learned in as many steps in a row.
    /// [`TrainError::Model`], [`TrainError::Worker`], and what the data stream fails with.
    pub fn step(&mut self, data: &mut dyn TrainData) -> Result<StepReport> {
        let start = Instant::now();
        let device = self.options.device.clone().autodiff();
        let accumulation = self.stage.accumulation.max(1);
        let rank = self.options.worker.rank();
        let mut grads = GradientSet::new();
        let mut log = StepLog::default();
        let mut failure = None;
        for micro in 0..accumulation {
            let seed = step_seed(
                self.seed,
                self.options.stage_index,
                self.step,
                micro as u64,
                rank,
            );
            // Before the data, so that nothing a stream draws depends on what happened since the
            // last step: an evaluation, or an interruption.
            device.seed(seed);
            let waiting = Instant::now();
            data.see(self.model.as_ref().ok_or_else(lost)?);
            let batch = data.next_batch(&device)?;
            log.data_seconds += waiting.elapsed().as_secs_f64();
            let ids: Vec<String> = batch.samples.iter().map(|s| s.id.clone()).collect();
            log.count(&batch);
            let checkpointing = self.options.gradient_checkpointing.then_some(seed);
            let model = self.model.as_ref().ok_or_else(lost)?;
            let weights = &self.stage.loss;
            let result = in_pool(|| micro_batch(model, batch, weights, checkpointing, &mut grads));
            let done = result.map_err(|source| TrainError::Model {
                stage: self.stage.name.clone(),
                step: self.step + 1,
                samples: ids.clone(),
                source,
            })?;
            let bad = done.terms.iter().find(|t| !t.value.is_finite());
            let bad = bad.map(|t| (format!("loss `{}`", t.name), t.value)).or(done
                .total
                .filter(|t| !t.is_finite())
                .map(|t| ("the total loss".to_string(), t)));
            if let Some((what, value)) = bad
                && failure.is_none()
            {
                failure = Some(self.not_finite(what, value, ids));
            }
            log.add(done.terms, done.total);
        }
        // All workers agree on going on before they exchange gradients.
        let mut shared = vec![
            f64::from(u8::from(failure.is_some())),
            // Not whether a loss is on the graph: with recomputation it always is.
            f64::from(u8::from(!grads.is_empty())),
            log.micro_batches.iter().filter_map(|m| m.loss).sum(),
            log.micro_batches.iter().filter_map(|m| m.loss).count() as f64,
            log.ids.len() as f64,
        ];
        shared.extend(self.silent.fired(&log.terms));
        let shared = self.options.worker.sum(shared)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if shared[0] > 0.0 {
            let what = "a loss of another worker".to_string();
            return Err(self.not_finite(what, f64::NAN, Vec::new()));
        }
        let factor = self.stage.schedule.factor(self.step, self.total_steps);
        let (mut grad_norm, mut clip_factor) = (0.0, 1.0);
        self.idle += 1;
        if shared[1] > 0.0 {
            self.idle = 0;
            grads.scale(1.0 / accumulation as f64);
            self.options.worker.average(&mut grads, &device)?;
            let model = self.model.take().ok_or_else(lost)?;
            let (model, update) = in_pool(|| self.optimizer.step(model, grads, factor))?;
            self.model = Some(model);
            (grad_norm, clip_factor) = (update.grad_norm, update.clip_factor);
            if !grad_norm.is_finite() {
                let what = "the norm of the gradients".to_string();
                return Err(self.not_finite(what, grad_norm, log.ids));
            }
        }
        self.step += 1;
        self.samples += shared[4] as u64;
        self.silent.hear(&shared[5..]);
        let total = self.total_steps;
        let within = self.stage.heads_must_fire_within;
        self.silent
            .check(&self.stage, self.step, total, self.samples)?;
        if self.idle
            >= if within == 0 {
                total
            } else {
                within.min(total)
            }
        {
            return Err(TrainError::NothingToLearn {
                stage: self.stage.name.clone(),
                step: self.step,
                steps: self.idle,
                samples: log.ids,
            });
        }
        Ok(StepReport {
            stage: self.stage.name.clone(),
            step: self.step,
            run_step: self.options.steps_before + self.step,
            batches_per_epoch: self.batches_per_epoch,
            loss: shared[2] / shared[3].max(1.0),
            micro_batches: log.micro_batches,
            terms: log.terms,
            learning_rates: self.optimizer.learning_rates(factor),
            grad_norm,
            clip_factor,
            samples: shared[4] as usize,
            stage_samples: self.samples,
            skipped: self.skipped_before + data.skipped(),
            tasks: log.tasks,
            seconds: start.elapsed().as_secs_f64(),
            data_seconds: log.data_seconds,
        })
    }

    fn not_finite(&self, what: String, value: f64, samples: Vec<String>) -> TrainError {
        TrainError::NotFinite {
            stage: self.stage.name.clone(),
            step: self.step + 1,
            what,
            value,
            samples,
        }
    }
}

fn lost() -> TrainError {
    TrainError::InvalidPlan {
        problems: vec![
            "a step failed inside the optimizer; take the run up from its last checkpoint".into(),
        ],
    }
}

/// Sums over the micro-batches of a step.
#[derive(Default)]
struct StepLog {
    ids: Vec<String>,
    tasks: BTreeMap<String, usize>,
    data_seconds: f64,
    micro_batches: Vec<MicroReport>,
    terms: Vec<TermValue>,
}

impl StepLog {
    fn count(&mut self, batch: &TrainBatch) {
        for sample in &batch.samples {
            self.ids.push(sample.id.clone());
            let calls = sample.calls.iter().map(|c| c.task.as_str());
            let mut tasks: BTreeSet<&str> = calls.chain([sample.task.as_str()]).collect();
            tasks.remove("");
            for task in tasks {
                *self.tasks.entry(task.into()).or_default() += 1;
            }
        }
    }

    /// Means over the micro-batches that had a term.
    fn add(&mut self, terms: Vec<TermValue>, loss: Option<f64>) {
        self.micro_batches.push(MicroReport {
            loss,
            terms: terms.clone(),
        });
        for term in terms {
            match self.terms.iter_mut().find(|t| t.name == term.name) {
                Some(mean) => {
                    mean.count += 1;
                    mean.value += (term.value - mean.value) / mean.count as f64;
                }
                None => self.terms.push(term),
            }
        }
    }
}
