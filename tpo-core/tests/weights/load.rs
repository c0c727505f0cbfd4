//! Importing into a module.

use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use tpo_core::nn::{Linear, LinearConfig, Weight};
use tpo_core::ops::{QuantFormat, dequantize};
use tpo_core::weights::{
    Checkpoint, DtypePolicy, KeyRules, KeyScope, Layer, LoadOptions, SaveOptions, TensorSource,
    WeightsError, load_layers, load_module, read_tensor_as, save_tensors,
};

use crate::files::{NET, Net, T, checkpoint, net_with, write};

fn open(tensors: &[T<'_>]) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "model.safetensors", &checkpoint(tensors));
    let checkpoint = Checkpoint::open(path).unwrap();
    (dir, checkpoint)
}

fn refuse(tensors: &[T<'_>]) -> (String, tpo_core::weights::Refusal) {
    let (_dir, checkpoint) = open(tensors);
    let error = load_module(
        Net::new(&Device::flex()),
        &checkpoint,
        &KeyRules::new(),
        &LoadOptions::default(),
    )
    .unwrap_err();
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    match error {
        WeightsError::Refused(refusal) => (message, *refusal),
        other => panic!("{other}"),
    }
}

/// The parameter of a layer.
fn weight(linear: &Linear) -> &Param<Tensor<2>> {
    match &linear.weight {
        Weight::Float(weight) => weight,
        Weight::Quantized(_) => panic!("it is quantised"),
    }
}

fn values<const D: usize>(param: &Param<Tensor<D>>) -> Vec<f32> {
    param
        .val()
        .into_data()
        .try_cast(DType::F32)
        .unwrap()
        .as_slice::<f32>()
        .unwrap()
        .to_vec()
}

#[test]
fn values_arrive_in_the_order_of_the_file() {
    let (_dir, checkpoint) = open(NET);
    let options = LoadOptions::default();
    let net = Net::new(&Device::flex());
    assert!(!net.token.is_initialized());
    let (net, report) = load_module(net, &checkpoint, &KeyRules::new(), &options).unwrap();
    assert!(report.is_complete());
    assert_eq!(report.loaded.len(), NET.len());
    assert_eq!(report.bytes(), checkpoint.bytes());
    assert_eq!(values(weight(&net.blocks[0].fc)), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(net.blocks[0].fc.weight.val().dtype(), DType::BF16);
    assert_eq!(net.blocks[1].fc.weight.val().dtype(), DType::F32);
    let ids = net.blocks[1].ids.val();
    let default_int = Tensor::<1, burn::tensor::Int>::zeros([1], &Device::flex()).dtype();
    assert_eq!(ids.dtype(), default_int);
    assert_eq!(
        ids.into_data()
            .try_cast(DType::I64)
            .unwrap()
            .as_slice::<i64>()
            .unwrap(),
        [0, 1, 2, 3]
    );
    let text = report.to_string();
    assert!(text.contains("loaded") && text.contains("I64 → "), "{text}");
}

#[test]
fn some_lines_of_a_tensor_are_a_tensor() {
    let (_dir, checkpoint) = open(&[
        T("a", "F32", &[4, 3]),
        T("b", "BF16", &[5]),
        T("c", "F32", &[]),
    ]);
    let part = |key: &str, lines| checkpoint.get(key).unwrap().lines(lines);
    let read = |entry| read_tensor_as(&entry, DType::F32).unwrap();
    let middle = read(part("a", 1..3).unwrap());
    let expected = TensorData::new(vec![3_f32, 4., 5., 6., 7., 8.], [2, 3]);
    middle.assert_eq(&expected, true);
    let end = read(part("b", 3..5).unwrap());
    end.assert_eq(&TensorData::new(vec![3_f32, 4.], [2]), true);
    assert_eq!(part("a", 2..2).unwrap().len, 0);
    assert!(part("a", 1..5).is_none() && part("c", 0..1).is_none());
    // In place of the whole.
    let cut = checkpoint.clone().with(part("a", 0..2).unwrap());
    assert_eq!(cut.get("a").unwrap().shape, [2, 3]);
    assert_eq!((cut.len(), cut.bytes()), (3, checkpoint.bytes() - 24));
}

/// Tensors of several pieces of the file, the last of them not whole.
#[test]
fn what_is_read_in_pieces_is_what_it_is_at_once() {
    let (rows, width) = (300, 4096);
    let exact: Vec<f32> = (0..rows * width)
        .map(|i| ((i * 7919) % 65537) as f32 / 997.0 - 30.0)
        .collect();
    let device = Device::flex();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let data = TensorData::new(exact.clone(), [rows, width]);
        let data = data.try_cast(dtype).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let source = TensorSource::from_data("weight", &data).unwrap();
        save_tensors(vec![source], &path, &SaveOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let entry = checkpoint.get("weight").unwrap();
        assert!(entry.len > 2 << 20 && !entry.len.is_multiple_of(1 << 20));
        for to in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let expected = data.clone().try_cast(to).unwrap();
            read_tensor_as(entry, to)
                .unwrap()
                .assert_eq(&expected, true);
        }
        let whole = data.clone().try_cast(DType::F32).unwrap();
        let whole = whole.as_slice::<f32>().unwrap();
        for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
            let packed = format.quantize(whole, width).unwrap();
            let words = packed.len() / rows;
            let packed = TensorData::new(packed, [rows, words]);
            let packed = Tensor::<2, Int>::from_data(packed, (&device, DType::U32));
            let linear = LinearConfig::new(width, rows)
                .with_bias(false)
                .with_quantization(Some(format))
                .init(&device);
            let options = LoadOptions::default();
            let (linear, report) =
                load_module(linear, &checkpoint, &KeyRules::new(), &options).unwrap();
            assert_eq!(report.cast.len(), usize::from(dtype != DType::F32));
            let expected = dequantize(packed, format, width).into_data();
            linear.weight.val().into_data().assert_eq(&expected, true);
        }
    }
}

#[test]
fn floats_are_cast_on_request_and_counted() {
    let (_dir, checkpoint) = open(NET);
    let options = LoadOptions {
        dtype: DtypePolicy::Cast(FloatDType::F32),
        ..LoadOptions::default()
    };
    let (net, report) = load_module(
        Net::new(&Device::flex()),
        &checkpoint,
        &KeyRules::new(),
        &options,
    )
    .unwrap();
    assert_eq!(net.blocks[0].norm.weight.val().dtype(), DType::F32);
    assert_eq!(values(&net.blocks[0].norm.weight), [0., 1.]);
    // Eight of nine float tensors were bfloat16.
    let floats = report.cast.iter().filter(|c| c.to == "F32").count();
    assert_eq!(floats, 8);
}

#[test]
fn gradients_flow_after_loading_and_frozen_stays_frozen() {
    let (_dir, checkpoint) = open(NET);
    let device = Device::flex().autodiff();
    let mut net = Net::new(&device);
    let fixed = weight(&net.blocks[1].fc).clone().set_require_grad(false);
    net.blocks[1].fc.weight = Weight::Float(fixed);
    let id = weight(&net.blocks[0].fc).id;
    let options = LoadOptions {
        dtype: DtypePolicy::Cast(FloatDType::F32),
        ..LoadOptions::default()
    };
    let (net, _) = load_module(net, &checkpoint, &KeyRules::new(), &options).unwrap();
    assert_eq!(weight(&net.blocks[0].fc).id, id);
    assert!(net.blocks[0].fc.weight.val().device().is_autodiff());
    assert!(net.blocks[0].fc.weight.val().is_require_grad());
    assert!(!net.blocks[1].fc.weight.val().is_require_grad());

    let x = Tensor::<2>::from_floats([[1., 10.]], &device);
    let y = net.blocks[0].fc.forward(x.clone()) + net.blocks[1].fc.forward(x);
    let grads = y.sum().backward();
    let grad = net.blocks[0].fc.weight.val().grad(&grads).unwrap();
    assert_eq!(
        grad.into_data().as_slice::<f32>().unwrap(),
        [1., 10., 1., 10., 1., 10.]
    );
    assert!(net.blocks[1].fc.weight.val().grad(&grads).is_none());
}

#[test]
fn a_plain_model_becomes_trainable_after_loading() {
    let (_dir, checkpoint) = open(NET);
    let net = Net::new(&Device::flex());
    let (net, _) =
        load_module(net, &checkpoint, &KeyRules::new(), &LoadOptions::default()).unwrap();
    let net = net.train();
    assert!(net.blocks[0].fc.weight.val().is_require_grad());
}

#[test]
fn a_missing_tensor_names_key_shape_file_and_nearest() {
    let (message, refusal) = refuse(&net_with(
        "blocks.1.fc.weight",
        Some(T("blocks.1.fc.weigth", "F32", &[3, 2])),
    ));
    assert_eq!((refusal.missing.len(), refusal.unexpected.len()), (1, 1));
    for part in [
        "`blocks.1.fc.weight` of shape [3, 2]",
        "nearest name in the checkpoint: `blocks.1.fc.weigth` of shape [3, 2] in model.safetensors",
        "nearest expected name: `blocks.1.fc.weight`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn other_shapes_other_kinds_and_unknown_types() {
    let (message, refusal) = refuse(&net_with(
        "blocks.0.fc.weight",
        Some(T("blocks.0.fc.weight", "F32", &[2, 3])),
    ));
    assert_eq!(refusal.mismatched.len(), 1);
    assert!(
        message.contains("expected [3, 2], found [2, 3]"),
        "{message}"
    );

    let (message, _) = refuse(&net_with("token", Some(T("token", "I64", &[1, 1, 2]))));
    assert!(
        message.contains("I64") && message.contains("Float"),
        "{message}"
    );

    let (message, _) = refuse(&net_with("token", Some(T("token", "F8_E4M3", &[1, 1, 2]))));
    assert!(message.contains("F8_E4M3 is not supported"), "{message}");
}

#[test]
fn two_keys_for_one_parameter() {
    let (_dir, checkpoint) = open(&[
        T("w.base_layer.weight", "F32", &[3, 2]),
        T("w.weight", "F32", &[3, 2]),
    ]);
    #[derive(Module, Debug)]
    struct One {
        w: tpo_core::nn::Linear,
    }
    let one = One {
        w: tpo_core::nn::LinearConfig::new(2, 3)
            .with_bias(false)
            .init(&Device::flex()),
    };
    let rules = KeyRules::new().lora("default");
    let error = load_module(one, &checkpoint, &rules, &LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("so does `w.base_layer.weight`"),
        "{error}"
    );
}

#[test]
fn a_refused_load_changes_nothing() {
    let device = Device::flex();
    let net = Net::new(&device);
    let before = net.clone();
    let kept = values(weight(&before.blocks[0].fc));
    // Only the last tensor is wrong.
    let (_dir, checkpoint) = open(&net_with("token", Some(T("token", "F32", &[1, 1, 3]))));
    let result = load_module(net, &checkpoint, &KeyRules::new(), &LoadOptions::default());
    assert!(result.is_err());
    assert_eq!(values(weight(&before.blocks[0].fc)), kept);
    assert!(!weight(&before.blocks[1].fc).is_initialized());
}

#[test]
fn a_file_that_changes_after_its_header_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = checkpoint(NET);
    let path = write(dir.path(), "model.safetensors", &bytes);
    let opened = Checkpoint::open(&path).unwrap();
    write(dir.path(), "model.safetensors", &bytes[..bytes.len() - 2]);
    let options = LoadOptions::default();
    let net = Net::new(&Device::flex());
    let error = load_module(net, &opened, &KeyRules::new(), &options).unwrap_err();
    assert!(matches!(error, WeightsError::TensorData { .. }), "{error}");
}

#[test]
fn partial_loads_only_when_asked() {
    let mut tensors = net_with("token", None);
    let (_dir, lacking) = open(&tensors);
    let load = |checkpoint: &Checkpoint, options: &LoadOptions<'_>| {
        let net = Net::new(&Device::flex());
        load_module(net, checkpoint, &KeyRules::new(), options)
    };
    assert!(load(&lacking, &LoadOptions::default()).is_err());
    let options = LoadOptions {
        allow_missing: vec!["^token$".into()],
        ..LoadOptions::default()
    };
    let (net, report) = load(&lacking, &options).unwrap();
    assert_eq!(report.missing[0].path, "token");
    assert!(!report.is_complete());
    assert!(!net.token.is_initialized());
    assert_eq!(
        values(net.blocks[0].fc.bias.as_ref().unwrap()),
        [0., 1., 2.]
    );

    // What is left out may be of any shape, or absent.
    tensors.retain(|t| t.0 != "blocks.0.ids");
    tensors.push(T("blocks.0.ids", "I64", &[1, 5]));
    let (_dir, other) = open(&tensors);
    assert!(load(&other, &options).is_err());
    let left_out = |path: &str| {
        let left_out = path == "token" || path == "blocks.0.ids";
        left_out.then(|| "from elsewhere".to_string())
    };
    let options = LoadOptions {
        left_out: Some(&left_out),
        ..LoadOptions::default()
    };
    let (_, report) = load(&other, &options).unwrap();
    assert!(report.is_complete());
    assert_eq!(report.ignored[0].key, "blocks.0.ids");
    assert_eq!(report.ignored[0].reason, "from elsewhere");
}

