//! The temporal heads as a user meets them: names, training, hostile input.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use burn::optim::AdamWConfig;
use burn::tensor::{Device, Distribution, Tensor};
use tpo_core::geometry::TimeSpan;
use tpo_core::head::{HeadContext, Sample, TaskHead};
use tpo_core::weights::{KeyMap, KeyRules, KeyTables, KeyTarget, Manifest, module_params};
use tpo_heads::temporal::features::{TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES};
use tpo_heads::temporal::{
    SaliencyLabels, StartEndMlps, TemporalHeadConfig, TemporalPrediction, TemporalTarget,
    cg_detr_rules,
};

const D_LLM: usize = 16;
const D_VIDEO: usize = 12;

type Features = HashMap<String, Tensor<2>>;

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn features(clips: usize, tokens: usize, device: &Device) -> Features {
    HashMap::from([
        (
            TEMPORAL_VIDEO_FEATURES.into(),
            random([clips, D_VIDEO], device),
        ),
        (
            TEMPORAL_TEXT_FEATURES.into(),
            random([tokens, D_LLM], device),
        ),
    ])
}

fn samples(features: &[Features], ids: &[String]) -> Vec<Sample> {
    features
        .iter()
        .zip(ids)
        .map(|(f, id)| Sample {
            media: Some(id.clone()),
            features: Some(Arc::new(f.clone())),
            ..Sample::default()
        })
        .collect()
}

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("video {i}")).collect()
}

/// One moment, `first..=last` of `clips` clips of a second.
fn target(first: usize, last: usize, clips: usize) -> TemporalTarget {
    let mut scores = vec![0.0; clips];
    scores[first..=last].fill(1.0);
    let outside = (0..clips)
        .find(|c| !(first..=last).contains(c))
        .unwrap_or(0);
    let window = TimeSpan {
        start: first as f64,
        end: last as f64 + 1.0,
    };
    TemporalTarget::new(
        vec![window],
        SaliencyLabels {
            scores,
            positive: vec![first, last],
            negative: vec![outside, outside],
        },
    )
}

#[test]
fn every_name_and_shape_of_the_published_checkpoint() {
    let _turn = turn();
    let head = TemporalHeadConfig::videochat_tpo()
        .init(&Device::flex())
        .unwrap();
    let params: BTreeMap<String, Vec<usize>> = module_params(&head)
        .into_iter()
        .map(|p| (p.path, p.shape))
        .collect();
    let keys = KeyTables::new()
        .with(cg_detr_rules().unwrap().within("model."))
        .with(
            KeyRules::new()
                .owns(["cg_criterion."])
                .prefix("cg_criterion.", "criterion."),
        )
        .with(
            KeyRules::new()
                .owns(["temporal_embed.", "action_embed."])
                .within("start_end."),
        );
    let layout = videochat_tpo_layout();
    let mut loaded = BTreeMap::new();
    let mut cg_model = 0;
    for tensor in &layout.tensors {
        let KeyTarget::Path(path) = keys.module_path(&tensor.key) else {
            continue;
        };
        cg_model += tensor.key.starts_with("cg_model.") as usize;
        let has = |p: &str| params.contains_key(p);
        assert_eq!(
            keys.checkpoint_key(&path, &has).as_deref(),
            Some(tensor.key.as_str())
        );
        loaded.insert(path, tensor.shape.clone());
    }
    assert_eq!(cg_model, 285);
    // 285, the class weights, and two layers each of two MLPs.
    assert_eq!(loaded.len(), 285 + 1 + 8);
    assert_eq!(loaded, params);
}

fn small() -> TemporalHeadConfig {
    let mut config = TemporalHeadConfig::mini(D_LLM, D_VIDEO);
    config.model.dropout = 0.0;
    config.model.input_dropout = 0.0;
    config
}

