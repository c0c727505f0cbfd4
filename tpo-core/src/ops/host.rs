//! Tensors of values that were computed on the host, and of another precision.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

/// `values` in `f32`, whatever the device's own float type.
pub fn floats<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Row numbers, to select or to look up with.
pub fn indices(rows: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// The float type to compute in with such parameters: `f32` on the CPU, whose kernels widen
/// half-precision weights while they use them but convert half-precision activations before and after
/// every operation; elsewhere the parameter's own.
pub fn activation_dtype<const D: usize>(parameter: &Tensor<D>) -> DType {
    if parameter.device() == Device::flex() {
        DType::F32
    } else {
        parameter.dtype()
    }
}

/// Widens half precision to `f32`; `f32` and `f64` stay.
pub fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}
