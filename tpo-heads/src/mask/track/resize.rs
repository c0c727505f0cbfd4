//! Bilinear resizing of mask logits, as PyTorch's `interpolate` with `align_corners=False`.

use burn::tensor::{Device, Tensor};
use ndarray::Array2;
use rayon::prelude::*;
use tpo_core::geometry::Mask;
use tpo_core::ops::floats;

/// The two source pixels of every target pixel and the weight of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
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
        for (row, (a, b, t)) in matrix.chunks_exact_mut(from).zip(taps(from, to)) {
            row[a] += 1.0 - t;
            row[b] += t;
        }
    }
    matrix
}

/// A resize of maps between two fixed sizes on a device: two matrix products.
#[derive(Debug, Clone)]
pub struct Resize {
    /// `[1, height, from height]` and `[1, from width, width]`; absent when nothing changes.
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
            matrices: (from != to).then(|| (matrix(0), matrix(1).swap_dims(1, 2))),
        }
    }

    /// Maps `[n, from height, from width]` in f32.
    pub fn apply(&self, maps: Tensor<3>) -> Tensor<3> {
        match &self.matrices {
            None => maps,
            Some((rows, columns)) => rows.clone().matmul(maps.matmul(columns.clone())),
        }
    }
}

/// `[1, side, side]`: a mask as a prompt, 1 where the object is.
pub(in crate::mask) fn mask_prompt(mask: &Mask, side: usize, device: &Device) -> Tensor<3> {
    let (height, width) = mask.size();
    let values = mask.0.iter().map(|p| f32::from(u8::from(*p))).collect();
    let resize = Resize::new([height, width], [side; 2], true, device);
    let resized = resize.apply(floats(values, [1, height, width], device));
    resized.greater_equal_scalar(0.5).float()
}

/// Resizes one map on the host, without antialiasing. Both sizes are positive.
pub(crate) fn resize_host(map: &Array2<f32>, [height, width]: [usize; 2]) -> Array2<f32> {
    let (from_height, from_width) = map.dim();
    if (from_height, from_width) == (height, width) {
        return map.clone();
    }
    let (rows, columns) = (taps(from_height, height), taps(from_width, width));
    let mut out = vec![0.0f32; height * width];
    out.par_chunks_exact_mut(width)
        .zip(rows)
        .for_each(|(line, (a, b, t))| {
            let (upper, lower) = (map.row(a), map.row(b));
            for (value, &(c, d, s)) in line.iter_mut().zip(&columns) {
                let top = upper[c] * (1.0 - s) + upper[d] * s;
                let bottom = lower[c] * (1.0 - s) + lower[d] * s;
                *value = top * (1.0 - t) + bottom * t;
            }
        });
    // The length is right by construction.
    Array2::from_shape_vec((height, width), out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_by_hand() {
        let map = Array2::from_shape_vec((1, 2), vec![0.0, 4.0]).unwrap();
        let out = resize_host(&map, [1, 4]);
        assert_eq!(out.into_raw_vec_and_offset().0, [0.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn device_and_host_agree() {
        let map = Array2::from_shape_fn((5, 7), |(y, x)| ((y * 7 + x) as f32).sin());
        let device = Device::flex();
        let tensor = Tensor::<1>::from_floats(map.as_slice().unwrap(), &device).reshape([1, 5, 7]);
        for to in [[5, 7], [12, 3], [3, 20], [1, 1]] {
            let host = resize_host(&map, to);
            let there: Vec<f32> = Resize::new([5, 7], to, false, &device)
                .apply(tensor.clone())
                .into_data()
                .try_into_vec()
                .unwrap();
            for (a, b) in host.iter().zip(there) {
                assert!((a - b).abs() < 1e-5, "{to:?}: {a} {b}");
            }
        }
    }

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
