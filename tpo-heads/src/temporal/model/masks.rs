//! Masks from lengths, which stay on the host.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

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
    Tensor::<2>::from_data(TensorData::new(flat, shape), (device, DType::F32)).cast(dtype)
}
