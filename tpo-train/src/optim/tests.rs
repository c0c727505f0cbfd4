use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::*;
use crate::groups::{ParamGroupSpec, freeze};
use crate::resolve;

#[derive(Module, Debug)]
struct Pair {
    a: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

fn pair(device: &Device) -> Pair {
    Pair {
        a: Param::from_data(TensorData::from([[1.0f32, 2.0]]), device),
        b: Param::from_data(TensorData::from([3.0f32]), device),
    }
}

fn values<const D: usize>(p: &Param<Tensor<D>>) -> Vec<f32> {
    p.val().into_data().iter::<f32>().collect()
}

fn optimizer(model: Pair, clip: Option<f64>) -> (Pair, Optimizer) {
    let mut specs = [ParamGroupSpec::new("all", ["**"], 0.1)];
    specs[0].weight_decay = Some(0.5);
    let groups = resolve(&model, &specs).unwrap();
    let constants = AdamW::default();
    let optimizer = Optimizer::new(&groups, constants, clip);
    (freeze(model, &groups).unwrap(), optimizer)
}

/// Gradients of `Σ a·[4, 4]`, and of `b·3` if asked for.
fn gradients(model: &Pair, with_b: bool) -> GradientSet {
    let mut loss = (model.a.val() * 4.0).sum();
    if with_b {
        loss = loss + (model.b.val() * 3.0).sum();
    }
    let mut set = GradientSet::new();
    set.add(model, &loss.backward());
    set
}

#[test]
fn a_parameter_without_gradient_is_left_alone() {
    let (model, mut optimizer) = optimizer(pair(&Device::flex().autodiff()), None);
    let grads = gradients(&model, false);
    let (model, report) = optimizer.step(model, grads, 1.0).unwrap();
    assert_eq!(report.updated, 1);
    assert!((report.grad_norm - 32f64.sqrt()).abs() < 1e-6);
    // First step: the direction is the sign; a decays (two axes), b is untouched.
    assert!((values(&model.a)[0] - (0.95 - 0.1)).abs() < 1e-6);
    assert_eq!(values(&model.b), [3.0]);
    assert!(model.a.val().is_require_grad() && model.b.val().is_require_grad());
    let grads = gradients(&model, true);
    let (model, _) = optimizer.step(model, grads, 1.0).unwrap();
    // b's own first step, without decay (one axis).
    assert!((values(&model.b)[0] - 2.9).abs() < 1e-6);
    let state = optimizer.state();
    assert_eq!(state.steps["a"], 2);
    assert_eq!(state.steps["b"], 1);
}

#[test]
fn one_norm_clips_all() {
    let (model, mut optimizer) = optimizer(pair(&Device::flex().autodiff()), Some(1.0));
    // √(16 + 16 + 9)
    let norm = 41f64.sqrt();
    let grads = gradients(&model, true);
    let (_, report) = optimizer.step(model, grads, 1.0).unwrap();
    assert!((report.grad_norm - norm).abs() < 1e-6);
    assert!((report.clip_factor - 1.0 / (norm + 1e-6)).abs() < 1e-9);
    let state = optimizer.state();
    let (name, first) = &state.tensors[0];
    assert_eq!(name, "a.exp_avg");
    let expected = 0.1 * 4.0 / (norm as f32 + 1e-6);
    let first = first.to_data().iter::<f32>().next().unwrap();
    assert!((first - expected).abs() < 1e-6);
}

/// A parameter in two places has one gradient, that of both uses.
#[test]
fn a_shared_parameter_counts_once() {
    #[derive(Module, Debug)]
    struct Tied {
        first: Param<Tensor<1>>,
        second: Param<Tensor<1>>,
    }
    let device = Device::flex().autodiff();
    let first: Param<Tensor<1>> = Param::from_data(TensorData::from([3.0f32]), &device);
    let model = Tied {
        second: first.clone(),
        first,
    };
    let specs = [ParamGroupSpec::new("all", ["**"], 0.1)];
    let groups = resolve(&model, &specs).unwrap();
    let mut optimizer = Optimizer::new(&groups, AdamW::default(), Some(1.0));
    let model = freeze(model, &groups).unwrap();
    let loss = (model.first.val() * 3.0 + model.second.val() * 2.0).sum();
    let mut set = GradientSet::new();
    set.add(&model, &loss.backward());
    assert_eq!(set.paths().collect::<Vec<_>>(), ["first"]);
    let (model, report) = optimizer.step(model, set, 1.0).unwrap();
    assert!(
        (report.grad_norm - 5.0).abs() < 1e-6,
        "{}",
        report.grad_norm
    );
    assert!((report.clip_factor - 0.2).abs() < 1e-6);
    for value in [&model.first, &model.second] {
        assert!((value.val().into_scalar::<f32>() - 2.9).abs() < 1e-6);
    }
}

#[test]
fn two_micro_batches_average() {
    let (model, _) = optimizer(pair(&Device::flex().autodiff()), None);
    let mut grads = gradients(&model, true);
    let loss = (model.a.val() * 2.0).sum();
    grads.add(&model, &loss.backward());
    grads.scale(0.5);
    // a: (4 + 2) / 2 twice, b: 3 / 2.
    assert!((grads.norm() - (9.0f64 + 9.0 + 2.25).sqrt()).abs() < 1e-6);
}

#[test]
fn not_a_number_moves_nothing() {
    let (model, mut optimizer) = optimizer(pair(&Device::flex().autodiff()), Some(1.0));
    let mut grads = gradients(&model, true);
    grads.insert("b", Tensor::from_data([f32::NAN], &Device::flex()));
    let (model, report) = optimizer.step(model, grads, 1.0).unwrap();
    assert!(report.grad_norm.is_nan());
    assert_eq!(values(&model.a), [1.0, 2.0]);
    assert!(optimizer.state().steps.is_empty());
}

#[test]
fn state_continues_to_the_bit() {
    let device = Device::flex().autodiff();
    let run = |steps: usize, state: Option<(OptimizerState, Vec<f32>, Vec<f32>)>| {
        let (mut model, mut optimizer) = optimizer(pair(&device), Some(1.0));
        if let Some((state, a, b)) = state {
            model.a = model.a.map(|_| {
                Tensor::<2>::from_data(TensorData::new(a, [1, 2]), &device).require_grad()
            });
            model.b = model
                .b
                .map(|_| Tensor::from_data(TensorData::new(b, [1]), &device).require_grad());
            optimizer.load_state(state, &device).unwrap();
        }
        for i in 0..steps {
            let grads = gradients(&model, i % 2 == 0);
            model = optimizer.step(model, grads, 0.7).unwrap().0;
        }
        (optimizer.state(), values(&model.a), values(&model.b))
    };
    let whole = run(4, None);
    let half = run(2, None);
    assert_eq!(run(2, Some(half)), whole);
}

/// A checkpoint is written while the next steps are taken.
#[test]
fn a_state_that_is_held_stays_as_it_was() {
    let (model, mut optimizer) = optimizer(pair(&Device::flex().autodiff()), None);
    let grads = gradients(&model, true);
    let (model, _) = optimizer.step(model, grads, 1.0).unwrap();
    let (held, weights) = (optimizer.state(), model.clone().valid());
    let values_then: Vec<_> = held.tensors.iter().map(|(_, t)| t.to_data()).collect();
    let weights_then = values(&weights.a);
    let grads = gradients(&model, true);
    let (model, _) = optimizer.step(model, grads, 1.0).unwrap();
    assert!(held != optimizer.state() && values(&model.a) != weights_then);
    let values_now: Vec<_> = held.tensors.iter().map(|(_, t)| t.to_data()).collect();
    assert_eq!(
        (values_now, values(&weights.a)),
        (values_then, weights_then)
    );
}

#[test]
fn foreign_state_is_refused() {
    let device = Device::flex().autodiff();
    let (model, mut optimizer) = optimizer(pair(&device), None);
    let grads = gradients(&model, true);
    optimizer.step(model, grads, 1.0).unwrap();
    let good = optimizer.state();
    let mut other = good.clone();
    other.steps.insert("c".into(), 1);
    let text = optimizer
        .load_state(other, &device)
        .unwrap_err()
        .to_string();
    assert!(text.contains("`c`"), "{text}");
    let mut other = good.clone();
    other.tensors.retain(|(name, _)| name != "a.exp_avg_sq");
    let text = optimizer
        .load_state(other, &device)
        .unwrap_err()
        .to_string();
    assert!(text.contains("moment is missing"), "{text}");
    // A moment of another size is found when it is used.
    let mut other = good;
    for (_, tensor) in other
        .tensors
        .iter_mut()
        .filter(|(n, _)| n.starts_with("b."))
    {
        *tensor = Tensor::from_data([0.0f32, 0.0], &Device::flex());
    }
    optimizer.load_state(other, &device).unwrap();
    let (model, _) = self::optimizer(pair(&device), None);
    let grads = gradients(&model, true);
    let text = optimizer.step(model, grads, 1.0).unwrap_err().to_string();
    assert!(text.contains("`b`") && text.contains("1 values"), "{text}");
}

#[test]
fn narrow_weights_have_a_wide_master() {
    let device = Device::flex().autodiff();
    let (mut model, mut optimizer) = optimizer(pair(&device), None);
    model.a = model
        .a
        .map(|t| t.inner().cast(FloatDType::BF16).autodiff().require_grad());
    // Steps of 1e-3 around 2 are below bf16's resolution of 2⁻⁷ there.
    for _ in 0..10 {
        let loss = model.a.val().cast(FloatDType::F32).sum();
        let mut grads = GradientSet::new();
        grads.add(&model, &loss.backward());
        model = optimizer.step(model, grads, 0.01).unwrap().0;
    }
    assert_eq!(model.a.val().dtype(), DType::BF16);
    let state = optimizer.state();
    let (_, master) = state.tensors.iter().find(|(n, _)| n == "a.master").unwrap();
    let master: Vec<f32> = master.to_data().iter::<f32>().collect();
    // Ten times: · (1 − 0.001 · 0.5) − 0.001.
    let expected = (0..10).fold(2.0f64, |w, _| w * 0.9995 - 0.001);
    assert!((f64::from(master[1]) - expected).abs() < 1e-5, "{master:?}");
    let narrow = half_of(master[1]);
    assert_eq!(values(&model.a)[1], narrow);
}

fn half_of(x: f32) -> f32 {
    burn::tensor::bf16::from_f32(x).to_f32()
}

/// Muon moves the matrix and AdamW the vector of one group; the state of both goes on to the bit.
#[test]
fn a_group_with_muon_resumes() {
    let device = Device::flex().autodiff();
    let start = || {
        let model = pair(&device);
        let mut specs = [ParamGroupSpec::new("all", ["**"], 0.1)];
        specs[0].muon = Some(Muon::default());
        let groups = resolve(&model, &specs).unwrap();
        assert!(groups.to_string().contains("all (Muon)"), "{groups}");
        let optimizer = Optimizer::new(&groups, AdamW::default(), Some(1.0));
        (freeze(model, &groups).unwrap(), optimizer)
    };
    let run = |steps: usize, mut optimizer: Optimizer, mut model: Pair| {
        for _ in 0..steps {
            let grads = gradients(&model, true);
            model = optimizer.step(model, grads, 1.0).unwrap().0;
        }
        (optimizer, model)
    };
    let (model, optimizer) = start();
    let (first, half) = run(2, optimizer, model);
    let state = first.state();
    let names: Vec<&str> = state
        .tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["a.momentum_buffer", "b.exp_avg", "b.exp_avg_sq"]);
    assert_eq!(state.steps["a"], 2);
    // The gradient of the row is along [1, 1]: so is every step.
    let moved: Vec<f32> = values(&half.a)
        .iter()
        .zip([1.0, 2.0])
        .map(|(x, y)| y - x)
        .collect();
    assert!(
        moved[0] > 0.01 && (moved[0] - moved[1]).abs() < 1e-6,
        "{moved:?}"
    );

    let (_, mut other) = start();
    other.load_state(state.clone(), &device).unwrap();
    let (resumed, resumed_model) = run(2, other, half.clone());
    let (whole, whole_model) = run(2, first, half);
    assert_eq!(resumed.state(), whole.state());
    assert_eq!(values(&resumed_model.a), values(&whole_model.a));

    // The state of AdamW is not Muon's.
    let (_, mut plain) = self::optimizer(pair(&device), None);
    let text = plain.load_state(state, &device).unwrap_err().to_string();
    assert!(text.contains("moment is missing"), "{text}");
}
