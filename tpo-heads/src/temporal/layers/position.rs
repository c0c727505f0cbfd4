//! Sine embeddings of time.

use std::f64::consts::TAU;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use tpo_core::ops::floats;

/// Base of the frequencies (reference implementation).
const TEMPERATURE: f64 = 10_000.0;

/// Divisors `10000^(2·(j / 2) / width)` of the angles.
fn divisors(width: usize) -> impl Iterator<Item = f64> {
    (0..width).map(move |j| TEMPERATURE.powf((2 * (j / 2)) as f64 / width as f64))
}

/// Embeddings of clip positions `[batch, rows, width]`.
///
/// Clip `i` of `n` stands at `2π·(i + 1) / (n + 1e-6)`; padding stands where the last clip does.
pub(in crate::temporal) fn sine_positions(
    lengths: &[usize],
    rows: usize,
    width: usize,
    device: &Device,
    dtype: DType,
) -> Tensor<3> {
    let divisors: Vec<f64> = divisors(width).collect();
    let mut table = Vec::with_capacity(lengths.len() * rows * width);
    for &length in lengths {
        for row in 0..rows {
            let at = (row + 1).min(length) as f64 / (length as f64 + 1e-6) * TAU;
            for (j, divisor) in divisors.iter().enumerate() {
                let angle = at / divisor;
                table.push(if j % 2 == 0 { angle.sin() } else { angle.cos() } as f32);
            }
        }
    }
    floats(table, [lengths.len(), rows, width], device).cast(dtype)
}

/// Embeddings of spans (centre, width), both 0–1: `[batch, queries, 2]` to
/// `[batch, queries, width]`, the half of the centre first.
pub(in crate::temporal) fn sine_spans(spans: Tensor<3>, width: usize) -> Tensor<3> {
    let [batch, queries, _] = spans.dims();
    let device = spans.device();
    let dtype = spans.dtype();
    let half = width / 2;
    // The cosine is a shifted sine; one factor and one shift per column.
    let factors: Vec<f32> = divisors(half).map(|d| (TAU / d) as f32).collect();
    let shifts: Vec<f32> = (0..half)
        .map(|j| {
            if j % 2 == 0 {
                0.0
            } else {
                std::f32::consts::FRAC_PI_2
            }
        })
        .collect();
    let row = |values: Vec<f32>| floats(values, [1, 1, 1, half], &device);
    let angles =
        spans.cast(FloatDType::F32).reshape([batch, queries, 2, 1]) * row(factors) + row(shifts);
    angles.sin().reshape([batch, queries, width]).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_by_hand_and_padding_repeats_the_last() {
        let device = Device::flex();
        let table = sine_positions(&[2], 3, 4, &device, DType::F32);
        let got: Vec<f32> = table.into_data().iter::<f32>().collect();
        // Position 1 of 2 is π, position 2 is 2π; the divisors are 1, 1, 100, 100.
        let pi = std::f32::consts::PI;
        let expected = [
            [0.0, -1.0, (pi / 100.0).sin(), (pi / 100.0).cos()],
            [0.0, 1.0, (pi / 50.0).sin(), (pi / 50.0).cos()],
        ];
        for (g, e) in got.iter().zip(expected.iter().flatten()) {
            assert!((g - e).abs() < 1e-5, "{got:?}");
        }
        assert_eq!(got[4..8], got[8..12]);
    }

    #[test]
    fn spans_by_hand() {
        let device = Device::flex();
        let spans = Tensor::<3>::from_data([[[0.25f32, 0.5]]], &device);
        let got: Vec<f32> = sine_spans(spans, 4).into_data().iter::<f32>().collect();
        // Angles π/2 and π.
        for (g, e) in got.iter().zip([1.0, 0.0, 0.0, -1.0]) {
            assert!((g - e).abs() < 1e-5, "{got:?}");
        }
    }
}