#[test]
fn of_several_checkpoints_the_last_one_counts() {
    let linear = || tpo_core::nn::LinearConfig::new(2, 3).init(&Device::flex());
    let (_dir, first) = open(&[T("bias", "F32", &[3]), T("weight", "F32", &[3, 2])]);
    let (_dir, last) = open(&[T("bias", "BF16", &[3])]);
    let rules = KeyRules::new();
    let options = LoadOptions::default();
    let layers: [Layer<'_>; 2] = [
        (&first, &rules, KeyScope::Whole),
        (&last, &rules, KeyScope::Whole),
    ];
    let (layer, reports) = load_layers(linear(), &layers, &options).unwrap();
    assert_eq!(layer.weight.val().dtype(), DType::F32);
    assert_eq!(layer.bias.unwrap().val().dtype(), DType::BF16);
    assert_eq!([reports[0].loaded.len(), reports[1].loaded.len()], [1, 1]);
    assert!(reports[0].ignored[0].reason.contains("replaced by"));
    assert!(reports.iter().all(|r| r.is_complete()));
    // The first must have what the last lacks.
    let swapped = [layers[1], layers[1]];
    let error = load_layers(linear(), &swapped, &options).unwrap_err();
    assert!(error.to_string().contains("`weight`"), "{error}");
}