#[test]
fn learns_thirty_two_moments_by_heart() {
    let _turn = turn();
    let started = std::time::Instant::now();
    let device = Device::flex().autodiff();
    device.seed(5);
    let mut head = small().init(&device).unwrap();
    let (n, clips) = (32, 16);
    let all: Vec<Features> = (0..n).map(|_| features(clips, 3, &device)).collect();
    let names = ids(n);
    let context = samples(&all, &names);
    let rows: Vec<usize> = (0..n).collect();
    let context = HeadContext {
        samples: &context,
        rows: &rows,
    };
    let task = random([n, D_LLM], &device);
    let spans: Vec<(usize, usize)> = (0..n)
        .map(|i| {
            let first = (i * 7) % 12;
            (first, (first + 1 + (i * 5) % 6).min(clips - 1))
        })
        .collect();
    let targets: Vec<TemporalTarget> = spans
        .iter()
        .map(|&(first, last)| target(first, last, clips))
        .collect();

    let recall = |head: &tpo_heads::temporal::TemporalHead| {
        let output = head.forward(task.clone(), &context).unwrap();
        let hits = head
            .decode(output, &context)
            .unwrap()
            .iter()
            .zip(&spans)
            .filter(|(p, (first, last))| {
                let truth = TimeSpan {
                    start: *first as f64,
                    end: *last as f64 + 1.0,
                };
                p.spans[0].span.iou(&truth) >= 0.7
            })
            .count();
        hits as f64 / n as f64
    };
    let mut optimiser = AdamWConfig::new().with_weight_decay(1e-4).init();
    let (mut first, mut reached) = (None, 0.0);
    for step in 0..600 {
        let output = head.forward(task.clone(), &context).unwrap();
        let terms = head.loss(&output, &targets, &context).unwrap();
        let loss = terms.total().unwrap();
        if first.is_none() {
            first = Some(loss.clone().into_scalar::<f32>());
        }
        let grads = burn::optim::GradientsParams::from_grads(loss.backward(), &head);
        let rate = if step < 450 { 2e-3 } else { 5e-4 };
        head = optimiser.step(rate, head, grads);
        if step % 25 == 24 {
            reached = recall(&head);
            if reached >= 0.97 {
                break;
            }
        }
    }
    assert!(reached >= 0.95, "R1@0.7 is {reached}");
    let output = head.forward(task.clone(), &context).unwrap();
    let last: f32 = head
        .loss(&output, &targets, &context)
        .unwrap()
        .total()
        .unwrap()
        .into_scalar();
    assert!(last < first.unwrap() / 2.0, "{first:?} to {last}");
    // The stored class weights are a constant.
    let weights: Vec<f32> = head
        .criterion
        .empty_weight
        .val()
        .into_data()
        .iter::<f32>()
        .collect();
    assert_eq!(weights, [1.0, 0.1]);
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// Weights are drawn from the device's generator, which every test of this process shares.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn predict(
    config: &TemporalHeadConfig,
    features: &Features,
    duration: Option<f64>,
) -> tpo_core::Result<Vec<TemporalPrediction>> {
    let device = Device::flex();
    device.seed(1);
    let head = config.init(&device).unwrap();
    let sample = [Sample {
        features: Some(Arc::new(features.clone())),
        duration,
        ..Sample::default()
    }];
    let context = HeadContext {
        samples: &sample,
        rows: &[0],
    };
    let output = head.forward(random([1, D_LLM], &device), &context)?;
    head.decode(output, &context)
}

#[test]
fn a_plain_answer() {
    let _turn = turn();
    let device = Device::flex();
    let found = predict(&small(), &features(9, 1, &device), Some(8.6)).unwrap();
    let p = &found[0];
    assert_eq!(
        (p.saliency.len(), p.duration, p.clip_seconds),
        (9, 8.6, 1.0)
    );
    assert_eq!(p.spans.len(), 10);
    assert!(p.spans.windows(2).all(|w| w[0].score >= w[1].score));
    assert!(p.spans.iter().all(|s| s.span.start <= s.span.end));
    assert!(p.highlight().unwrap() < 9);
    let json = serde_json::to_string(p).unwrap();
    assert_eq!(
        &serde_json::from_str::<TemporalPrediction>(&json).unwrap(),
        p
    );
    // Without a duration the clips are counted.
    let found = predict(&small(), &features(9, 1, &device), None).unwrap();
    assert_eq!(found[0].duration, 9.0);
    // One clip is enough.
    assert_eq!(
        predict(&small(), &features(1, 1, &device), None).unwrap()[0]
            .saliency
            .len(),
        1
    );
}

