//! Bilinear resizing of maps, as PyTorch's `interpolate` with `align_corners=False`.

use burn::tensor::{Device, Tensor};

use super::floats;

/// The two source pixels of every target pixel and the weight of the second. Both lengths are positive.
pub fn bilinear_taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let source = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
            let first = (source as usize).min(from - 1);
            let second = (first + 1).min(from - 1);
            (first, second, source - first as f32)
        })
        .collect()
}

/// Weights `[to, from]` of a resize of one axis. With `antialias` the triangle widens with the
/// reduction (PyTorch's `antialias=True`).
fn weights(from: usize, to: usize, antialias: bool) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    if antialias && from > to {
        let scale = from as f64 / to as f64;
        for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
            let centre = scale * (i as f64 + 0.5);
            let first = (centre - scale + 0.5).max(0.0) as usize;
            let end = ((centre + scale + 0.5) as usize).min(from);
            let raw: Vec<f64> = (first..end)
                .map(|j| (1.0 - ((j as f64 - centre + 0.5) / scale).abs()).max(0.0))
                .collect();
            let sum: f64 = raw.iter().sum();
            for (j, weight) in raw.into_iter().enumerate() {
                row[first + j] = (weight / sum) as f32;
            }
        }
    } else {
        for (row, (a, b, t)) in matrix.chunks_exact_mut(from).zip(bilinear_taps(from, to)) {
            row[a] += 1.0 - t;
            row[b] += t;
        }
    }
    matrix
}

/// A resize of maps between two fixed sizes on a device: two matrix products.
#[derive(Debug, Clone)]
pub struct Resize {
    /// `[1, height, from height]` and `[1, width, from width]`; absent when nothing changes.
    matrices: Option<(Tensor<3>, Tensor<3>)>,
}

impl Resize {
    /// From and to `[height, width]`, all positive. With `antialias` a reduction averages, as
    /// PyTorch's `antialias=True`.
    pub fn new(from: [usize; 2], to: [usize; 2], antialias: bool, device: &Device) -> Self {
        let matrix = |axis: usize| {
            let values = weights(from[axis], to[axis], antialias);
            floats(values, [1, to[axis], from[axis]], device)
        };
        Self {
            matrices: (from != to).then(|| (matrix(0), matrix(1))),
        }
    }

    /// Maps `[n, from height, from width]` in f32.
    pub fn apply(&self, maps: Tensor<3>) -> Tensor<3> {
        match &self.matrices {
            None => maps,
            Some((rows, columns)) => {
                let columns = columns.clone().swap_dims(1, 2);
                rows.clone().matmul(maps.matmul(columns))
            }
        }
    }

    /// Maps `[n, from height, from width, channels]` in f32.
    pub fn apply_channels_last(&self, maps: Tensor<4>) -> Tensor<4> {
        let Some((rows, columns)) = &self.matrices else {
            return maps;
        };
        let [n, from_height, from_width, channels] = maps.dims();
        let ([_, height, _], [_, width, _]) = (rows.dims(), columns.dims());
        let maps = maps.reshape([n, from_height, from_width * channels]);
        let maps = rows.clone().matmul(maps);
        let maps = maps.reshape([n * height, from_width, channels]);
        let maps = columns.clone().matmul(maps);
        maps.reshape([n, height, width, channels])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn antialiasing_averages() {
        // Four to two: the triangle reaches from -1 to 3 around 1: weights 3/7, 3/7, 1/7, and the
        // mirror image.
        let expected = [3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0, 0.0f32];
        let found = weights(4, 2, true);
        for (i, e) in expected.iter().enumerate() {
            assert!((found[i] - e).abs() < 1e-6, "{found:?}");
            assert!((found[7 - i] - e).abs() < 1e-6, "{found:?}");
        }
        // Enlarging needs none.
        assert_eq!(weights(2, 5, true), weights(2, 5, false));
    }
}
