//! What a run's directory does when the trainer tells of something.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use burn::module::Module;

use super::{RunDirectory, keeps};
use crate::checkpoint::files;
use crate::error::Result;
use crate::observe::{StageLengths, StepRecord};
use crate::recipe::Goal;
use crate::stage::StageLength;
use crate::trainer::{Hooks, StepReport, TrainEvent, TrainState};

impl<M: Module + 'static> Hooks<M> for RunDirectory {
    fn event(&mut self, event: &TrainEvent) -> Result<()> {
        match event {
            TrainEvent::StageStarted {
                stage,
                step,
                total_steps,
                steps_per_epoch,
                ..
            } => {
                let steps = *total_steps;
                let steps_per_epoch = (*steps_per_epoch).min(steps.max(1));
                let length = self.recipe.stages.iter().find(|s| s.name == *stage);
                let epochs = match length.map(|s| s.length) {
                    Some(StageLength::Epochs(n)) => n,
                    _ => steps.div_ceil(steps_per_epoch),
                };
                let lengths = StageLengths {
                    steps,
                    steps_per_epoch,
                    epochs,
                    done: *step,
                };
                self.log.stage(stage, lengths);
            }
            TrainEvent::StepFinished(report) => {
                self.writing.check()?;
                let mut record = self.record(report);
                record.values = step_values(report);
                self.log.step(&record)?;
                self.last = Some(report.clone());
            }
            TrainEvent::Evaluated { metrics, .. } => {
                let Some(report) = self.last.clone() else {
                    return Ok(());
                };
                let mut record = self.record(&report);
                for (name, value) in metrics {
                    let name = if name.starts_with("eval") {
                        name.clone()
                    } else {
                        format!("eval/{name}")
                    };
                    record.values.insert(name, *value);
                }
                self.score = None;
                if let Some(best) = &self.recipe.checkpoints.keep_best {
                    match record.values.get(&best.metric) {
                        Some(value) if value.is_finite() => {
                            self.score = Some((report.run_step, *value));
                        }
                        // In an early stage no head may answer yet.
                        _ if self.missing_in.as_ref() == Some(&report.stage)
                            || self.best.is_some()
                            || !self.recipe.is_last_evaluated(&report.stage) => {}
                        _ => self.log.line(&format!(
                            "`{}` of checkpoints.keep_best is not among what the evaluation \
                             found: {}",
                            best.metric,
                            record
                                .values
                                .iter()
                                .filter(|(_, v)| v.is_finite())
                                .map(|(n, _)| n.as_str())
                                .collect::<Vec<_>>()
                                .join(", ")
                        )),
                    }
                }
                if self.score.is_none() {
                    self.missing_in = Some(report.stage.clone());
                }
                self.log.evaluation(&record)?;
            }
            TrainEvent::StageFinished {
                stage,
                step,
                skipped,
            } => {
                self.log.finish();
                let skipped = skipped.as_ref().map_or(String::new(), |s| format!("; {s}"));
                self.log
                    .line(&format!("{stage}: {step} steps done{skipped}"));
            }
        }
        Ok(())
    }

    fn keep(&mut self) -> bool {
        let (Some(spec), Some((_, score))) = (&self.recipe.checkpoints.keep_best, self.score)
        else {
            return false;
        };
        self.best.is_none_or(|best| match spec.goal {
            Goal::Max => score > best,
            Goal::Min => score < best,
        })
    }

    fn checkpoint(&mut self, model: &M, state: &TrainState, last: bool) -> Result<()> {
        self.learn(state.stage_index, model)?;
        let better = Hooks::<M>::keep(self);
        let score = self.score.filter(|(step, _)| *step == state.run_step);
        if let Some((_, value)) = score.filter(|_| better) {
            self.best = Some(value);
        }
        let (model, state, learnt) = (model.clone(), state.clone(), self.learnt.clone());
        let (store, recipe) = (self.store.clone(), self.recipe_text.clone());
        self.writing.start(move || {
            let mut draft = store
                .begin(state.run_step, &state.stage)?
                .stage_end(last)
                .score(score.map(|(_, value)| value));
            draft.bytes(files::RECIPE, recipe.as_bytes())?;
            draft.module(files::WEIGHTS, &model, &|path| keeps(learnt.as_ref(), path))?;
            draft.json(files::STATE, &state)?;
            draft.tensors(files::OPTIMIZER, state.optimizer.sources()?)?;
            draft.commit().map(drop)
        })
    }

    fn finish(&mut self) -> Result<()> {
        self.writing.finish()
    }
}

impl RunDirectory {
    fn record(&self, report: &StepReport) -> StepRecord {
        let accumulation = report.micro_batches.len() as u64;
        let (epoch, epoch_step) = epoch_of(report.step, accumulation, report.batches_per_epoch);
        StepRecord {
            step: report.run_step,
            stage: report.stage.clone(),
            stage_step: report.step,
            epoch,
            epoch_step,
            samples: report.stage_samples,
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |d| d.as_secs_f64()),
            values: Default::default(),
        }
    }
}

