//! What each stage changes, and what gets gradients.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device};
use tpo::train::{Precision, Recipe, Stage, StageLength, TrainOptions, Trainer, train_plan};

use super::tiny::*;

fn device() -> Device {
    Device::flex()
}

/// Parameters of a stage that no loss of these batches can reach: parts that the reference keeps
/// and does not use.
fn unreached(path: &str) -> bool {
    [
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        // The text branch of the Q-Former.
        ".intermediate.",
        ".output.dense.",
        ".output.layer_norm.",
        "heads.region.encoder.",
    ]
    .iter()
    .any(|part| path.contains(part))
}

/// The paper's stages as far as they are about the region head, which these batches call.
fn region_stages() -> Vec<Stage> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/videochat_tpo");
    let of = |file: &str| Recipe::open::<&str>(folder.join(file), &[]).unwrap().stages;
    let files = ["stage1.toml", "stage2.toml", "stage3.toml"];
    let mut stages: Vec<Stage> = files.into_iter().flat_map(of).collect();
    let other = |name: &str| name.starts_with("temporal") || name.starts_with("mask");
    stages.retain(|stage| !other(&stage.name));
    for stage in &mut stages {
        stage.groups.retain(|group| !other(&group.name));
    }
    stages
}

#[test]
fn each_stage_changes_exactly_the_parts_it_names() {
    let _lock = alone();
    let config = config(0.0);
    let mut stages = region_stages();
    let mut before = model(&config);
    assert_eq!(stages.len(), 4);
    for stage in &mut stages {
        stage.length = StageLength::Steps(2);
        stage.accumulation = 1;
        stage.precision = Precision::F32;
        // A run of two steps has rates that are large enough to see.
        for group in &mut stage.groups {
            group.learning_rate = 1e-2;
        }
        let groups = stage.resolve(&before).unwrap();
        let named: BTreeSet<String> = groups.trainable().map(|p| p.path.clone()).collect();
        let mut data = data(&config, 2);
        let old = bits(&before);
        let mut trainer =
            Trainer::new(before, stage.clone(), &data, TrainOptions::new(&device())).unwrap();
        trainer.run(&mut data, &mut ()).unwrap();
        before = trainer.into_model().unwrap();
        let new = bits(&before);
        let changed: BTreeSet<String> = old
            .iter()
            .filter(|(path, bits)| new[*path] != **bits)
            .map(|(path, _)| path.clone())
            .collect();
        let outside: Vec<_> = changed.difference(&named).collect();
        assert!(outside.is_empty(), "`{}` moved {outside:?}", stage.name);
        let still: Vec<_> = named
            .difference(&changed)
            .filter(|p| !unreached(p))
            .collect();
        assert!(still.is_empty(), "`{}` left {still:?}", stage.name);
    }
}

/// Paths that got a gradient in one step with only the region head's loss.
fn reached(patterns: &[&str], language: f64) -> BTreeSet<String> {
    let config = config(0.0);
    let mut stage = stage(patterns, 1, 1);
    stage.loss.language = language;
    let mut data = data(&config, 2);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    let report = trainer.step(&mut data).unwrap();
    if language == 0.0 {
        let names: Vec<&str> = report.terms.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["region/l1", "region/giou"]);
    }
    let state = trainer.state(&data).optimizer;
    // Non-zero gradients: a first moment that is not zero.
    state
        .tensors
        .iter()
        .filter(|(_, t)| t.to_data().iter::<f32>().any(|m| m != 0.0))
        .filter_map(|(name, _)| name.strip_suffix(".exp_avg").map(String::from))
        .collect()
}

#[test]
fn a_heads_loss_reaches_token_adapters_connector_and_encoder() {
    let _lock = alone();
    let reached = reached(&EVERYTHING, 0.0);
    for path in [
        "task_tokens.region",
        "heads.region.decoder.output.weight",
        "llm.model.layers.0.self_attn.q_proj.lora.b",
        "llm.model.layers.1.mlp.down_proj.lora.b",
        "connector.project_up.weight",
        "connector.qformer.query_tokens",
        "vision.encoder.blocks.0.attn.qkv.weight",
        "vision.encoder.patch_embed.proj.weight",
    ] {
        assert!(reached.contains(path), "{path}; reached: {reached:?}");
    }
    // The output layer is not between the head and the encoder.
    assert!(!reached.iter().any(|p| p.starts_with("llm.lm_head")));
}

