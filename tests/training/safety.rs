//! Runs that must stop, curves that must repeat, memory that must stay.

use burn::module::Module;
use burn::tensor::Device;
use tpo::train::{Stage, TrainData, TrainError, TrainOptions, TrainState, Trainer};

use super::generated::GeneratedData;
use super::tiny::*;

fn device() -> Device {
    Device::flex()
}

#[test]
fn not_a_number_stops_and_names_the_samples() {
    let _lock = alone();
    let config = config(0.0);
    let broken = config.clone();
    // The fifth micro-batch has a frame of infinities.
    let mut data = GeneratedData::new(8, move |index, device: &Device| {
        let mut batch = batch(&broken, index * 2, 2, device);
        if index == 4 {
            for visual in &mut batch.batch.visuals {
                visual.pixels = visual.pixels.clone().mul_scalar(f32::INFINITY);
            }
        }
        Ok(batch)
    });
    let stage = stage(&EVERYTHING, 6, 2);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    trainer.step(&mut data).unwrap();
    trainer.step(&mut data).unwrap();
    let good = bits(&trainer.model().unwrap().valid());
    let state = trainer.state(&data);
    let error = trainer.step(&mut data).unwrap_err();
    let TrainError::NotFinite {
        step,
        samples,
        what,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((*step, what.as_str()), (3, "loss `lm`"));
    assert_eq!(*samples, ["row-8", "row-9"]);
    assert!(error.to_string().contains("row-8, row-9"), "{error}");
    assert!(good == bits(&trainer.model().unwrap().valid()));
    assert_eq!(state.optimizer, trainer.state(&data).optimizer);
}

#[test]
fn nothing_to_learn_is_an_error() {
    let _lock = alone();
    let config = config(0.0);
    let mut stage = stage(&["heads.region.**"], 2, 1);
    stage.loss.other_heads = 0.0;
    for checkpointing in [false, true] {
        let mut data = data(&config, 1);
        let mut options = TrainOptions::new(&device());
        options.gradient_checkpointing = checkpointing;
        let mut trainer = Trainer::new(model(&config), stage.clone(), &data, options).unwrap();
        let error = trainer.step(&mut data).unwrap_err();
        assert!(
            matches!(error, TrainError::NothingToLearn { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("row-0"), "{error}");
    }
}

#[test]
fn a_refused_batch_names_its_samples() {
    let _lock = alone();
    let config = config(0.0);
    let broken = config.clone();
    let mut data = GeneratedData::new(8, move |index, device: &Device| {
        let mut batch = batch(&broken, index, 1, device);
        // A slot more than there are visual embeddings.
        batch.batch.tokens.visual[0][0] = true;
        Ok(batch)
    });
    let stage = stage(&EVERYTHING, 1, 1);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    let text = trainer.step(&mut data).unwrap_err().to_string();
    assert!(
        text.contains("row-0") && text.contains("visual slots"),
        "{text}"
    );
}

/// The losses of a run of the tiny model, fixed when this test was written.
#[test]
fn golden_curve() {
    let _lock = alone();
    let golden: Vec<f64> = serde_json::from_str(include_str!("../golden/tiny_run.json")).unwrap();
    let config = config(0.0);
    let mut stage = stage(&EVERYTHING, golden.len() as u64, 2);
    stage.schedule.warmup_ratio = 0.2;
    stage.schedule.floor = 0.05;
    let mut data = GeneratedData::new(4, {
        let config = config.clone();
        move |index, device: &Device| Ok(batch(&config, index % 4 * 2, 2, device))
    });
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    let losses: Vec<f64> = golden
        .iter()
        .map(|_| trainer.step(&mut data).unwrap().loss)
        .collect();
    for (step, (found, golden)) in losses.iter().zip(&golden).enumerate() {
        assert!(
            (found - golden).abs() < 1e-4 * golden,
            "step {step}: {found}, recorded {golden}; the whole curve: {losses:?}"
        );
    }
    assert!(
        losses[golden.len() - 1] < 0.8 * losses[0],
        "it learns: {losses:?}"
    );
}

/// Resident memory in pages.
#[cfg(target_os = "linux")]
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split_whitespace().nth(1).unwrap();
    pages.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays() {
    let _lock = alone();
    let config = config(0.1);
    let mut data = data(&config, 2);
    let stage = stage(&EVERYTHING, 200, 1);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    let mut early = 0.0;
    for step in 1..=200 {
        trainer.step(&mut data).unwrap();
        if step == 20 {
            early = resident();
        }
    }
    let late = resident();
    assert!(
        late < 1.02 * early,
        "{early} pages after 20 steps, {late} after 200"
    );
}

#[test]
fn a_head_that_no_row_calls_ends_the_run() {
    let _lock = alone();
    let config = config(0.0);
    let rows = config.clone();
    // Rows with targets from the fourth on.
    let data = || {
        let rows = rows.clone();
        GeneratedData::new(8, move |index, device: &Device| {
            let mut batch = batch(&rows, index, 1, device);
            if index < 3 {
                batch.batch.targets = Default::default();
            }
            Ok(batch)
        })
    };
    let mut stage = stage(&EVERYTHING, 6, 1);
    stage.heads_must_fire_within = 3;
    let options = || TrainOptions::new(&device());
    let mut source = data();
    let mut trainer = Trainer::new(model(&config), stage.clone(), &source, options()).unwrap();
    trainer.step(&mut source).unwrap();
    let state = trainer.state(&source);
    assert_eq!(Vec::from_iter(&state.silent_heads), ["region"]);
    // Steps of before an interruption count.
    let written = serde_json::to_string(&state).unwrap();
    let mut read: TrainState = serde_json::from_str(&written).unwrap();
    read.optimizer = state.optimizer.clone();
    let weights = trainer.into_model().unwrap();
    let resume = |stage: &Stage, source: &mut (dyn TrainData + 'static)| {
        Trainer::resume(
            weights.clone(),
            stage.clone(),
            source,
            options(),
            read.clone(),
        )
        .unwrap()
    };
    let mut trainer = resume(&stage, &mut source);
    trainer.step(&mut source).unwrap();
    let error = trainer.step(&mut source).unwrap_err();
    let TrainError::SilentHeads { steps, heads, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*steps, heads.as_slice()), (3, &["region".to_string()][..]));
    // One step more, and it has fired.
    stage.heads_must_fire_within = 4;
    let mut source = data();
    let mut trainer = resume(&stage, &mut source);
    (0..5).for_each(|_| drop(trainer.step(&mut source).unwrap()));
    assert!(trainer.state(&source).silent_heads.is_empty());
}
