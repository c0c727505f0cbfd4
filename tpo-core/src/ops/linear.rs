//! Affine maps of the last axis.

use burn::tensor::Tensor;

/// `x · weight + bias` over the last axis.
///
/// The weight has Burn's layout; a weight stored as PyTorch does, `[d_out, d_in]`, is passed as
/// its transposed view, which is free and the faster storage for few rows.
///
/// # Shapes
/// - `x` `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`
/// - output `[.., d_out]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let [d_in, d_out] = weight.dims();
    assert_eq!(
        dims[D - 1],
        d_in,
        "linear: last axis of the input and rows of the weight differ"
    );
    let rows = dims[..D - 1].iter().product::<usize>();
    dims[D - 1] = d_out;
    let out = x.reshape([rows, d_in]).matmul(weight);
    let out = match bias {
        Some(bias) => out + bias.unsqueeze(),
        None => out,
    };
    out.reshape(dims)
}