#[test]
fn stages_one_and_two_reach_exactly_their_parts() {
    let _lock = alone();
    // At the start `B` is not zero here, so `A` has a gradient too.
    let first = reached(&["llm.**.lora.*"], 1.0);
    assert!(first.iter().all(|p| p.contains(".lora.")), "{first:?}");
    assert_eq!(first.len(), 2 * (2 * 7 + 1));
    let second = reached(
        &["llm.**.lora.*", "heads.region.**", "task_tokens.region"],
        1.0,
    );
    let more: Vec<&str> = second.difference(&first).map(String::as_str).collect();
    assert_eq!(
        more,
        [
            "heads.region.decoder.input.bias",
            "heads.region.decoder.input.weight",
            "heads.region.decoder.output.bias",
            "heads.region.decoder.output.weight",
            "task_tokens.region",
        ]
    );
}

#[test]
fn a_head_without_weight_is_not_run() {
    let _lock = alone();
    let config = config(0.0);
    let mut stage = stage(&["llm.**.lora.*"], 1, 1);
    stage.loss.other_heads = 0.0;
    let mut data = data(&config, 2);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    let report = trainer.step(&mut data).unwrap();
    let names: Vec<&str> = report.terms.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["lm"]);
    assert!((report.loss - report.terms[0].value).abs() < 1e-6);
    assert_eq!(report.tasks["region"], 2);
}

#[test]
fn a_plan_goes_through_its_stages() {
    let _lock = alone();
    let config = config(0.0);
    let mut first = stage(&["llm.**.lora.*"], 2, 1);
    first.name = "one".into();
    let mut second = stage(&["heads.region.**"], 2, 1);
    second.name = "two".into();
    let stages = [first, second];
    let mut seeds = Vec::new();
    let mut options = TrainOptions::new(&device());
    options.seed = 5;
    let (model, _) = train_plan(
        model(&config),
        &stages,
        None,
        options,
        &mut |stage, index, seed| {
            seeds.push((stage.name.clone(), index, seed));
            Ok(Box::new(data(&config, 1)))
        },
        &mut (),
    )
    .unwrap();
    assert_eq!(seeds, [("one".into(), 0, 5), ("two".into(), 1, 6)]);
    let start = bits(&super::tiny::model(&config));
    let end = bits(&model);
    let moved = |path: &str| start[path] != end[path];
    assert!(moved("llm.model.layers.0.self_attn.q_proj.lora.b"));
    assert!(moved("heads.region.decoder.output.weight"));
    assert!(!moved("task_tokens.region"));
}

#[test]
fn half_precision_keeps_wide_masters() {
    let _lock = alone();
    let config = config(0.0);
    let mut stage = stage(&EVERYTHING, 4, 1);
    stage.precision = Precision::Bf16;
    stage.groups[0].learning_rate = 1e-5;
    let mut data = data(&config, 2);
    let mut trainer =
        Trainer::new(model(&config), stage, &data, TrainOptions::new(&device())).unwrap();
    for _ in 0..4 {
        let report = trainer.step(&mut data).unwrap();
        assert!(report.loss.is_finite());
    }
    let weight = trainer.model().unwrap().heads.region.clone().valid();
    let decoder = weight.decoder.output.weight.val();
    assert_eq!(decoder.dtype(), DType::BF16);
    // Steps of 1e-5 are lost in bf16 and kept in the master.
    let state = trainer.state(&data).optimizer;
    let path = "heads.region.decoder.output.weight.master";
    let (_, master) = state.tensors.iter().find(|(n, _)| n == path).unwrap();
    let master: Vec<f32> = master.to_data().iter::<f32>().collect();
    let start = model(&config).heads.region.decoder.output.weight.val();
    let start: Vec<f32> = start.into_data().iter::<f32>().collect();
    assert!(master.iter().zip(&start).all(|(m, s)| m != s));
    assert!(master.iter().zip(&start).all(|(m, s)| (m - s).abs() < 5e-5));
}