#[test]
fn one_part_out_of_a_whole_checkpoint() {
    let whole = [
        T("head.bias", "F32", &[3]),
        T("head.old", "F32", &[9]),
        T("head.weight", "F32", &[3, 2]),
        T("lm.weight", "F32", &[4]),
    ];
    let (_dir, checkpoint) = open(&whole);
    let rules = || {
        KeyRules::new()
            .owns(["head."])
            .prefix("head.", "")
            .ignore(r"\.old$", "left over from pre-training")
            .unwrap()
    };
    let linear = || tpo_core::nn::LinearConfig::new(2, 3).init(&Device::flex());
    let load = |scope| {
        let options = LoadOptions {
            scope,
            ..LoadOptions::default()
        };
        load_module(linear(), &checkpoint, &rules(), &options)
    };
    let error = load(KeyScope::Whole).unwrap_err().to_string();
    assert!(error.contains("KeyScope::Part"), "{error}");
    let (_, report) = load(KeyScope::Part).unwrap();
    assert_eq!(report.other_parts, 1);
    assert_eq!(report.ignored[0].key, "head.old");
    assert_eq!(report.ignored[0].reason, "left over from pre-training");
    assert!(serde_json::to_string(&report).unwrap().contains("head.old"));
}

#[test]
fn variants_of_an_enum_have_no_segment() {
    #[derive(Module, Debug)]
    #[allow(clippy::large_enum_variant)]
    enum Either {
        Line(tpo_core::nn::Linear),
        Norm(tpo_core::nn::LayerNorm),
    }
    let (_dir, checkpoint) = open(&[T("weight", "F32", &[2]), T("bias", "F32", &[2])]);
    let either = Either::Norm(tpo_core::nn::LayerNormConfig::new(2).init(&Device::flex()));
    let (either, _) = load_module(
        either,
        &checkpoint,
        &KeyRules::new(),
        &LoadOptions::default(),
    )
    .unwrap();
    match either {
        Either::Norm(norm) => assert_eq!(values(&norm.weight), [0., 1.]),
        Either::Line(_) => unreachable!(),
    }
}

