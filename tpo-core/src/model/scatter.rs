//! Writing embeddings into slots of a sequence, with gradients to the written rows.

use burn::tensor::Tensor;

use crate::error::{CoreError, Result};
use crate::ops::indices;

/// Rows to write and where.
#[derive(Debug)]
pub struct Slot {
    what: String,
    at: Vec<usize>,
    rows: Tensor<2>,
    repeated: bool,
}

impl Slot {
    /// `rows` `[at.len(), d]` go to the flat positions `at`, in order.
    pub fn new(what: impl Into<String>, at: Vec<usize>, rows: Tensor<2>) -> Self {
        Self {
            what: what.into(),
            at,
            rows,
            repeated: false,
        }
    }

    /// The one row `[1, d]` goes to every position of `at`.
    pub fn repeated(what: impl Into<String>, at: Vec<usize>, row: Tensor<2>) -> Self {
        Self {
            what: what.into(),
            at,
            rows: row,
            repeated: true,
        }
    }
}

/// Replaces rows of `base` `[batch, length, d]`; every other row stays as it is. Where slots
/// overlap the later one wins.
///
/// One gather from the concatenation of `base` and all rows, so the cost does not grow with the
/// number of slots and gradients reach each written row (repeated rows sum theirs).
pub fn scatter_rows(base: Tensor<3>, slots: Vec<Slot>) -> Result<Tensor<3>> {
    let [b, s, d] = base.dims();
    if slots.is_empty() {
        return Ok(base);
    }
    let mut source: Vec<usize> = (0..b * s).collect();
    let mut pieces = vec![base.clone().reshape([b * s, d])];
    let mut next = b * s;
    for slot in slots {
        let [rows, width] = slot.rows.dims();
        if width != d || (!slot.repeated && rows != slot.at.len()) || (slot.repeated && rows != 1) {
            return Err(CoreError::SlotCount {
                what: if width == d {
                    slot.what
                } else {
                    format!("{} (rows of width {width}, the model has {d})", slot.what)
                },
                slots: slot.at.len(),
                found: rows,
            });
        }
        for (i, at) in slot.at.iter().enumerate() {
            let Some(place) = source.get_mut(*at) else {
                return Err(CoreError::Shape {
                    place: "scatter_rows",
                    what: "slot position",
                    expected: format!("below {}", b * s),
                    found: vec![*at],
                });
            };
            *place = next + if slot.repeated { 0 } else { i };
        }
        pieces.push(slot.rows);
        next += rows;
    }
    let device = base.device();
    Ok(Tensor::cat(pieces, 0)
        .select(0, indices(source, &device))
        .reshape([b, s, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
        t.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn only_the_slots_change() {
        let device = Device::flex();
        let base: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let base = Tensor::<3>::from_data(TensorData::new(base, [2, 3, 2]), &device);
        let rows = Tensor::<2>::from_data([[100.0, 101.0], [102.0, 103.0]], &device);
        let one = Tensor::<2>::from_data([[7.0, 8.0]], &device);
        let out = scatter_rows(
            base,
            vec![
                Slot::new("rows", vec![1, 5], rows),
                Slot::repeated("one", vec![0, 3], one),
            ],
        )
        .unwrap();
        assert_eq!(
            values(out),
            [
                7.0, 8.0, 100.0, 101.0, 4.0, 5.0, 7.0, 8.0, 8.0, 9.0, 102.0, 103.0
            ]
        );
    }

    #[test]
    fn gradients_reach_the_rows_and_sum_over_repeats() {
        let device = Device::flex().autodiff();
        let base = Tensor::<3>::zeros([1, 3, 1], &device).require_grad();
        let one = Tensor::<2>::from_data([[2.0]], &device).require_grad();
        let out = scatter_rows(
            base.clone(),
            vec![Slot::repeated("one", vec![0, 2], one.clone())],
        )
        .unwrap();
        let scale = Tensor::<3>::from_data([[[1.0], [10.0], [100.0]]], &device);
        let grads = (out * scale).sum().backward();
        assert_eq!(values(one.grad(&grads).unwrap()), [101.0]);
        assert_eq!(values(base.grad(&grads).unwrap()), [0.0, 10.0, 0.0]);
    }

    #[test]
    fn counts_and_widths_are_checked() {
        let device = Device::flex();
        let base = Tensor::<3>::zeros([1, 3, 2], &device);
        let rows = Tensor::<2>::zeros([1, 2], &device);
        let two = vec![Slot::new("x", vec![0, 1], rows.clone())];
        assert!(scatter_rows(base.clone(), two).is_err());
        let outside = vec![Slot::new("x", vec![3], rows)];
        assert!(scatter_rows(base.clone(), outside).is_err());
        let wide = vec![Slot::new("x", vec![0], Tensor::zeros([1, 5], &device))];
        assert!(scatter_rows(base, wide).is_err());
    }
}
