//! Evaluation while a run goes on.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;
use tpo::VideoChatTpo;
use tpo::core::head::{HeadContext, TaskHead};
use tpo::heads::region::BoxAccuracy;
use tpo::train::checkpoint::{CheckpointStore, Retention};
use tpo::train::observe::read_metrics;
use tpo::train::recipe::{BestSpec, CheckpointSpec, EvaluationSpec, Goal, LoggingSpec, ModelSpec};
use tpo::train::run_directory::RunDirectory;
use tpo::train::trainer::{
    Metrics, StageEvaluation, StepReport, TrainEvent, TrainState, evaluate, train_plan,
};
use tpo::train::{Hooks, LossWeights, Recipe, Stage, StageLength, TrainData, TrainOptions};

use super::tiny::*;

/// Keeps what it hears.
#[derive(Default)]
struct Notes {
    evaluations: Vec<(u64, Metrics)>,
    losses: Vec<f64>,
    states: Vec<TrainState>,
}

impl<M> Hooks<M> for &mut Notes {
    fn event(&mut self, event: &TrainEvent) -> tpo::train::Result<()> {
        match event {
            TrainEvent::StepFinished(report) => self.losses.push(report.loss),
            TrainEvent::Evaluated { step, metrics, .. } => {
                self.evaluations.push((*step, metrics.clone()));
            }
            _ => {}
        }
        Ok(())
    }

    fn checkpoint(&mut self, _: &M, state: &TrainState, _: bool) -> tpo::train::Result<()> {
        self.states.push(state.clone());
        Ok(())
    }
}

fn evaluated(mut stage: Stage, batches: Option<u64>) -> Stage {
    stage.evaluate_every = Some(StageLength::Steps(2));
    stage.evaluation = Some(EvaluationSpec {
        batches,
        batch_size: Some(2),
        data: serde_json::from_value(serde_json::json!({ "sources": [
            { "name": "held-out", "synthetic": { "tasks": ["region"], "rows": 8 } },
        ] }))
        .unwrap(),
    });
    stage
}

fn run(stage: Stage, evaluation: bool) -> (BTreeMap<String, Vec<u8>>, Notes, Vec<u64>) {
    let device = Device::flex();
    let config = config(0.2);
    let stages = [stage];
    let (mut notes, mut opened) = (Notes::default(), Vec::new());
    let mut options = TrainOptions::new(&device);
    options.seed = 9;
    let mut open =
        |_: &Stage, _: usize, _: u64| Ok(Box::new(data(&config, 1)) as Box<dyn TrainData>);
    let start = model(&config);
    let model = if evaluation {
        let held_out = |stage: &Stage, _: usize, seed| {
            opened.push(seed);
            assert_eq!(stage.batch_size, 2);
            Ok(Box::new(data(&config, stage.batch_size)) as Box<dyn TrainData>)
        };
        let evaluation = StageEvaluation::new(&stages, &device, held_out);
        let mut hooks = (evaluation, &mut notes);
        train_plan(start, &stages, None, options, &mut open, &mut hooks)
    } else {
        train_plan(start, &stages, None, options, &mut open, &mut &mut notes)
    };
    (bits(&model.unwrap().0), notes, opened)
}

#[test]
fn a_run_goes_on_as_if_it_had_not_been_evaluated() {
    let _lock = alone();
    let stage = stage(&EVERYTHING, 5, 2);
    let (plain, without, _) = run(stage.clone(), false);
    let (watched, with, opened) = run(evaluated(stage, Some(3)), true);
    assert!(plain == watched, "weights");
    assert_eq!(without.losses, with.losses);
    // Optimizer, cursor, counters.
    assert_eq!(without.states, with.states);
    assert!(without.evaluations.is_empty());
    let steps: Vec<u64> = with.evaluations.iter().map(|e| e.0).collect();
    assert_eq!(steps, [2, 4, 5], "every two steps and at the end");
    assert_eq!(opened, [0], "once, with the seed of all runs");
    for (_, metrics) in &with.evaluations {
        let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
        let expected = [
            "lm/loss",
            "lm/routing_accuracy",
            "lm/token_accuracy",
            "loss",
            "region/acc@0.5",
            "region/loss",
            "region/loss/giou",
            "region/loss/l1",
            "region/mean_iou",
        ];
        assert_eq!(names, expected);
    }
    let loss = |i: usize| with.evaluations[i].1["lm/loss"];
    assert_ne!(loss(0), loss(2), "the model learns in between");
}

