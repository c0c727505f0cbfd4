//! Training traces: every loss, norm and weight of a run of the reference.

#[path = "../common/generated.rs"]
mod generated;

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;
use tpo::core::head::TaskHead;
use tpo::core::model::{TokenBatch, TpoBatch};
use tpo::core::traits::VisualInput;
use tpo::model::videochat_tpo_keys;
use tpo::train::trainer::{StepReport, TrainBatch};
use tpo::train::{
    AdamW, Decay, LrSchedule, ParamGroupSpec, Precision, Stage, StageLength, TrainOptions, Trainer,
};
use tpo::weights::{KeyMap, KeyTarget, PathStack};

use super::check::{ByPath, Report, parameters};
use super::fixture::{Failure, Fixture};
use super::llm::mask_rows;
use super::model::{boxes, model, targets};
use super::stored::{self, StoredTpo, with_stored};

/// Relative tolerances that the fixture's JSON gives in words.
const LOSS: f64 = 1e-4;
const NORM: f64 = 1e-3;
const GRADIENT: f64 = 1e-3;

/// `tpo_train_trace_*`: the whole run through the library's own trainer.
pub fn trace(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let keys = videochat_tpo_keys()?;
    let replaced = fixture
        .tensors
        .keys()
        .filter_map(|k| k.strip_prefix("w."))
        .map(|key| Ok((path_of(&keys, key)?, fixture.floats(&format!("w.{key}"))?)))
        .collect::<Result<BTreeMap<_, _>, Failure>>()?;
    let start = replace(with_stored(model(fixture, device)?, device)?, replaced);
    let before = parameters(&start);

    let schedule = schedule(&fixture.json)?;
    let stage = stage(fixture, &keys)?;
    let order: Vec<String> = schedule.concat();
    let mut data = generated::GeneratedData::new(order.len() as u64, |index, device: &Device| {
        let name = &order[index as usize % order.len()];
        batch(fixture, name, device).map_err(|e| tpo::train::TrainError::Data {
            what: format!("batch {name}"),
            source: e.to_string().into(),
        })
    });
    let mut trainer = Trainer::new(start, stage, &data, TrainOptions::new(device))?;
    decay_rule(&mut report, fixture, &keys, &trainer)?;

    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut micro = 0;
    for (step, names) in schedule.iter().enumerate() {
        let inner = trainer.model()?.valid();
        for (i, name) in names.iter().enumerate() {
            predictions(&mut report, fixture, &inner, name, micro + i, device)?;
        }
        let done = trainer.step(&mut data)?;
        losses(&mut report, fixture, &done, step, micro)?;
        micro += names.len();
        rates(&mut report, fixture, &done, step)?;

        let state = trainer.state(&data).optimizer;
        without_gradient(&mut report, fixture, &keys, step, &counts, &state.steps)?;
        counts = state.steps;
        if step == 0 {
            // First moment after one update: (1 − β₁) · clipping factor · gradient.
            for (name, moment) in &state.tensors {
                let Some(path) = name.strip_suffix(".exp_avg") else {
                    continue;
                };
                let beta = trainer.stage().adamw.beta_1;
                let scale = 1.0 / ((1.0 - beta) * done.clip_factor);
                let grad: Vec<f32> = moment
                    .to_data()
                    .iter::<f32>()
                    .map(|m| m * scale as f32)
                    .collect();
                compare(
                    &mut report,
                    fixture,
                    &keys,
                    "grad.step0.",
                    path,
                    &grad,
                    GRADIENT,
                )?;
            }
        }
        let now = parameters(&trainer.model()?.valid());
        deltas(
            &mut report,
            fixture,
            &keys,
            &format!("mid.after_step{step}."),
            2.0,
            &before,
            &now,
        )?;
    }
    let after = parameters(&trainer.into_model()?);
    deltas(
        &mut report,
        fixture,
        &keys,
        "out.final.",
        1.0,
        &before,
        &after,
    )?;
    unmoved(&mut report, fixture, &keys, &before, &after)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Whether this build has a module for every parameter that the fixture trains.
pub fn can_trace(fixture: &Fixture) -> Result<bool, Failure> {
    let keys = videochat_tpo_keys()?;
    let groups = fixture.json["parameter_groups"].as_array();
    let mut trained = groups
        .into_iter()
        .flatten()
        .flat_map(|g| names(&g["names"]));
    Ok(trained.all(|key| path_of(&keys, &key).is_ok()))
}

fn path_of(keys: &dyn KeyMap, key: &str) -> Result<String, Failure> {
    match keys.module_path(key) {
        KeyTarget::Path(path) => Ok(path),
        other => Err(format!("`{key}` is no parameter of this model: {other:?}").into()),
    }
}

/// Names of the micro-batches by step.
fn schedule(json: &Value) -> Result<Vec<Vec<String>>, Failure> {
    let steps = json["schedule"].as_array().ok_or("no schedule")?;
    let names = |step: &Value| {
        let list = step["micro_batches"].as_array().ok_or("no micro-batches")?;
        let names = list.iter().filter_map(|n| n.as_str().map(String::from));
        Ok(names.collect())
    };
    steps.iter().map(names).collect()
}

/// The stage that the fixture describes. Its groups are split in those that decay and those that
/// do not; here they are whole, and [`decay_rule`] checks that our rule splits them so.
fn stage(fixture: &Fixture, keys: &dyn KeyMap) -> Result<Stage, Failure> {
    let optimizer = &fixture.json["optimizer"];
    let number = |v: &Value, what: &str| v.as_f64().ok_or(format!("no number {what}"));
    let mut groups: Vec<ParamGroupSpec> = Vec::new();
    for group in fixture.json["parameter_groups"]
        .as_array()
        .ok_or("no groups")?
    {
        let name = group["name"].as_str().ok_or("group without name")?;
        let name = name.split('.').next().unwrap_or(name);
        let rate = number(&group["base_lr"], "base_lr")?;
        let paths = names(&group["names"])
            .iter()
            .map(|key| path_of(keys, key))
            .collect::<Result<Vec<_>, _>>()?;
        match groups.iter_mut().find(|g| g.name == name) {
            Some(group) => group.patterns.extend(paths),
            None => groups.push(ParamGroupSpec::new(name, paths, rate)),
        }
        let decay = number(&group["weight_decay"], "weight_decay")?;
        if let Some(group) = groups.iter_mut().find(|g| g.name == name) {
            group.weight_decay = Some(decay.max(group.weight_decay.unwrap_or(0.0)));
        }
    }
    let steps = schedule(&fixture.json)?;
    let betas = &optimizer["betas"];
    Ok(Stage {
        name: "trace".into(),
        length: StageLength::Steps(steps.len() as u64),
        batch_size: 1,
        accumulation: steps.first().map_or(1, Vec::len),
        weight_decay: 0.0,
        clip_norm: optimizer["clip"]["max_norm"].as_f64(),
        precision: Precision::F32,
        schedule: LrSchedule {
            decay: Decay::Cosine,
            warmup_ratio: number(&optimizer["schedule"]["warmup_ratio"], "warmup_ratio")?,
            floor: number(&optimizer["schedule"]["min_lr_ratio"], "min_lr_ratio")?,
        },
        adamw: AdamW {
            beta_1: number(&betas[0], "beta 1")?,
            beta_2: number(&betas[1], "beta 2")?,
            epsilon: number(&optimizer["eps"], "eps")?,
        },
        loss: Default::default(),
        data: None,
        evaluation: None,
        strict: false,
        evaluate_every: None,
        checkpoint_every: None,
        lora: None,
        seed: None,
        heads_must_fire_within: 0,
        groups,
    })
}

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|n| n.as_str().map(String::from)).collect()
}

