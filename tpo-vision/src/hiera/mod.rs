//! Hiera with a feature pyramid: the image encoder of SAM 2.
//!
//! A hierarchical vision transformer ([`Hiera`]) whose blocks attend within windows, a few of them
//! globally, and whose stages halve the resolution and double the width. [`FpnNeck`] brings the
//! outputs of its four stages to one width.
//!
//! All maps are channels-last, `[batch, height, width, channels]`: linear layers and norms act on
//! the last axis without a copy, and a map is a list of tokens by reshaping.

mod block;
mod config;
mod encoder;
mod neck;
mod position;
mod trunk;

pub use block::{HieraAttention, HieraBlock, HieraMlp};
pub use config::{HieraConfig, ImageEncoderConfig};
pub use encoder::{ImageEncoder, ImageFeatures};
pub use neck::{FpnNeck, NeckConv};
pub use position::sine_encoding;
pub use trunk::{Hiera, HieraPatchEmbed};
