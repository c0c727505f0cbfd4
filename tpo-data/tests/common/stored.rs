//! Tensors that the reference stored.

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;
use tpo_data::Frame;

pub fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&fixture(name)).unwrap()
}

/// A float tensor.
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

pub fn float(tensors: &SafeTensors, name: &str) -> Stored {
    let view = tensors.tensor(name).unwrap();
    Stored {
        shape: view.shape().to_vec(),
        values: view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
    }
}

/// Frames of a uint8 tensor `[frames, 3, height, width]`, every pixel repeated `zoom` times.
pub fn frames(tensors: &SafeTensors, name: &str, zoom: usize) -> Vec<Frame> {
    let view = tensors.tensor(name).unwrap();
    let &[_, 3, h, w] = view.shape() else {
        panic!("{:?}", view.shape());
    };
    view.data()
        .chunks_exact(3 * h * w)
        .map(|planes| {
            let (big_h, big_w) = (h * zoom, w * zoom);
            let mut out = vec![0; 3 * big_h * big_w];
            for (i, v) in out.iter_mut().enumerate() {
                let (y, x, c) = (i / (3 * big_w), i / 3 % big_w, i % 3);
                *v = planes[(c * h + y / zoom) * w + x / zoom];
            }
            Frame::from_rgb(big_w, big_h, out).unwrap()
        })
        .collect()
}