/// One micro-batch under `in.NAME.`; pixels are stored in units of 1/32.
fn batch(fixture: &Fixture, name: &str, device: &Device) -> Result<TrainBatch, Failure> {
    let prefix = format!("in.{name}");
    let key = |k: &str| format!("{prefix}.{k}");
    let ids = fixture.int_rows(&key("input_ids"))?;
    let tokens = TokenBatch {
        mask: mask_rows(fixture, &key("attention_mask"))?,
        visual: mask_rows(fixture, &key("visual_idx"))?,
        ids: ids
            .iter()
            .map(|r| r.iter().map(|id| *id as u32).collect())
            .collect(),
        turns: Vec::new(),
    };
    let rows = tokens.ids.len();
    let mut batch = TpoBatch::new(tokens, device);
    for media in ["image_i8", "video_i8"] {
        if fixture.has(&key(media)) {
            let frames: Tensor<5> = fixture.tensor(&key(media), device)?;
            batch.visuals = VisualInput::clips(frames / 32.0);
        }
    }
    batch.boxes = boxes(fixture, &key("input_boxes"))?;
    batch.labels = Some(fixture.int_rows(&key("labels"))?);
    let names = super::temporal::names(&fixture.json["batches"][name]);
    let (targets, mut samples) = targets(fixture, &prefix, rows, &names, device)?;
    if fixture.has(&key("tvg.src_vid")) {
        let padded = stored::features(fixture, &prefix, device)?;
        for (sample, padded) in samples.iter_mut().zip(padded) {
            sample.features = Some(std::sync::Arc::new(padded));
        }
    }
    batch.targets = targets;
    Ok(TrainBatch { batch, samples })
}

