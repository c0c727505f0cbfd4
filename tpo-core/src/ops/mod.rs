//! The one place for hot tensor operations.
//!
//! Every function here is a plain function on [`Tensor`](burn::tensor::Tensor)s and means the same
//! on every device. On a CPU (flex) device the bodies run our own vectorised, multi-threaded
//! kernels on the tensor's storage, without copying it; with autodiff the same kernels record a
//! hand-written backward step. On every other device the function is composed of Burn operations,
//! so the kernels of the GPU backends apply, flash attention among them.
//!
//! Statistics (means, variances, soft-max sums) are taken in `f32` whatever the dtype.

mod activation;
mod adamw;
mod attention;
mod conv;
mod elementwise;
mod flex;
mod half;
mod host;
mod linear;
mod norm;
mod norm_backward;
mod patch_embed;
mod pool;
mod prelu;
mod resize;
mod rotary;
mod rows;
mod simd;
mod softmax;
mod together;

pub use activation::{gelu, gelu_tanh, silu, swiglu};
pub use adamw::{AdamWUpdate, adamw, sum_of_squares};
pub use attention::{AttentionOptions, WindowAttention, attention, window_attention};
pub use conv::{ConvShape, conv2d, up_conv_2x2};
pub use elementwise::add;
pub(crate) use flex::plain;
pub use host::{activation_dtype, floats, indices, to_f32};
pub use linear::{
    QuantFormat, blocks_linear, dequantize, dequantize_blocks, from_blocks, linear,
    quantized_linear, to_blocks,
};
pub use norm::{layer_norm, rms_norm};
pub use patch_embed::conv_patch_embed;
pub use pool::max_pool_2x2;
pub use prelu::prelu;
pub use resize::{Resize, bilinear_taps};
pub use rotary::{rotate_halves, rotate_pairs};
pub use softmax::softmax_last;
pub use together::together;
