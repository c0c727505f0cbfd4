//! Operations of one input that do not wait for each other.

use burn::tensor::{Device, Tensor};

/// Multiply-adds for which it pays that another thread wakes.
const SMALL: usize = 1 << 16;
/// Rows up to which it pays to begin both at once: with more each fills all threads for long.
const FEW: usize = 32;

/// Runs `first` and `second` on the same input `[.., d_in]`. With few rows on the CPU they run at the same
/// time, and threads meet once for both rather than once for each; elsewhere, and with autodiff, one after
/// the other. The results are the same.
///
/// `weights` counts the elements that the smaller of them multiplies each row with.
pub fn together<A: Send, B: Send, const D: usize>(
    x: Tensor<D>,
    weights: usize,
    first: impl FnOnce(Tensor<D>) -> A + Send,
    second: impl FnOnce(Tensor<D>) -> B + Send,
) -> (A, B) {
    let rows: usize = x.dims()[..D - 1].iter().product();
    let pays = rows <= FEW && rows * weights >= SMALL;
    let other = x.clone();
    if pays && x.device() == Device::flex() {
        rayon::join(|| first(x), || second(other))
    } else {
        (first(x), second(other))
    }
}
