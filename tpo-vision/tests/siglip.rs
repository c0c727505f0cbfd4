//! The SigLIP tower against the reference, and its behaviour beyond the reference's numbers.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use common::params::{gradients, shapes, values};
use common::{max_diff, random};
use serde_json::Value;
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::nn::{Linear, Weight};
use tpo_core::ops::QuantFormat;
use tpo_core::traits::VisionEncoder;
use tpo_core::weights::{
    Checkpoint, KeyRules, KeyScope, LoadOptions, SaveOptions, load_module, read_tensor, save_module,
};
use tpo_vision::siglip::SIGLIP_UNUSED_KEYS;
use tpo_vision::{Siglip, SiglipConfig, VisionError};

/// A fixture: its JSON and its tensors.
struct Fixture {
    json: Value,
    file: PathBuf,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let json = std::fs::read(dir.join(name).with_extension("json")).unwrap();
        Self {
            json: serde_json::from_slice(&json).unwrap(),
            file: dir.join(name).with_extension("safetensors"),
        }
    }

    fn data(&self, key: &str) -> TensorData {
        read_tensor(Checkpoint::open(&self.file).unwrap().get(key).expect(key)).unwrap()
    }

    fn tensor<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(key).convert_dtype(DType::F32), device)
    }

    /// Checks the relative L2 distance of `got` from the tensor `key` at the fixture's tolerance.
    fn close(&self, key: &str, got: &[f32]) {
        let class = key.split('.').next().unwrap();
        let tolerance = self.json["tolerance"][class].as_f64().unwrap();
        let error = self.distance(key, got);
        assert!(
            error <= tolerance,
            "{key}: {error:.2e} over {tolerance:.0e}"
        );
    }

    fn distance(&self, key: &str, got: &[f32]) -> f64 {
        let expected: Vec<f32> = self.data(key).try_to_vec().unwrap();
        assert_eq!(expected.len(), got.len(), "{key}");
        let squares =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let off = squares(&mut got.iter().zip(&expected).map(|(g, e)| f64::from(g - e)));
        off / squares(&mut expected.iter().map(|e| f64::from(*e))).max(1e-7)
    }
}

/// A tower with the weights that `file` has under `prefix`, strictly.
fn loaded(config: &SiglipConfig, file: &Path, prefix: &str, device: &Device) -> Siglip {
    let rules = KeyRules::new()
        .owns([prefix])
        .prefix(prefix, "")
        .ignore_all(SIGLIP_UNUSED_KEYS)
        .unwrap();
    let options = LoadOptions {
        scope: KeyScope::Part,
        ..LoadOptions::default()
    };
    let tower = config.init(device).unwrap();
    let checkpoint = Checkpoint::open(file).unwrap();
    let (tower, report) = load_module(tower, &checkpoint, &rules, &options).unwrap();
    assert!(report.is_complete());
    tower
}

#[test]
fn values_and_gradients_are_the_references() {
    let fixture = Fixture::open("hf_siglip_vision");
    let config = SiglipConfig::from_hf_json(&fixture.json["config"]).unwrap();
    let device = Device::flex().autodiff();
    let tower = loaded(&config, &fixture.file, "w.vision_model.", &device);
    let pixels = fixture.tensor::<4>("in.pixel_values", &device);

    let pixels = pixels.require_grad();
    let mut hidden = tower.embeddings.forward(pixels.clone());
    fixture.close("mid.hidden.0", &values(hidden.clone()));
    for (i, layer) in tower.encoder.layers.iter().enumerate() {
        hidden = layer.forward(hidden);
        let key = format!("mid.hidden.{}", i + 1);
        fixture.close(&key, &values(hidden.clone()));
    }

    // Two pictures of one clip: the same tokens, one after the other.
    let tokens = tower.encode(pixels.clone().unsqueeze()).unwrap();
    let tokens = tokens.reshape([2, config.tokens(), config.hidden_size]);
    fixture.close("out.features", &values(tokens.clone()));
    let cotangent = fixture.tensor::<3>("in.cotangent", &device);
    let loss = (tokens * cotangent.clone()).mean();
    fixture.close("out.loss", &values(loss.clone()));

    let grads = loss.backward();
    fixture.close(
        "grad.in.pixel_values",
        &values(pixels.grad(&grads).unwrap()),
    );
    let found = gradients(&tower, &grads);
    compare_gradients(&fixture, &found);

    // With a tape: the same, in several parts.
    let mut tape = Tape::new(None);
    let clips = pixels.unsqueeze_dim(1);
    let tokens = tower.encode_checkpointed(clips, &mut tape).unwrap();
    assert_eq!(tape.len(), config.num_hidden_layers);
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    tape.backward(&(tokens * cotangent).mean(), |grads| {
        for (path, grad) in gradients(&tower, grads) {
            let sum = sums.entry(path).or_insert_with(|| vec![0.0; grad.len()]);
            sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g);
        }
    });
    assert_eq!(found.len(), sums.len());
    compare_gradients(&fixture, &sums);
}

