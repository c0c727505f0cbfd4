//! Parameter-holding layers in PyTorch's layout and under PyTorch's names.
//!
//! A checkpoint key and the path of the parameter in the module tree are the same words
//! (`norm1.weight`, `fc1.bias`), and a linear weight is `[d_out, d_in]` in memory as it is in the
//! file. Nothing is transposed while loading or saving, and gradients compare directly with
//! PyTorch's.

mod attention;
mod conv;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod parts;
mod quantized_weight;
mod weight;

pub use attention::{attention_with_dropout, drops, merge_heads, split_heads};
pub use conv::{Conv2d, Conv2dConfig, UpConv2x2};
pub use embedding::{Embedding, EmbeddingConfig};
pub use linear::{Linear, LinearConfig};
pub use mlp::{Mlp, MlpConfig};
pub use norm::{LayerNorm, LayerNormConfig, RmsNorm, RmsNormConfig};
pub use parts::in_parts;
pub use quantized_weight::QuantizedWeight;
pub use weight::Weight;
