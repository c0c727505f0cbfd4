//! Masks as prompts, and mask logits resized on the host.

use burn::tensor::{Device, Tensor};
use ndarray::Array2;
use rayon::prelude::*;
use tpo_core::geometry::Mask;
use tpo_core::ops::{Resize, bilinear_taps, floats};

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
    let (rows, columns) = (
        bilinear_taps(from_height, height),
        bilinear_taps(from_width, width),
    );
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
}
