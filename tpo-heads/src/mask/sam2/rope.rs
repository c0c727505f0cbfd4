//! Rotary positions on two axes.

use burn::tensor::{Device, Tensor};
use tpo_core::ops::{self, floats};

/// Rotations of the pixels of a grid: the first half of a head's pairs turns with the column, the
/// second with the row. Tables are f32 whatever the dtype of the model: positions beyond 256 are
/// not representable in bfloat16.
#[derive(Debug, Clone)]
pub struct AxialRope {
    /// `[height·width, head_dim / 2]`.
    cos: Tensor<2>,
    /// The same shape.
    sin: Tensor<2>,
}

impl AxialRope {
    /// Tables for a grid; `head_dim` is a multiple of 4. `theta` is the base of the frequencies,
    /// 10 000 in SAM 2.
    pub fn new([height, width]: [usize; 2], head_dim: usize, theta: f64, device: &Device) -> Self {
        let quarter = head_dim / 4;
        let frequencies: Vec<f64> = (0..quarter)
            .map(|i| theta.powf(-4.0 * i as f64 / head_dim as f64))
            .collect();
        let shape = [height * width, 2 * quarter];
        let mut cos = Vec::with_capacity(shape[0] * shape[1]);
        let mut sin = Vec::with_capacity(shape[0] * shape[1]);
        for row in 0..height {
            for column in 0..width {
                for position in [column, row] {
                    for frequency in &frequencies {
                        let angle = position as f64 * frequency;
                        cos.push(angle.cos() as f32);
                        sin.push(angle.sin() as f32);
                    }
                }
            }
        }
        let device = device.clone().inner();
        let table = |values| floats(values, shape, &device);
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Pixels of the grid.
    pub fn len(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Whether the grid has no pixel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turns the pairs of neighbouring channels of the first `rotated` tokens, `[batch, tokens,
    /// heads, head_dim]`; token `i` stands at pixel `i` modulo the size of the grid.
    pub fn rotate(&self, x: Tensor<4>, rotated: usize) -> Tensor<4> {
        ops::rotate_pairs(x, self.cos.clone(), self.sin.clone(), rotated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_turn_the_first_half_and_rows_the_second() {
        let device = Device::flex();
        let rope = AxialRope::new([2, 3], 4, 10_000.0, &device);
        // Pixel 5 is row 1, column 2; with four channels both frequencies are 1.
        let x = Tensor::<4>::from_data([[[[1.0f32, 0.0, 1.0, 0.0]]]], &device).expand([1, 7, 1, 4]);
        let y: Vec<f32> = rope.rotate(x, 6).into_data().iter::<f32>().collect();
        let expected = [
            2f32.cos(),
            2f32.sin(),
            1f32.cos(),
            1f32.sin(),
            // Token 6 has no position.
            1.0,
            0.0,
            1.0,
            0.0,
        ];
        for (y, expected) in y[20..].iter().zip(expected) {
            assert!((y - expected).abs() < 1e-6, "{y} {expected}");
        }
    }

    #[test]
    fn a_second_grid_repeats_the_positions() {
        let device = Device::flex();
        let rope = AxialRope::new([2, 2], 8, 10_000.0, &device);
        let grid = Tensor::<4>::random([1, 4, 2, 8], burn::tensor::Distribution::Default, &device);
        let twice = rope.rotate(Tensor::cat(vec![grid.clone(), grid.clone()], 1), 8);
        let once = rope.rotate(grid, 4);
        for half in [0, 4] {
            twice
                .clone()
                .narrow(1, half, 4)
                .into_data()
                .assert_eq(&once.to_data(), true);
        }
    }
}