fn compare_gradients(fixture: &Fixture, found: &BTreeMap<String, Vec<f32>>) {
    let prefix = "grad.vision_model.";
    let keys = Checkpoint::open(&fixture.file).unwrap();
    let keys = keys.tensors().filter(|t| t.key.starts_with(prefix));
    let compared = keys.map(|t| fixture.close(&t.key, &found[&t.key[prefix.len()..]]));
    assert_eq!(compared.count(), 9);
}

/// Only where activations are small does the epsilon of the norms show.
#[test]
fn the_epsilon_is_pinned_where_activations_are_small() {
    let small = Fixture::open("ov_small_amplitude");
    let weights = small.file.with_file_name("ov_batch.safetensors");
    let scale = small.json["scale"].as_f64().unwrap() as f32;
    let device = Device::flex();
    // The sizes of `ov_batch`.
    let config = SiglipConfig::new(13, 4, 16, 3, 2, 29);
    let frames = small.tensor::<5>("in.frames", &device) / 127.5 - 1.0;
    let features = |config: &SiglipConfig| {
        let prefix = "w.vision_tower.vision_model.";
        let mut tower = loaded(config, &weights, prefix, &device);
        let scaled = |param: Param<Tensor<1>>| param.map(|t| t * scale);
        let linear = |layer: &mut Linear| {
            layer.weight = Weight::from(layer.weight.val() * scale);
            layer.bias = layer.bias.take().map(scaled);
        };
        let patches = &mut tower.embeddings.patch_embedding;
        patches.weight = patches.weight.clone().map(|t| t * scale);
        patches.bias = scaled(patches.bias.clone());
        let positions = &mut tower.embeddings.position_embedding;
        positions.weight = Weight::from(positions.weight.val() * scale);
        for layer in &mut tower.encoder.layers {
            linear(&mut layer.self_attn.out_proj);
            linear(&mut layer.mlp.fc2);
            let values = &mut layer.self_attn.v_proj;
            values.bias = values.bias.take().map(scaled);
        }
        values(tower.encode(frames.clone()).unwrap())
    };
    small.close("out.features", &features(&config));
    let other = features(&config.with_layer_norm_eps(1e-5));
    assert!(small.distance("out.features", &other) > 0.1);
}

#[test]
fn parameters_have_the_published_names_and_shapes() {
    let config = SiglipConfig::so400m_patch14_384();
    let tower = config.init(&Device::flex()).unwrap();
    let shapes = shapes(&tower);
    // 421 in the files, of which two are of the norm that is not used.
    assert_eq!(shapes.len(), 419);
    for (path, shape) in [
        ("embeddings.patch_embedding.weight", &[1152, 3, 14, 14][..]),
        ("embeddings.position_embedding.weight", &[729, 1152]),
        ("encoder.layers.0.layer_norm1.bias", &[1152]),
        ("encoder.layers.25.self_attn.out_proj.weight", &[1152, 1152]),
        ("encoder.layers.25.mlp.fc1.weight", &[4304, 1152]),
    ] {
        assert_eq!(shapes[path], shape, "{path}");
    }
}

fn config() -> SiglipConfig {
    SiglipConfig::new(31, 10, 24, 2, 3, 40)
}

fn tower(config: &SiglipConfig, device: &Device) -> Siglip {
    device.seed(5);
    config.init(device).unwrap()
}

