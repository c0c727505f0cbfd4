//! Runs that must equal each other.

use burn::module::Module;
use burn::tensor::Device;
use tpo::train::trainer::{Reduce, RunEnd, Sharded, TrainBatch, TrainState, Worker};
use tpo::train::{Hooks, OptimizerState, TrainData, TrainOptions, Trainer};

use super::tiny::*;

type Bits = std::collections::BTreeMap<String, Vec<u8>>;

fn device() -> Device {
    Device::flex()
}

/// Weights and losses after `steps` steps of `rows · accumulation` samples.
fn train(rows: usize, accumulation: usize, steps: u64, checkpointing: bool) -> (Bits, Vec<f64>) {
    let config = config(0.0);
    let mut data = data(&config, rows);
    let mut options = TrainOptions::new(&device());
    options.gradient_checkpointing = checkpointing;
    let stage = stage(&EVERYTHING, steps, accumulation);
    let mut trainer = Trainer::new(model(&config), stage, &data, options).unwrap();
    let losses = (0..steps)
        .map(|_| trainer.step(&mut data).unwrap().loss)
        .collect();
    (bits(&trainer.into_model().unwrap()), losses)
}

fn assert_close(a: &(Bits, Vec<f64>), b: &(Bits, Vec<f64>), what: &str) {
    for (a, b) in a.1.iter().zip(&b.1) {
        assert!((a - b).abs() < 1e-5 * a.abs(), "{what}: losses {a} and {b}");
    }
    // Adam divides noise by noise where a gradient is zero but for rounding: attention's key biases
    // go three steps of 2e-3 somewhere.
    let parted = |all: &Bits| -> (Bits, Bits) {
        all.clone()
            .into_iter()
            .partition(|(path, _)| path.ends_with("key.bias"))
    };
    let start = bits(&model(&config(0.0)));
    let ((noise_a, a), (noise_b, b)) = (parted(&a.0), parted(&b.0));
    assert!(!a.is_empty() && !noise_a.is_empty());
    let moved = distance(&a, &parted(&start).1).0;
    let (worst, path) = distance(&a, &b);
    assert!(worst < 2e-3 * moved, "{what}: {worst} at {path}");
    // Relative to 0.01 at least.
    let (worst, path) = distance(&noise_a, &noise_b);
    assert!(
        worst <= 2.0 * 3.0 * 2e-3 / 0.01,
        "{what}: {worst} at {path}"
    );
}

#[test]
fn accumulation_equals_the_large_batch() {
    let _lock = alone();
    let large = train(4, 1, 3, false);
    assert_close(&large, &train(2, 2, 3, false), "2 of 2");
    assert_close(&large, &train(1, 4, 3, false), "4 of 1");
}

#[test]
fn gradient_checkpointing_gives_the_same_run() {
    let _lock = alone();
    assert_close(
        &train(2, 1, 3, false),
        &train(2, 1, 3, true),
        "checkpointed",
    );
}

#[test]
fn workers_of_one_process_refuse_gradient_checkpointing() {
    let _lock = alone();
    let config = config(0.0);
    let data = data(&config, 1);
    let mut options = TrainOptions::new(&device());
    options.gradient_checkpointing = true;
    options.worker = Worker::group(2, Reduce::Host).remove(0);
    let stage = stage(&EVERYTHING, 1, 1);
    let error = Trainer::new(model(&config), stage, &data, options).unwrap_err();
    assert!(error.to_string().contains("one generator"), "{error}");
}

#[test]
fn two_shards_equal_one_device() {
    let _lock = alone();
    let one = train(2, 2, 3, false);
    let config = config(0.0);
    let threads: Vec<_> = Worker::group(2, Reduce::Host)
        .into_iter()
        .map(|worker| {
            let config = config.clone();
            std::thread::spawn(move || {
                let rank = worker.rank();
                let mut data = Sharded::new(data(&config, 2), rank, 2).unwrap();
                let mut options = TrainOptions::new(&device());
                options.worker = worker;
                let stage = stage(&EVERYTHING, 3, 1);
                let mut trainer = Trainer::new(model(&config), stage, &data, options).unwrap();
                let losses: Vec<f64> = (0..3)
                    .map(|_| {
                        let report = trainer.step(&mut data).unwrap();
                        assert_eq!(report.samples, 4);
                        report.loss
                    })
                    .collect();
                (bits(&trainer.into_model().unwrap()), losses)
            })
        })
        .collect();
    let shards: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(shards[0] == shards[1], "both workers hold the same bits");
    assert_close(&one, &shards[0], "two shards");
}

#[test]
fn a_lost_worker_is_an_error_not_a_hang() {
    let _lock = alone();
    let mut workers = Worker::group(2, Reduce::Host);
    let gone = workers.pop().unwrap();
    let config = config(0.0);
    let mut data = data(&config, 1);
    let mut options = TrainOptions::new(&device());
    options.worker = workers.pop().unwrap();
    let stage = stage(&EVERYTHING, 3, 1);
    let mut trainer = Trainer::new(model(&config), stage, &data, options).unwrap();
    let before = bits(&trainer.model().unwrap().valid());
    drop(gone);
    let text = trainer.step(&mut data).unwrap_err().to_string();
    assert!(text.starts_with("worker 0 of 2"), "{text}");
    assert!(before == bits(&trainer.model().unwrap().valid()));
}