/// Region head's raw boxes of a micro-batch, where the fixture has them.
fn predictions(
    report: &mut Report,
    fixture: &Fixture,
    model: &StoredTpo,
    name: &str,
    micro: usize,
    device: &Device,
) -> Result<(), Failure> {
    let key = format!("mid.mb{micro}.pred_boxes");
    if !fixture.has(&key) {
        return Ok(());
    }
    let device = device.clone().inner();
    let mut batch = batch(fixture, name, &device)?.batch;
    batch.targets = Default::default();
    let task = model.registry().require("region")?.placeholder.id;
    let at: Vec<i64> = batch
        .tokens
        .positions_of(task)
        .iter()
        .map(|p| *p as i64)
        .collect();
    let hidden = model.forward(batch, &[])?.hidden;
    let [b, s, d] = hidden.dims();
    let n = at.len();
    let rows = hidden
        .reshape([b * s, d])
        .select(0, Tensor::from_data(TensorData::new(at, [n]), &device));
    let raw = model.heads.region.forward(rows, &Default::default())?;
    let got = super::check::floats(raw)?;
    let expected = fixture.floats(&key)?;
    report.measure(&key, relative(&got, &expected), LOSS);
    Ok(())
}

fn relative(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let (mut diff, mut norm) = (0f64, 0f64);
    for (g, e) in got.iter().zip(expected) {
        diff += f64::from(g - e).powi(2);
        norm += f64::from(*e).powi(2);
    }
    diff.sqrt() / norm.sqrt().max(1e-12)
}

/// Every loss term that the fixture names, of every micro-batch.
fn losses(
    report: &mut Report,
    fixture: &Fixture,
    done: &StepReport,
    step: usize,
    first: usize,
) -> Result<(), Failure> {
    let stored = fixture.json["micro_losses"].as_array().ok_or("no losses")?;
    let of_step = stored.iter().filter(|m| m["step"] == step);
    for (i, (micro, expected)) in done.micro_batches.iter().zip(of_step).enumerate() {
        let close = |report: &mut Report, name: &str, got: f64, expected: &Value| {
            let expected = expected.as_f64().unwrap_or(f64::NAN);
            let error = (got - expected).abs() / expected.abs().max(1e-12);
            report.measure(&format!("step {step}.{i} {name}"), error, LOSS);
        };
        let total = micro.loss.unwrap_or(f64::NAN);
        close(report, "total", total, &expected["total"]);
        let flat = fixture.floats("out.micro_total_loss")?;
        let error = (total - f64::from(flat[first + i])).abs() / f64::from(flat[first + i]);
        report.measure("out.micro_total_loss", error, LOSS);
        let value = |name: &str| {
            let term = micro.terms.iter().find(|t| t.name == name);
            term.map(|t| t.value)
        };
        let weighted = |head: &str| -> f64 {
            let of_head = micro.terms.iter().filter(|t| t.name.starts_with(head));
            of_head.map(|t| t.value * t.weight).sum()
        };
        for (name, expected) in expected["terms"].as_object().into_iter().flatten() {
            let got = match name.as_str() {
                "boxes_valid" | "boxes_total" => continue,
                "lm" => value("lm"),
                "box_l1_mean" => value("region/l1"),
                "box_giou_term" => value("region/giou"),
                "box_loss_2l1_plus_giou_over_5" => Some(weighted("region/")),
                "tvg_0.05_weighted_sum" => Some(weighted("temporal/")),
                "sam_embed_l1_mean" => value("mask/embed_l1").or(value("mask/embedding")),
                "track_box_l1_mean" => value("mask/box_l1").or(value("mask/box")),
                other => other
                    .strip_prefix("cg.loss_")
                    .and_then(|term| value(&format!("temporal/{term}"))),
            };
            match got {
                Some(got) => close(report, name, got, expected),
                None => report.fail(
                    &format!("step {step}.{i}"),
                    format!("no term for `{name}` among {:?}", micro.terms),
                ),
            }
        }
    }
    Ok(())
}