/// More pictures than go through the layers together.
#[test]
fn pictures_are_independent() {
    let device = Device::flex();
    let tower = tower(&config(), &device);
    let clips = random([2, 300, 3, 31, 31], &device);
    let all = tower.encode(clips.clone()).unwrap();
    assert_eq!(all.dims(), [2, 300 * 9, 24]);
    assert_eq!(tower.dim(), 24);
    for (clip, picture) in [(0, 0), (0, 299), (1, 154), (1, 299)] {
        let one = clips.clone().narrow(0, clip, 1).narrow(1, picture, 1);
        let alone = tower.encode(one).unwrap();
        let there = all.clone().narrow(0, clip, 1).narrow(1, picture * 9, 9);
        assert!(max_diff(alone, there) < 1e-5);
    }
}

#[test]
fn pixels_that_fill_no_patch_are_not_seen() {
    let device = Device::flex();
    let tower = tower(&config(), &device);
    let clip = random([1, 1, 3, 31, 31], &device);
    let tokens = tower.encode(clip.clone()).unwrap();
    let edge = clip
        .clone()
        .slice_fill([0..1, 0..1, 0..3, 0..31, 30..31], 9.0);
    assert_eq!(max_diff(tokens.clone(), tower.encode(edge).unwrap()), 0.0);
    let seen = clip.slice_fill([0..1, 0..1, 0..3, 0..31, 29..30], 9.0);
    assert!(max_diff(tokens, tower.encode(seen).unwrap()) > 0.01);
}

#[test]
fn unusable_pictures_are_errors() {
    let device = Device::flex();
    let tower = tower(&config(), &device);
    for (shape, part) in [
        ([1, 1, 3, 31, 30], "must be 31x31 pixels, found 31x30"),
        ([1, 0, 3, 31, 31], "is empty"),
        ([1, 1, 1, 31, 31], "found 1"),
    ] {
        let error = tower.forward(Tensor::zeros(shape, &device)).unwrap_err();
        assert!(matches!(error, VisionError::Frames { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let bad = SiglipConfig::new(31, 10, 25, 2, 3, 40).init(&device);
    assert!(matches!(bad, Err(VisionError::Config { .. })));
}

#[test]
fn a_frozen_tower_runs_without_autodiff() {
    let device = Device::flex().autodiff();
    let tower = tower(&config(), &device);
    let clip = random([1, 2, 3, 31, 31], &device);
    let tokens = tower.encode(clip.clone()).unwrap();
    assert!(tokens.is_tracked());
    let frozen = tower.freeze();
    let mut tape = Tape::new(None);
    let constant = frozen.encode_checkpointed(clip, &mut tape).unwrap();
    assert!(tape.is_empty() && !constant.is_tracked() && constant.is_autodiff());
    assert!(max_diff(tokens, constant) < 1e-5);
}

#[test]
fn half_precision_and_quantised_weights_are_close() {
    struct Half;
    impl ModuleMapper for Half {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(FloatDType::BF16))
        }
    }
    let device = Device::flex();
    // `fc2` has lines of 40 elements, which are no whole blocks.
    let config = SiglipConfig::new(28, 14, 64, 2, 4, 40);
    let full = tower(&config, &device);
    let clip = random([1, 3, 3, 28, 28], &device);
    let expected = full.encode(clip.clone()).unwrap();
    let close = |tokens: Tensor<3>| {
        let off = (tokens.cast(FloatDType::F32) - expected.clone())
            .square()
            .mean();
        let ratio = (off / expected.clone().square().mean()).sqrt();
        ratio.into_scalar::<f32>() < 0.02
    };
    let half = full.clone().map(&mut Half).encode(clip.clone()).unwrap();
    assert_eq!(half.dtype(), DType::BF16);
    assert!(close(half));

    let dir = tempfile::tempdir().unwrap();
    save_module(&full, &KeyRules::new(), dir.path(), &SaveOptions::default()).unwrap();
    let file = dir.path().join("model.safetensors");
    let quantised = config.with_quantization(Some(QuantFormat::Q8_0));
    let quantised = loaded(&quantised, &file, "", &device);
    let layer = &quantised.encoder.layers[1];
    assert_eq!(layer.mlp.fc1.weight.format(), Some(QuantFormat::Q8_0));
    assert_eq!(layer.mlp.fc2.weight.format(), None);
    assert!(close(quantised.encode(clip).unwrap()));
}