/// Stops after some steps and keeps what it was given, as files would.
#[derive(Default)]
struct StopAt {
    at: u64,
    seen: u64,
    kept: Option<(Bits, String, OptimizerState)>,
}

impl<M: Module> Hooks<M> for StopAt {
    fn event(&mut self, event: &tpo::train::TrainEvent) -> tpo::train::Result<()> {
        if let tpo::train::TrainEvent::StepFinished(report) = event {
            self.seen = report.step;
        }
        Ok(())
    }
    fn checkpoint(&mut self, model: &M, state: &TrainState, _: bool) -> tpo::train::Result<()> {
        let json = serde_json::to_string(state).unwrap();
        self.kept = Some((bits(model), json, state.optimizer.clone()));
        Ok(())
    }
    fn stop(&mut self) -> bool {
        self.seen == self.at
    }
}

/// With dropout, and with recomputation, whose dropout must repeat.
fn resume_is_exact(checkpointing: bool) {
    let config = config(0.1);
    let stage = stage(&EVERYTHING, 6, 2);
    let options = || {
        let mut options = TrainOptions::new(&device());
        options.seed = 11;
        options.gradient_checkpointing = checkpointing;
        options
    };
    let run = |hooks: &mut StopAt| {
        let mut data = data(&config, 2);
        let mut trainer = Trainer::new(model(&config), stage.clone(), &data, options()).unwrap();
        trainer.run(&mut data, hooks).unwrap()
    };
    let mut whole = StopAt::default();
    assert_eq!(run(&mut whole), RunEnd::Finished);
    let mut half = StopAt {
        at: 3,
        ..StopAt::default()
    };
    assert_eq!(run(&mut half), RunEnd::Stopped);

    let (weights, json, optimizer) = half.kept.unwrap();
    let mut state: TrainState = serde_json::from_str(&json).unwrap();
    state.optimizer.tensors = optimizer.tensors;
    assert_eq!(state.step, 3);
    let mut data = data(&config, 2);
    let start = with_bits(model(&config), weights);
    let mut trainer = Trainer::resume(start, stage.clone(), &mut data, options(), state).unwrap();
    let mut rest = StopAt::default();
    trainer.run(&mut data, &mut rest).unwrap();
    let (a, b) = (whole.kept.unwrap(), rest.kept.unwrap());
    assert!(a.0 == b.0, "weights differ: {:?}", distance(&a.0, &b.0));
    assert_eq!(a.1, b.1);
    assert!(a.2 == b.2, "optimizer state differs");
    // The run is random: without the seeding of each step it would not repeat.
    let mut other = StopAt::default();
    let mut data = super::tiny::data(&config, 2);
    let mut options = options();
    options.seed = 12;
    let mut trainer = Trainer::new(model(&config), stage, &data, options).unwrap();
    trainer.run(&mut data, &mut other).unwrap();
    assert!(other.kept.unwrap().0 != a.0, "dropout had no effect");
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_to_the_bit() {
    let _lock = alone();
    resume_is_exact(false);
    resume_is_exact(true);
}

#[test]
fn state_of_another_run_is_refused() {
    let _lock = alone();
    let config = config(0.0);
    let mut data = data(&config, 1);
    let options = || TrainOptions::new(&device());
    let trainer = Trainer::new(model(&config), stage(&EVERYTHING, 3, 1), &data, options());
    let state = trainer.unwrap().state(&data);
    let longer = stage(&EVERYTHING, 4, 1);
    let error = Trainer::resume(model(&config), longer, &mut data, options(), state.clone());
    assert!(error.unwrap_err().to_string().contains("had 3 steps"));
    let mut elsewhere = state;
    elsewhere.cursor = serde_json::json!({ "row": 3 });
    let same = stage(&EVERYTHING, 3, 1);
    let error = Trainer::resume(model(&config), same, &mut data, options(), elsewhere);
    let error = error.unwrap_err().to_string();
    assert!(error.contains(r#"(position {"row":3})"#), "{error}");
}

#[test]
fn shards_share_one_stream() {
    let _lock = alone();
    let config = config(0.0);
    let ids = |batch: TrainBatch| batch.samples[0].id.clone();
    let mut seen = Vec::new();
    for rank in 0..3 {
        let mut shard = Sharded::new(data(&config, 1), rank, 3).unwrap();
        assert_eq!(shard.batches_per_epoch(), 2);
        for _ in 0..2 {
            seen.push(ids(shard.next_batch(&device()).unwrap()));
        }
    }
    seen.sort();
    let expected: Vec<String> = (0..6).map(|i| format!("row-{i}")).collect();
    assert_eq!(seen, expected);
    assert!(Sharded::new(data(&config, 1), 3, 3).is_err());
}

#[test]
fn device_reduction_is_refused_on_the_cpu() {
    let _lock = alone();
    let devices = vec![device(), device()];
    let threads: Vec<_> = Worker::group(2, Reduce::Devices(devices))
        .into_iter()
        .map(|worker| {
            std::thread::spawn(move || {
                let config = config(0.0);
                let mut data = data(&config, 1);
                let mut options = TrainOptions::new(&device());
                options.worker = worker;
                let stage = stage(&EVERYTHING, 1, 1);
                let mut trainer = Trainer::new(model(&config), stage, &data, options).unwrap();
                trainer.step(&mut data).unwrap_err().to_string()
            })
        })
        .collect();
    for thread in threads {
        let text = thread.join().unwrap();
        assert!(text.contains("Reduce::Host"), "{text}");
    }
}
