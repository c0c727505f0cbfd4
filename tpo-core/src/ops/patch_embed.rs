//! Patch embedding: a 3-D convolution whose kernel equals its stride.

use burn::tensor::Tensor;

use super::linear;

/// Cuts a video into non-overlapping tubelets and projects each to a token; equal to a 3-D
/// convolution with `stride = kernel` followed by flattening. Trailing frames, rows and columns
/// that do not fill a tubelet are dropped, as the convolution does.
///
/// # Shapes
/// - `x` `[batch, channels, frames, height, width]`
/// - `weight` `[dim, channels, kt, kh, kw]`, `bias` `[dim]`
/// - output `[batch, tokens, dim]`, tokens ordered time slowest, then rows, then columns
pub fn conv_patch_embed(x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let [batch, channels, frames, height, width] = x.dims();
    let [dim, channels_w, kt, kh, kw] = weight.dims();
    assert_eq!(
        channels, channels_w,
        "conv_patch_embed: channels of the input and of the weight differ"
    );
    let (t, h, w) = (frames / kt, height / kh, width / kw);
    let x = if (t * kt, h * kh, w * kw) == (frames, height, width) {
        x
    } else {
        x.slice([0..batch, 0..channels, 0..t * kt, 0..h * kh, 0..w * kw])
    };
    let size = channels * kt * kh * kw;
    // [batch, c, t, kt, h, kh, w, kw] -> [batch, t, h, w, c, kt, kh, kw]
    let patches = x
        .reshape([batch, channels, t, kt, h, kh, w, kw])
        .permute([0, 2, 4, 6, 1, 3, 5, 7])
        .reshape([batch, t * h * w, size]);
    linear(patches, weight.reshape([dim, size]).transpose(), bias)
}
