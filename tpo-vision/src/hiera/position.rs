//! Position encodings of the image encoder.

use burn::tensor::{Device, Tensor};
use tpo_core::ops::floats;

use crate::umt::position::{cubic_taps, sines};

/// Keeps the normalisation finite (reference implementation).
const EPS: f64 = 1e-6;

/// Sine encoding of pixel positions, `[1, height, width, channels]` in f32: the first half of the
/// channels encodes the row, the second the column, sines and cosines alternating. Positions count
/// from 1 and are normalised to 2π at the last row or column.
///
/// `channels` is a multiple of 4.
pub fn sine_encoding(height: usize, width: usize, channels: usize, device: &Device) -> Tensor<4> {
    let (rows, columns) = (line(height, channels / 2), line(width, channels / 2));
    let mut values = Vec::with_capacity(height * width * channels);
    for row in rows.chunks_exact((channels / 2).max(1)) {
        for column in columns.chunks_exact((channels / 2).max(1)) {
            values.extend_from_slice(row);
            values.extend_from_slice(column);
        }
    }
    floats(values, [1, height, width, channels], device)
}

/// `[length, width]`: the encoding of positions along one axis.
fn line(length: usize, width: usize) -> Vec<f32> {
    let scale = 2.0 * std::f64::consts::PI / (length as f64 + EPS);
    sines((1..=length).map(|position| position as f64 * scale), width)
}

/// The learned tables spread over a grid: `background` `[1, channels, bh, bw]` resized bicubically,
/// plus `window` `[1, channels, side, side]` repeated. Output `[1, height, width, channels]`;
/// `side` divides both sides of the grid. Differentiable in both tables.
pub(super) fn windowed_table(
    background: Tensor<4>,
    window: Tensor<4>,
    [height, width]: [usize; 2],
) -> Tensor<4> {
    let [_, channels, from_height, from_width] = background.dims();
    let side = window.dims()[2];
    let device = background.device();
    let dtype = background.dtype();
    let weights = |from: usize, to: usize| {
        let mut matrix = vec![0.0f32; to * from];
        for (row, taps) in matrix.chunks_exact_mut(from).zip(cubic_taps(from, to)) {
            for (at, weight) in taps {
                row[at] += weight as f32;
            }
        }
        floats(matrix, [to, from], &device).cast(dtype)
    };
    // Rows first: [bh, bw·channels] to [height, bw·channels], then every row's columns.
    let table = background
        .permute([0, 2, 3, 1])
        .reshape([from_height, from_width * channels]);
    let table = weights(from_height, height)
        .matmul(table)
        .reshape([height, from_width, channels]);
    let table = weights(from_width, width)
        .unsqueeze::<3>()
        .expand([height, width, from_width])
        .matmul(table);
    let window = window
        .permute([0, 2, 3, 1])
        .reshape([1, side, 1, side, channels]);
    (table.reshape([height / side, side, width / side, side, channels]) + window)
        .reshape([1, height, width, channels])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_encoding_by_hand() {
        // Two channels per axis: sin and cos of 2π·position/length.
        let values: Vec<f32> = sine_encoding(4, 2, 4, &Device::flex())
            .into_data()
            .iter::<f32>()
            .collect();
        // Row 1 of 4: 2π/4; column 2 of 2: 2π.
        let expected = [1.0, 0.0, 0.0, 1.0];
        for (value, expected) in values[4..8].iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{values:?}");
        }
    }

    #[test]
    fn tables_of_their_own_size_are_added() {
        let device = Device::flex();
        let background = Tensor::<1, burn::tensor::Int>::arange(0..8, &device)
            .float()
            .reshape([1, 2, 2, 2]);
        let window = Tensor::<4>::ones([1, 2, 2, 2], &device) * 10.0;
        let table = windowed_table(background, window, [2, 2]);
        let values: Vec<f32> = table.into_data().iter::<f32>().collect();
        // Channels-last: pixel 0 holds elements 0 and 4 of the table.
        for (value, expected) in values.iter().zip([10, 14, 11, 15, 12, 16, 13, 17]) {
            assert!((value - expected as f32).abs() < 1e-5, "{values:?}");
        }
    }
}
