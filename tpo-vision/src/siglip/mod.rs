//! SigLIP: the picture tower of LLaVA-OneVision.
//!
//! A ViT over single pictures ("Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343): patches without
//! overlap, learned positions, pre-norm layers with biases everywhere and a tanh-approximated GELU, no class token.
//! LLaVA-OneVision takes the output of the last layer it keeps, 26 of 27, without the norm that SigLIP has after it;
//! frames of a video and tiles of an image are pictures of one batch.

mod config;
mod layer;
mod tower;

pub use config::SiglipConfig;
pub use layer::{SiglipAttention, SiglipLayer, SiglipMlp};
pub use tower::{SIGLIP_UNUSED_KEYS, Siglip, SiglipEmbeddings, SiglipEncoder, SiglipPatches};