#[test]
fn nothing_in_the_foreground_is_an_empty_answer() {
    let _turn = turn();
    let mut config = small();
    config.decode.min_score = 1.1;
    let found = predict(&config, &features(4, 2, &Device::flex()), None).unwrap();
    assert!(found[0].spans.is_empty() && found[0].best().is_none());
    assert_eq!(found[0].saliency.len(), 4);
}

#[test]
fn odd_input_is_defined_or_a_typed_error() {
    let _turn = turn();
    let device = Device::flex();
    let fails = |features: &Features, duration: Option<f64>, part: &str| {
        let error = predict(&small(), features, duration)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    };
    // A video shorter than one clip, and one that is too long.
    fails(&features(0, 3, &device), None, "1 to 4096 rows");
    fails(&features(4097, 3, &device), None, "1 to 4096 rows");
    // No word, and ten thousand characters' worth of tokens: cut to the first hundred.
    assert!(predict(&small(), &features(5, 0, &device), None).is_ok());
    let long = features(5, 3000, &device);
    let mut cut = long.clone();
    let text = long[TEMPORAL_TEXT_FEATURES].clone().narrow(0, 0, 100);
    cut.insert(TEMPORAL_TEXT_FEATURES.into(), text);
    assert_eq!(
        predict(&small(), &long, None).unwrap(),
        predict(&small(), &cut, None).unwrap()
    );
    // Not a number, in either tower.
    for name in [TEMPORAL_VIDEO_FEATURES, TEMPORAL_TEXT_FEATURES] {
        let mut bad = features(5, 3, &device);
        let rows = bad[name].clone() * f32::NAN;
        bad.insert(name.into(), rows);
        fails(&bad, None, "not finite");
    }
    // Other widths, and nothing at all.
    let mut wide = features(5, 3, &device);
    wide.insert(
        TEMPORAL_VIDEO_FEATURES.into(),
        random([5, D_VIDEO + 1], &device),
    );
    fails(&wide, None, "video features");
    let mut wide = features(5, 3, &device);
    wide.insert(
        TEMPORAL_TEXT_FEATURES.into(),
        random([5, D_LLM + 1], &device),
    );
    fails(&wide, None, "text features");
    fails(&Features::new(), None, TEMPORAL_VIDEO_FEATURES);
    // A duration that is none.
    for duration in [f64::NAN, f64::INFINITY, -3.0, 0.0] {
        fails(&features(5, 3, &device), Some(duration), "duration");
    }
}

#[test]
fn endpoint_columns_are_added_unless_they_are_there() {
    let _turn = turn();
    let device = Device::flex();
    let plain = features(5, 3, &device);
    let mut with = plain.clone();
    let rows =
        tpo_heads::temporal::features::with_endpoints(plain[TEMPORAL_VIDEO_FEATURES].clone());
    with.insert(TEMPORAL_VIDEO_FEATURES.into(), rows);
    assert_eq!(
        predict(&small(), &plain, None).unwrap(),
        predict(&small(), &with, None).unwrap()
    );
}

#[test]
fn a_batch_of_unequal_lengths_is_the_samples_one_by_one() {
    let _turn = turn();
    let device = Device::flex();
    device.seed(9);
    let mut config = small();
    config.model.num_prompts = 2;
    config.decode.round_seconds = None;
    let head = config.init(&device).unwrap();
    let all: Vec<Features> = [(7, 2), (3, 9), (12, 1)]
        .map(|(clips, tokens)| features(clips, tokens, &device))
        .into();
    let names = ids(3);
    let samples = samples(&all, &names);
    let task = random([4, D_LLM], &device);
    // Two tokens of one sample.
    let rows = [0, 1, 2, 1];
    let context = HeadContext {
        samples: &samples,
        rows: &rows,
    };
    let output = head.forward(task.clone(), &context).unwrap();
    let all_at_once = output.cg_detr().unwrap();
    let (spans, saliency) = (all_at_once.spans.clone(), all_at_once.saliency.clone());
    for (i, row) in rows.iter().enumerate() {
        let one = HeadContext {
            samples: &samples,
            rows: &[*row],
        };
        let single = head.forward(task.clone().narrow(0, i, 1), &one).unwrap();
        let single = single.cg_detr().unwrap().clone();
        let clips = single.saliency.dims()[1];
        let far = |a: f32| assert!(a < 1e-5, "sample {i} differs by {a}");
        let diff = spans.clone().narrow(1, i, 1) - single.spans;
        far(diff.abs().max().into_scalar());
        let diff = saliency.clone().narrow(0, i, 1).narrow(1, 0, clips) - single.saliency;
        far(diff.abs().max().into_scalar());
    }
    let found = head.decode(output, &context).unwrap();
    let curves: Vec<usize> = found.iter().map(|p| p.saliency.len()).collect();
    assert_eq!(curves, [7, 3, 12, 3]);
}

