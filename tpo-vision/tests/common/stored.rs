//! Tensors that the reference stored, and SigLIP's tower over them, written plainly.

use std::path::PathBuf;

use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tpo_core::ops::{gelu_tanh, layer_norm, softmax_last};

/// `NAME.json` and `NAME.safetensors` of the fixtures.
pub struct Stored {
    pub json: Value,
    bytes: Vec<u8>,
    device: Device,
}

impl Stored {
    pub fn open(name: &str, device: &Device) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let read = |suffix: &str| std::fs::read(dir.join(format!("{name}.{suffix}"))).unwrap();
        Self {
            json: serde_json::from_slice(&read("json")).unwrap(),
            bytes: read("safetensors"),
            device: device.clone(),
        }
    }

    pub fn tensor<const D: usize>(&self, key: &str) -> Tensor<D> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(key).unwrap();
        let values: Vec<f32> = match view.dtype() {
            Dtype::U8 => view.data().iter().map(|b| f32::from(*b)).collect(),
            Dtype::F32 => {
                let numbers = view.data().chunks_exact(4);
                let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
                numbers.map(number).collect()
            }
            other => panic!("{key} is {other:?}"),
        };
        Tensor::from_data(TensorData::new(values, view.shape()), &self.device)
    }

    /// Normalised pixels `[pictures, 3, side, side]` of a uint8 tensor.
    pub fn pixels(&self, key: &str) -> Tensor<4> {
        self.tensor::<4>(key) / 127.5 - 1.0
    }

    /// `||got - stored|| / ||stored||` is within `tolerance[class]`.
    pub fn assert_close<const D: usize>(&self, key: &str, got: Tensor<D>, class: &str) {
        let expected = self.tensor::<D>(key).inner();
        assert_eq!(got.dims(), expected.dims(), "{key}");
        let size = |x: Tensor<D>| x.square().sum().into_scalar::<f32>().sqrt();
        let error = size(got.inner() - expected.clone()) / size(expected).max(1e-7);
        let most = self.json["tolerance"][class].as_f64().unwrap() as f32;
        assert!(error <= most, "{key}: {error} > {most}");
    }

    /// SigLIP's features `[pictures, tokens, d]` of `[pictures, 3, side, side]`, weights under `prefix`.
    pub fn siglip(&self, prefix: &str, pixels: Tensor<4>) -> Tensor<3> {
        let config = &self.json["config"]["vision_config"];
        let number = |key: &str| config[key].as_u64().unwrap() as usize;
        let (heads, patch) = (number("num_attention_heads"), number("patch_size"));
        let vector = |key: &str| self.tensor::<1>(&format!("{prefix}.{key}"));
        let linear = |x: Tensor<3>, key: &str| {
            let weight = self.tensor::<2>(&format!("{prefix}.{key}.weight"));
            x.matmul(weight.transpose().unsqueeze()) + vector(&format!("{key}.bias")).unsqueeze()
        };
        let norm = |x: Tensor<3>, key: &str| {
            let bias = vector(&format!("{key}.bias"));
            layer_norm(x, vector(&format!("{key}.weight")), bias, 1e-6)
        };
        let kernel = self.tensor(&format!("{prefix}.embeddings.patch_embedding.weight"));
        let bias = vector("embeddings.patch_embedding.bias");
        let options = ConvOptions::new([patch; 2], [0; 2], [1; 2], 1);
        let map = conv2d(pixels, kernel, Some(bias), options);
        let [count, d, side, _] = map.dims();
        let positions = self.tensor::<2>(&format!("{prefix}.embeddings.position_embedding.weight"));
        let tokens = side * side;
        let mut x = map.reshape([count, d, tokens]).swap_dims(1, 2) + positions.unsqueeze();
        for layer in 0..number("num_hidden_layers") {
            let at = |key: &str| format!("encoder.layers.{layer}.{key}");
            let y = norm(x.clone(), &at("layer_norm1"));
            let [q, k, v] = ["q", "k", "v"].map(|name| {
                linear(y.clone(), &at(&format!("self_attn.{name}_proj")))
                    .reshape([count, tokens, heads, d / heads])
                    .swap_dims(1, 2)
            });
            let scores = q.matmul(k.swap_dims(2, 3)) * ((d / heads) as f32).powf(-0.5);
            let y = softmax_last(scores).matmul(v).swap_dims(1, 2);
            x = x + linear(y.reshape([count, tokens, d]), &at("self_attn.out_proj"));
            let y = linear(norm(x.clone(), &at("layer_norm2")), &at("mlp.fc1"));
            x = x + linear(gelu_tanh(y), &at("mlp.fc2"));
        }
        x
    }
}