/// The epoch in which a step (from 1) began, from 0, and which of its steps it was, from 1. Where
/// epochs are not whole steps, a step belongs to the epoch of its first micro-batch.
fn epoch_of(step: u64, accumulation: u64, batches_per_epoch: u64) -> (u64, u64) {
    let (accumulation, batches) = (accumulation.max(1), batches_per_epoch.max(1));
    let before = step.saturating_sub(1);
    let epoch = before * accumulation / batches;
    let first = (epoch * batches).div_ceil(accumulation);
    (epoch, before - first + 1)
}

/// Everything a step has to say, by name.
fn step_values(report: &StepReport) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::from([
        ("loss".to_string(), report.loss),
        ("grad_norm".to_string(), report.grad_norm),
        ("clip_factor".to_string(), report.clip_factor),
        (
            "samples_per_second".to_string(),
            report.samples_per_second(),
        ),
        ("seconds".to_string(), report.seconds),
        ("data_seconds".to_string(), report.data_seconds),
    ]);
    for term in &report.terms {
        values.insert(format!("loss/{}", term.name), term.value);
        // The sum of a head's terms with their weights.
        if let Some((head, _)) = term.name.split_once('/') {
            *values.entry(format!("loss/{head}")).or_default() += term.value * term.weight;
        }
    }
    for (group, rate) in &report.learning_rates {
        values.insert(format!("lr/{group}"), *rate);
    }
    if report.skipped > 0 {
        values.insert("skipped".into(), report.skipped as f64);
    }
    for (task, count) in &report.tasks {
        values.insert(format!("samples/{task}"), *count as f64);
    }
    values
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Tensor};
    use std::time::{Duration, Instant};

    use super::super::tests::RECIPE;
    use super::*;
    use crate::error::TrainError;
    use crate::optim::OptimizerState;
    use crate::recipe::Recipe;

    fn state(step: u64) -> TrainState {
        TrainState {
            stage: "a".into(),
            stage_index: 0,
            step,
            run_step: step,
            samples: 0,
            skipped: 0,
            total_steps: 10,
            seed: 1,
            silent_heads: Default::default(),
            cursor: serde_json::json!({}),
            optimizer: OptimizerState::default(),
        }
    }

    fn finished(step: u64) -> TrainEvent {
        TrainEvent::StepFinished(StepReport {
            stage: "a".into(),
            step,
            run_step: step,
            batches_per_epoch: 5,
            loss: 1.0,
            micro_batches: Vec::new(),
            terms: Vec::new(),
            learning_rates: Vec::new(),
            grad_norm: 1.0,
            clip_factor: 1.0,
            samples: 2,
            stage_samples: 2,
            skipped: 0,
            tasks: BTreeMap::new(),
            seconds: 1.0,
            data_seconds: 0.0,
        })
    }

    /// What is written is the model of the moment; what fails is told at a following step, as what it is.
    #[test]
    fn checkpoints_are_written_while_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe::read::<&str>(RECIPE, "r.toml", &[]).unwrap();
        let mut model = LinearConfig::new(2, 3).init(&Device::flex());
        let mut run = RunDirectory::create(dir.path(), &recipe, &model, None, false).unwrap();
        let weight = model.weight.val().into_data();
        run.checkpoint(&model, &state(3), false).unwrap();
        model.weight = model.weight.map(|w: Tensor<2>| w + 1.0);
        let hooks: &mut dyn Hooks<burn::nn::Linear> = &mut run;
        hooks.event(&finished(4)).unwrap();
        hooks.finish().unwrap();
        let (found, _) = run.store.newest().unwrap();
        let other = LinearConfig::new(2, 3).init(&Device::flex());
        let loaded = found.unwrap().load_module(files::WEIGHTS, other, &|_| true);
        assert_eq!(loaded.unwrap().weight.val().into_data(), weight);

        // The folder is gone, and something else has its place.
        std::fs::remove_dir_all(run.store.dir()).unwrap();
        std::fs::write(run.store.dir(), "").unwrap();
        run.checkpoint(&model, &state(5), false).unwrap();
        let hooks: &mut dyn Hooks<burn::nn::Linear> = &mut run;
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            if let Err(error) = hooks.event(&finished(6)) {
                break error;
            }
            assert!(Instant::now() < deadline);
        };
        assert!(matches!(error, TrainError::Io { .. }), "{error}");
    }

    #[test]
    fn epochs_by_hand() {
        // Ten micro-batches in steps of four: an epoch is two steps and a half.
        let found: Vec<_> = (1..=6).map(|step| epoch_of(step, 4, 10)).collect();
        assert_eq!(found, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]);
        assert_eq!(epoch_of(26, 4, 10), (10, 1));
        // A step of eight epochs.
        assert_eq!([1, 2].map(|step| epoch_of(step, 8, 1)), [(0, 1), (8, 1)]);
        let whole: Vec<_> = (1..=4).map(|step| epoch_of(step, 2, 4)).collect();
        assert_eq!(whole, [(0, 1), (0, 2), (1, 1), (1, 2)]);
    }
}