/// The values against the training forward pass and the region head's own predictions.
#[test]
fn values_are_means_over_labels_and_answers() {
    let _lock = alone();
    let device = Device::flex();
    let config = config(0.2);
    let model = model(&config);
    let weights = LossWeights {
        language: 0.5,
        ..LossWeights::default()
    };
    // Batches of 1 and of 3 rows: the mean is over rows, not over batches.
    let sizes = [1usize, 3];
    let mut stream = crate::generated::GeneratedData::new(2, |i, device: &Device| {
        Ok(batch(&config, 10 * i, sizes[i as usize % 2], device))
    });
    let found = evaluate(&model, &mut stream, 2, &weights, &device, ("s", 1)).unwrap();
    stream.seek(&serde_json::json!({ "batch": 0 })).unwrap();
    let again = evaluate(&model, &mut stream, 2, &weights, &device, ("s", 1)).unwrap();
    assert_eq!(found, again, "no random number is drawn");

    let (mut lm, mut l1, mut giou) = (0.0, 0.0, 0.0);
    let mut boxes = BoxAccuracy::new(0.5);
    for (i, rows) in sizes.iter().enumerate() {
        let given = batch(&config, 10 * i as u64, *rows, &device).batch;
        let ids = given.tokens.clone();
        let output = model.forward(given, &[]).unwrap();
        let number = |t: burn::tensor::Tensor<1>| f64::from(t.into_scalar::<f32>());
        lm += number(output.lm_loss.unwrap()) * *rows as f64;
        for term in output.head_losses[0].1.terms() {
            let sum = number(term.value.clone()) * *rows as f64;
            *(if term.name == "l1" {
                &mut l1
            } else {
                &mut giou
            }) += sum;
        }
        let placeholder = config.tasks.get("region").unwrap().placeholder.id;
        let truths = batch(&config, 10 * i as u64, *rows, &device).batch.targets;
        let truths = truths
            .get::<tpo::prelude::BoxXyxy>("region")
            .unwrap()
            .unwrap();
        for (row, at) in ids.positions_of(placeholder).into_iter().enumerate() {
            let [_, s, d] = output.hidden.dims();
            let task = output
                .hidden
                .clone()
                .reshape([rows * s, d])
                .narrow(0, at, 1);
            let head = &model.heads.region;
            let context = HeadContext::default();
            let answer = head.forward(task, &context).unwrap();
            let answer = head.decode(answer, &context).unwrap();
            boxes.update(Some(&answer[0].normalised), &truths[row]);
        }
    }
    let close = |name: &str, expected: f64| {
        let value = found[name];
        assert!(
            (value - expected).abs() < 1e-5,
            "{name}: {value}, {expected}"
        );
    };
    close("lm/loss", lm / 4.0);
    close("region/loss/l1", l1 / 4.0);
    close("region/loss/giou", giou / 4.0);
    close("region/acc@0.5", boxes.accuracy().unwrap());
    close("region/mean_iou", boxes.mean_iou().unwrap());
    close("loss", 0.5 * lm / 4.0 + found["region/loss"]);
    assert!((0.0..=1.0).contains(&found["lm/token_accuracy"]));
}

/// Scores from a list in place of an evaluation.
struct Scripted(Vec<f64>);

impl<M> Hooks<M> for Scripted {
    fn evaluate(&mut self, _: &M, at: &StepReport) -> tpo::train::Result<Option<Metrics>> {
        let value = self.0[at.step as usize - 1];
        Ok(Some(BTreeMap::from([("score".to_string(), value)])))
    }
}

fn kept(goal: Goal, scores: &[f64]) -> (Vec<u64>, Option<u64>, Vec<Option<f64>>) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(0.0);
    let mut stage = stage(&["heads.region.**"], scores.len() as u64, 1);
    stage.evaluate_every = Some(StageLength::Steps(1));
    stage.checkpoint_every = Some(StageLength::Steps(4));
    let recipe = Recipe {
        name: "best".into(),
        seed: 1,
        model: ModelSpec {
            preset: Some("mini".into()),
            ..ModelSpec::default()
        },
        checkpoints: CheckpointSpec {
            keep_last: 1,
            keep_best: Some(BestSpec {
                metric: "eval/score".into(),
                goal,
            }),
            ..CheckpointSpec::default()
        },
        logging: LoggingSpec {
            tensorboard: false,
            ..LoggingSpec::default()
        },
        stages: vec![stage],
    };
    let model = model(&config);
    let keeper = RunDirectory::create(dir.path(), &recipe, &model, None, false).unwrap();
    let mut hooks = (Scripted(scores.to_vec()), keeper);
    let options = TrainOptions::new(&Device::flex());
    let mut open =
        |_: &Stage, _: usize, _: u64| Ok(Box::new(data(&config, 1)) as Box<dyn TrainData>);
    train_plan(model, &recipe.stages, None, options, &mut open, &mut hooks).unwrap();
    let store = CheckpointStore::new(dir.path().join("checkpoints"), Retention::ALL);
    let steps = store.list().unwrap().0;
    let best = store.best(goal).unwrap().map(|c| c.manifest().step);
    let logged = read_metrics(dir.path().join("metrics.jsonl")).unwrap();
    let logged = logged.iter().filter(|r| !r.values.contains_key("loss"));
    (
        steps.iter().map(|c| c.manifest().step).collect(),
        best,
        logged
            .map(|r| r.values.get("eval/score").copied())
            .collect(),
    )
}

#[test]
fn the_best_stays_beside_the_newest() {
    let _lock = alone();
    // The best comes at step 3, at which no checkpoint is due.
    let scores = [0.1, 0.5, 0.9, 0.2, 0.3, 0.4];
    let (steps, best, logged) = kept(Goal::Max, &scores);
    assert_eq!((steps, best), (vec![3, 6], Some(3)));
    assert_eq!(logged, scores.map(Some));
    let (steps, best, _) = kept(Goal::Min, &scores);
    assert_eq!((steps, best), (vec![1, 6], Some(1)));
    // A score that is none is never the best.
    let (steps, best, _) = kept(Goal::Max, &[f64::NAN, 0.5, f64::NAN, 0.4]);
    assert_eq!((steps, best), (vec![2, 4], Some(2)));
}

#[test]
fn the_model_of_an_evaluation_has_no_graph() {
    let _lock = alone();
    struct Look(bool);
    impl Hooks<VideoChatTpo> for Look {
        fn evaluate(
            &mut self,
            model: &VideoChatTpo,
            _: &StepReport,
        ) -> tpo::train::Result<Option<Metrics>> {
            self.0 = model.devices().iter().all(|d| !d.is_autodiff());
            Ok(None)
        }
    }
    let config = config(0.0);
    let stage = stage(&["heads.region.**"], 1, 1);
    let mut data = data(&config, 1);
    let options = TrainOptions::new(&Device::flex());
    let mut trainer = tpo::train::Trainer::new(model(&config), stage, &data, options).unwrap();
    let mut look = Look(false);
    trainer.run(&mut data, &mut look).unwrap();
    assert!(look.0);
}