/// Norm before clipping, factor of clipping, learning rate of every group.
fn rates(
    report: &mut Report,
    fixture: &Fixture,
    done: &StepReport,
    step: usize,
) -> Result<(), Failure> {
    let norm = f64::from(fixture.floats("out.grad_norm")?[step]);
    report.measure("out.grad_norm", (done.grad_norm - norm).abs() / norm, NORM);
    let optimizer = &fixture.json["optimizer"];
    if let Some(factor) = optimizer["clip"]["coef"][step].as_f64() {
        let error = (done.clip_factor - factor).abs() / factor;
        report.measure("clipping factor", error, NORM);
    }
    let factor = f64::from(fixture.floats("out.lr_factor")?[step]);
    let rates = optimizer["lr_per_step"][step]
        .as_object()
        .ok_or("no rates")?;
    for (group, rate) in &done.learning_rates {
        let expected = rates.get(group).and_then(Value::as_f64);
        let base = optimizer["base_lr"][group].as_f64();
        let (expected, base) = expected.zip(base).ok_or(format!("no rate of {group}"))?;
        report.measure("out.lr_factor", (rate / base - factor).abs(), 1e-6);
        report.measure("learning rate", (rate - expected).abs() / expected, 1e-9);
    }
    Ok(())
}

/// The optimizer's counters say who was skipped.
fn without_gradient(
    report: &mut Report,
    fixture: &Fixture,
    keys: &dyn KeyMap,
    step: usize,
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> Result<(), Failure> {
    // Those that never get one are listed once.
    let never = names(&fixture.json["trainable_but_never_updated"]["names"]);
    let expected: BTreeSet<String> =
        names(&fixture.json["params_without_grad_per_step"][step]["names"])
            .iter()
            .chain(&never)
            .map(|key| path_of(keys, key))
            .collect::<Result<_, _>>()?;
    let mut found = BTreeSet::new();
    for group in fixture.json["parameter_groups"]
        .as_array()
        .into_iter()
        .flatten()
    {
        for key in names(&group["names"]) {
            let path = path_of(keys, &key)?;
            if before.get(&path) == after.get(&path) {
                found.insert(path);
            }
        }
    }
    report.expect(
        &format!("step {step} without gradient"),
        found == expected,
        || {
            let more: Vec<_> = found.difference(&expected).collect();
            let fewer: Vec<_> = expected.difference(&found).collect();
            format!(
                "skipped but have one in the reference: {more:?}; moved but have none: {fewer:?}"
            )
        },
    );
    Ok(())
}

/// Our rule of decay against the reference's groups.
fn decay_rule<V, C, L, H>(
    report: &mut Report,
    fixture: &Fixture,
    keys: &dyn KeyMap,
    trainer: &Trainer<V, C, L, H>,
) -> Result<(), Failure>
where
    V: tpo::core::traits::VisionEncoder,
    C: tpo::core::traits::Connector,
    L: tpo::core::traits::LanguageModel,
    H: tpo::core::head::HeadSet,
{
    let ours: BTreeMap<&str, bool> = trainer
        .groups()
        .trainable()
        .map(|p| (p.path.as_str(), p.decays()))
        .collect();
    let mut seen = 0;
    for group in fixture.json["parameter_groups"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let decays = group["weight_decay"].as_f64().unwrap_or(0.0) > 0.0;
        for key in names(&group["names"]) {
            seen += 1;
            let path = path_of(keys, &key)?;
            report.expect(
                &format!("decay of {key}"),
                ours.get(path.as_str()) == Some(&decays),
                || {
                    format!(
                        "the reference says {decays}, here {:?}",
                        ours.get(path.as_str())
                    )
                },
            );
        }
    }
    report.expect("trainable parameters", seen == ours.len(), || {
        format!("{} here, {seen} in the reference", ours.len())
    });
    Ok(())
}

/// One tensor under `prefix`, if the fixture has it.
fn compare(
    report: &mut Report,
    fixture: &Fixture,
    keys: &dyn KeyMap,
    prefix: &str,
    path: &str,
    got: &[f32],
    tolerance: f64,
) -> Result<(), Failure> {
    let found = fixture.tensors.keys().find(|k| {
        let key = k.strip_prefix(prefix);
        key.is_some_and(|key| path_of(keys, key).is_ok_and(|p| p == path))
    });
    if let Some(key) = found {
        report.measure(key, relative(got, &fixture.floats(key)?), tolerance);
    }
    Ok(())
}

/// How far every stored parameter moved, against how far it moved in the reference.
fn deltas(
    report: &mut Report,
    fixture: &Fixture,
    keys: &dyn KeyMap,
    prefix: &str,
    slack: f64,
    before: &ByPath,
    now: &ByPath,
) -> Result<(), Failure> {
    let tolerance = &fixture.json["tolerance"];
    let default = tolerance["final_delta_default"]
        .as_f64()
        .ok_or("no tolerance")?;
    let floor = tolerance["final_abs_floor"].as_f64().unwrap_or(0.0);
    let noise = &tolerance["noise_dominated"];
    let noisy: BTreeSet<String> = names(&noise["names"]).into_iter().collect();
    let stored: Vec<String> = fixture
        .tensors
        .keys()
        .filter(|k| k.starts_with(prefix))
        .cloned()
        .collect();
    for key in stored {
        let name = &key[prefix.len()..];
        let path = path_of(keys, name)?;
        let (Some((_, start)), Some((_, got))) = (before.get(&path), now.get(&path)) else {
            report.fail(&key, format!("no parameter `{path}`"));
            continue;
        };
        let expected = fixture.floats(&key)?;
        if noisy.contains(name) {
            let group = fixture.json["parameter_groups"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|g| names(&g["names"]).iter().any(|n| n == name))
                .and_then(|g| g["name"].as_str()?.split('.').next())
                .ok_or("noisy parameter without group")?;
            let bound = noise["bound"][group].as_f64().ok_or("no bound")?;
            let moved = start.iter().zip(got).map(|(a, b)| f64::from(b - a).abs());
            report.measure(&key, moved.fold(0.0, f64::max), bound);
            continue;
        }
        let (mut diff, mut moved, mut size) = (0f64, 0f64, 0f64);
        for ((s, g), e) in start.iter().zip(got).zip(&expected) {
            let (s, g, e) = (f64::from(*s), f64::from(*g), f64::from(*e));
            diff += (g - e).powi(2);
            moved += (e - s).powi(2);
            size += e * e;
        }
        let error = (diff.sqrt() - floor * size.sqrt()).max(0.0) / moved.sqrt().max(1e-12);
        let limit = tolerance["final_delta"][name].as_f64().unwrap_or(default);
        report.measure(&key, error, limit * slack);
    }
    Ok(())
}

/// Frozen parameters, and trainable ones that nothing reached, keep every bit; their sums are the
/// reference's.
fn unmoved(
    report: &mut Report,
    fixture: &Fixture,
    keys: &dyn KeyMap,
    before: &ByPath,
    after: &ByPath,
) -> Result<(), Failure> {
    let frozen = fixture.json["frozen"].as_object().ok_or("no frozen list")?;
    let never = names(&fixture.json["trainable_but_never_updated"]["names"]);
    for (key, sums) in frozen.iter().chain(never.iter().map(|k| (k, &Value::Null))) {
        // Parts without a module in this build have no path.
        let KeyTarget::Path(path) = keys.module_path(key) else {
            continue;
        };
        let (Some((_, a)), Some((_, b))) = (before.get(&path), after.get(&path)) else {
            report.fail(key, format!("no parameter `{path}`"));
            continue;
        };
        let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        report.expect(&format!("unmoved {key}"), same, || "it moved".into());
        if let Some(sum) = sums["abs_sum_f64"].as_f64() {
            let got: f64 = b.iter().map(|v| f64::from(v.abs())).sum();
            report.measure(
                &format!("sum of {key}"),
                (got - sum).abs() / sum.max(1e-12),
                1e-9,
            );
        }
    }
    Ok(())
}

/// The module with other values at some paths.
fn replace<M: Module>(module: M, values: BTreeMap<String, Vec<f32>>) -> M {
    struct Replace {
        path: PathStack,
        values: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleMapper for Replace {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(values) = self.values.remove(&self.path.path()) else {
                return param;
            };
            param.map(|t| {
                let data = TensorData::new(values, t.shape());
                Tensor::from_data(data, &t.device()).set_require_grad(t.is_require_grad())
            })
        }
    }
    module.map(&mut Replace {
        path: PathStack::default(),
        values,
    })
}
