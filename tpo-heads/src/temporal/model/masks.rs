//! Masks from lengths, which stay on the host.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use tpo_core::ops::floats;

/// `[batch, front + rows]`, `true` where a row is padding; the `front` first columns are real.
pub(in crate::temporal) fn padding(
    lengths: &[usize],
    front: usize,
    rows: usize,
    device: &Device,
) -> Tensor<2, Bool> {
    let width = front + rows;
    let flat: Vec<bool> = lengths
        .iter()
        .flat_map(|length| (0..width).map(move |at| at >= front + length))
        .collect();
    Tensor::from_data(TensorData::new(flat, [lengths.len(), width]), device)
}

/// `[batch, rows]`, 1 where a row is real and 0 where it is padding.
pub(in crate::temporal) fn mask(
    lengths: &[usize],
    rows: usize,
    device: &Device,
    dtype: DType,
) -> Tensor<2> {
    let flat: Vec<f32> = lengths
        .iter()
        .flat_map(|length| (0..rows).map(move |at| (at < *length) as u8 as f32))
        .collect();
    let shape = [lengths.len(), rows];
    floats(flat, shape, device).cast(dtype)
}

/// Which text keys are hidden from which clips, for [`TextKeys`](super::TextKeys).
pub(in crate::temporal) struct KeyMask<'a> {
    /// Real clips per sample.
    pub(in crate::temporal) clips: &'a [usize],
    /// Real tokens per sample.
    pub(in crate::temporal) tokens: &'a [usize],
    /// Padded clips and tokens.
    pub(in crate::temporal) padded: [usize; 2],
    pub(in crate::temporal) dummies: usize,
    pub(in crate::temporal) heads: usize,
    /// See [`CgDetrConfig::crossed_masks`](super::CgDetrConfig::crossed_masks).
    pub(in crate::temporal) crossed: bool,
}

impl KeyMask<'_> {
    /// `[batch, 1, 1, keys]`, or `[batch, heads, clips, keys]` where masks are crossed.
    pub(in crate::temporal) fn tensor(&self, device: &Device) -> Tensor<4, Bool> {
        let batch = self.clips.len();
        let [clips, tokens] = self.padded;
        let keys = self.dummies + tokens;
        let hides = |b: usize, key: usize| key >= self.dummies + self.tokens[b];
        // Only a sample with padding on both sides has pairs of padding that could be misplaced.
        let both = |b: usize| self.clips[b] < clips && self.tokens[b] < tokens;
        let mut flat = Vec::new();
        let shape = if self.crossed && batch > 1 && (0..batch).any(both) {
            for b in 0..batch {
                for head in 0..self.heads {
                    let other = (b * self.heads + head) % batch;
                    for clip in 0..clips {
                        let beyond = clip >= self.clips[other];
                        flat.extend(
                            (0..keys).map(|key| hides(b, key) || (beyond && hides(other, key))),
                        );
                    }
                }
            }
            [batch, self.heads, clips, keys]
        } else {
            (0..batch).for_each(|b| flat.extend((0..keys).map(|key| hides(b, key))));
            [batch, 1, 1, keys]
        };
        Tensor::from_data(TensorData::new(flat, shape), device)
    }
}