#[test]
fn targets_that_do_not_fit_and_samples_without_a_moment() {
    let _turn = turn();
    let device = Device::flex().autodiff();
    let head = small().init(&device).unwrap();
    let all = vec![features(6, 2, &device), features(4, 3, &device)];
    let loss = |names: &[String], targets: &[TemporalTarget]| {
        let samples = samples(&all, names);
        let context = HeadContext {
            samples: &samples,
            rows: &[0, 1],
        };
        let output = head.forward(random([2, D_LLM], &device), &context)?;
        head.loss(&output, targets, &context)
    };
    let names = ids(2);
    let good = [target(1, 3, 6), target(0, 1, 4)];
    let total = loss(&names, &good).unwrap().total().unwrap();
    assert!(total.into_scalar::<f32>().is_finite());
    // One name: nobody's text is foreign.
    let same = vec!["video".to_string(); 2];
    let total = loss(&same, &good).unwrap().total().unwrap();
    assert!(total.into_scalar::<f32>().is_finite());
    assert!(loss(&names, &good[..1]).is_err());
    assert!(loss(&names, &[target(1, 3, 5), target(0, 1, 4)]).is_err());
    // No window, nothing relevant, no pairs: the terms that remain are finite.
    let nothing = |clips: usize| {
        let scores = vec![0.0; clips];
        TemporalTarget::new(
            vec![],
            SaliencyLabels {
                scores,
                ..SaliencyLabels::default()
            },
        )
    };
    let terms = loss(&names, &[nothing(6), nothing(4)]).unwrap();
    for term in terms.terms() {
        let value: f32 = term.value.clone().into_scalar();
        assert!(value.is_finite(), "{} is {value}", term.name);
    }
    let gradients = terms.total().unwrap().backward();
    let query = head.model.query_embed.weight.val().grad(&gradients);
    assert!(query.is_none_or(|g| g.is_finite().all().into_scalar::<bool>()));
}

#[test]
fn the_light_head_learns_start_and_end() {
    let _turn = turn();
    let device = Device::flex().autodiff();
    device.seed(4);
    let mut head = small().with_simple(true).init(&device).unwrap();
    // Without dropout.
    head.simple.as_mut().unwrap().start_end = StartEndMlps::new(D_LLM, 0.0, &device);
    let lengths = [9, 5, 12];
    let all: Vec<Features> = lengths.map(|n| features(n, 1, &device)).into();
    let names = ids(3);
    let samples = samples(&all, &names);
    let context = HeadContext {
        samples: &samples,
        rows: &[0, 1, 2],
    };
    let task = random([3, D_LLM], &device);
    let moments = [(2, 5), (0, 1), (7, 11)];
    let targets: Vec<TemporalTarget> = moments
        .iter()
        .zip(lengths)
        .map(|(&(first, last), n)| target(first, last, n))
        .collect();
    let mut optimiser = AdamWConfig::new().init();
    for _ in 0..200 {
        let output = head.forward(task.clone(), &context).unwrap();
        let loss = head.loss(&output, &targets, &context).unwrap();
        let grads = loss.total().unwrap().backward();
        let grads = burn::optim::GradientsParams::from_grads(grads, &head);
        head = optimiser.step(1e-2, head, grads);
    }
    let output = head.forward(task, &context).unwrap();
    for (p, (first, last)) in head.decode(output, &context).unwrap().iter().zip(moments) {
        let span = p.spans[0].span;
        assert_eq!((span.start, span.end), (first as f64, last as f64 + 1.0));
        assert!(p.spans[0].score > 0.5);
        assert!((first..=last).contains(&p.highlight().unwrap()));
    }
}

/// Every tensor of the published checkpoint.
fn videochat_tpo_layout() -> Manifest {
    let text = include_str!("../../src/model/families/videochat_tpo.txt");
    Manifest::from_compact("videochat-tpo", text).unwrap()
}
