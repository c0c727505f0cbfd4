//! Small checkpoints built byte by byte, and a module that fits them.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor};
use serde_json::{Value, json};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};

/// A file with the given header text and data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// A tensor for [`checkpoint`].
pub struct T<'a>(pub &'a str, pub &'a str, pub &'a [usize]);

/// A file with these tensors; element `i` of a tensor with `n` bytes per element is the byte `i`
/// repeated, so values are known and distinct.
pub fn checkpoint(tensors: &[T<'_>]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for T(key, dtype, shape) in tensors {
        let width = match *dtype {
            "BF16" | "F16" => 2,
            "F32" | "I32" => 4,
            "I64" => 8,
            "U8" | "F8_E4M3" | "BOOL" => 1,
            other => panic!("width of {other}"),
        };
        let begin = data.len();
        for i in 0..shape.iter().product::<usize>() {
            match *dtype {
                "F32" => data.extend((i as f32).to_le_bytes()),
                "BF16" => data.extend(half::bf16::from_f32(i as f32).to_le_bytes()),
                "I64" => data.extend((i as i64).to_le_bytes()),
                _ => data.extend(vec![(i % 2) as u8; width]),
            }
        }
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(key.to_string(), entry);
    }
    file(&Value::Object(header).to_string(), &data)
}

pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// An index that places keys in shards.
pub fn write_index(dir: &Path, places: &[(&str, &str)]) -> PathBuf {
    let map: serde_json::Map<String, Value> = places
        .iter()
        .map(|(k, s)| (k.to_string(), json!(s)))
        .collect();
    let text = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    write(dir, "model.safetensors.index.json", text.as_bytes())
}

/// A block with a float matrix, vectors and an integer buffer.
#[derive(Module, Debug)]
pub struct Block {
    pub norm: LayerNorm,
    pub fc: Linear,
    pub ids: Param<Tensor<2, Int>>,
}

/// Blocks in a list.
#[derive(Module, Debug)]
pub struct Net {
    pub blocks: Vec<Block>,
    pub token: Param<Tensor<3>>,
}

impl Net {
    pub fn new(device: &Device) -> Self {
        Self {
            blocks: (0..2)
                .map(|_| Block {
                    norm: LayerNormConfig::new(2).init(device),
                    fc: LinearConfig::new(2, 3).init(device),
                    ids: Param::uninitialized(
                        ParamId::new(),
                        |device, _| Tensor::zeros([1, 4], device),
                        device.clone(),
                        false,
                        [1, 4].into(),
                    ),
                })
                .collect(),
            token: Param::uninitialized(
                ParamId::new(),
                |device, grad| Tensor::zeros([1, 1, 2], device).set_require_grad(grad),
                device.clone(),
                true,
                [1, 1, 2].into(),
            ),
        }
    }
}

/// The tensors of [`Net`] under its own names.
pub const NET: &[T<'static>] = &[
    T("blocks.0.fc.bias", "BF16", &[3]),
    T("blocks.0.fc.weight", "BF16", &[3, 2]),
    T("blocks.0.ids", "I64", &[1, 4]),
    T("blocks.0.norm.bias", "BF16", &[2]),
    T("blocks.0.norm.weight", "BF16", &[2]),
    T("blocks.1.fc.bias", "BF16", &[3]),
    T("blocks.1.fc.weight", "F32", &[3, 2]),
    T("blocks.1.ids", "I64", &[1, 4]),
    T("blocks.1.norm.bias", "BF16", &[2]),
    T("blocks.1.norm.weight", "BF16", &[2]),
    T("token", "BF16", &[1, 1, 2]),
];

/// [`NET`] with one tensor replaced, or removed.
pub fn net_with<'a>(key: &str, replacement: Option<T<'a>>) -> Vec<T<'a>> {
    let mut out: Vec<T<'a>> = NET
        .iter()
        .filter(|t| t.0 != key)
        .map(|t| T(t.0, t.1, t.2))
        .collect();
    out.extend(replacement);
    out
}
