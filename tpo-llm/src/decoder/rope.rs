//! Rotary position embedding, rotate-half form.

use burn::tensor::{Device, Tensor};
use tpo_core::ops::{self, floats};

/// Cosines and sines for the positions of one forward pass, in f32.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[rows, length, head_dim / 2]`, `rows` 1 when every row has the same positions.
    cos: Tensor<3>,
    /// The same shape.
    sin: Tensor<3>,
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
        let angles = positions.iter().flatten().flat_map(|position| {
            let position = *position as f32;
            frequencies
                .iter()
                .map(move |frequency| position * frequency)
        });
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        let device = device.clone().inner();
        let table = |values: Vec<f32>| floats(values, [rows, length, half], &device);
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Rotates `[batch, heads, length, head_dim]`, in f32, and casts back.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rotate_halves(x, self.cos.clone(), self.sin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last of Qwen2's positions turns by the angle that PyTorch takes, in f32; the tables have a row
    /// for each position of the pass and none for those before.
    #[test]
    fn far_positions_need_no_rows_before_them() {
        let (position, width, theta) = (32_767, 128, 1e6);
        let rope = Rope::new(&[vec![position]], width, theta, &Device::flex());
        assert_eq!(rope.cos.dims(), [1, 1, width / 2]);
        let one = [vec![1.0f32; width / 2], vec![0.0; width / 2]].concat();
        let turned = rope.apply(floats(one, [1, 1, 1, width], &Device::flex()));
        let turned: Vec<f32> = turned.into_data().try_into_vec().unwrap();
        for i in 0..width / 2 {
            let frequency = theta.powf(-2.0 * i as f64 / width as f64) as f32;
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            assert!((f64::from(turned[i]) - cos).abs() < 1e-6, "{i}");
            assert!((f64::from(turned[i + width / 2]) - sin).abs() < 1e-6, "{i}");
        }
    }
}