#[test]
fn progress_ends_at_the_total() {
    let (_dir, checkpoint) = open(NET);
    let calls = RefCell::new(Vec::new());
    let progress = |done, total| calls.borrow_mut().push((done, total));
    let options = LoadOptions {
        progress: Some(&progress),
        ..LoadOptions::default()
    };
    let net = Net::new(&Device::flex());
    load_module(net, &checkpoint, &KeyRules::new(), &options).unwrap();
    let calls = calls.into_inner();
    assert_eq!(calls.len(), NET.len());
    assert!(calls.windows(2).all(|w| w[0].0 < w[1].0));
    assert_eq!(
        calls.last(),
        Some(&(checkpoint.bytes(), checkpoint.bytes()))
    );
}

#[test]
fn a_foreign_data_type_elsewhere_in_the_file_does_not_matter() {
    let mut tensors = net_with("none", None);
    tensors.push(T("other.scale", "F8_E4M3", &[4]));
    let (_dir, checkpoint) = open(&tensors);
    let rules = KeyRules::new()
        .ignore("^other", "scales of a quantised copy")
        .unwrap();
    let net = Net::new(&Device::flex());
    let (_, report) = load_module(net, &checkpoint, &rules, &LoadOptions::default()).unwrap();
    assert_eq!(report.ignored.len(), 1);
}
