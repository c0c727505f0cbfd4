//! Rotary position embedding, rotate-half form.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

/// Cosines and sines for the positions of one forward pass, in f32.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[rows, 1, length, head_dim]`, `rows` 1 when every row has the same positions.
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    /// Tables for positions `[rows][length]`; one row serves every sample.
    ///
    /// Frequencies are `theta^(-2i / head_dim)`, angles are taken in f32 as PyTorch does.
    pub fn new(positions: &[Vec<usize>], head_dim: usize, theta: f64, device: &Device) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32)
            .collect();
        let rows = positions.len();
        let length = positions.first().map_or(0, Vec::len);
        let mut cos = Vec::with_capacity(rows * length * head_dim);
        let mut sin = Vec::with_capacity(rows * length * head_dim);
        for p in positions.iter().flatten() {
            let start = cos.len();
            for f in &frequencies {
                let (s, c) = (*p as f32 * f).sin_cos();
                cos.push(c);
                sin.push(s);
            }
            cos.extend_from_within(start..);
            sin.extend_from_within(start..);
        }
        let table = |v: Vec<f32>| {
            Tensor::from_data(TensorData::new(v, [rows, 1, length, head_dim]), device)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Rotates `[batch, heads, length, head_dim]`, in f32, and casts back.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let [b, h, s, d] = x.dims();
        let x = x.cast(FloatDType::F32);
        let first = x.clone().slice([0..b, 0..h, 0..s, 0..d / 2]);
        let second = x.clone().slice([0..b, 0..h, 0..s, d / 2..d]);
        let rotated = Tensor::cat(vec![second.neg(), first], 3);
        (x * self.cos.clone() + rotated * self.sin.clone()).cast(dtype)
    }
}
