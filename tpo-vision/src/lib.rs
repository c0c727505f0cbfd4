//! Vision encoders and connectors of TPO for Rust.
//!
//! The first two boxes of *vision encoder → connector → language model → task heads*:
//!
//! - [`umt`]: the UMT video transformer, a ViT with joint attention over space and time. It takes
//!   clips `[batch, frames, 3, height, width]` and gives one token per patch and frame.
//! - [`siglip`]: the SigLIP tower of LLaVA-OneVision, a ViT over single pictures: frames of a video and tiles
//!   of an image, each with its own tokens.
//! - [`internvideo2`]: the InternVideo2-CLIP tower, one vector per clip, from which the temporal
//!   head's features come.
//! - [`connector`]: turns those tokens into embeddings of the language model's width.
//!   [`connector::qformer`] compresses a clip into a fixed number of query outputs (96 in
//!   VideoChat-TPO); [`connector::mlp`] maps every token by itself; [`connector::onevision`] lays the
//!   tokens of tiles and frames out with newlines (LLaVA-OneVision).
//!
//! and the encoder of a task head:
//!
//! - [`hiera`]: Hiera with a feature pyramid, the image encoder of SAM 2.
//!
//! # Names
//!
//! Parameters have the reference checkpoint's names as far as Rust allows, so a checkpoint key
//! and a module path are the same words. What differs is written down as rewrite rules:
//! [`umt::UMT_KEYS`] and [`connector::qformer::QFORMER_KEYS`], each with its inverse.
//!
//! # Training and inference
//!
//! Dropout and drop-path act only on an autodiff device and only in modules that are not frozen,
//! as Burn's own dropout does. Use `Module::valid` for inference: on an autodiff device Burn keeps
//! every attention matrix in memory. [`umt::VideoEncoder`] and [`siglip::Siglip`] do this by
//! themselves when nothing in them is trained.

pub mod connector;
mod drop_path;
mod error;
mod frozen;
pub mod hiera;
pub mod internvideo2;
mod key_rule;
pub mod siglip;
pub mod umt;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use connector::mlp::{MlpConnector, MlpConnectorConfig};
pub use connector::onevision::{OneVisionConnector, OneVisionConnectorConfig};
pub use connector::qformer::{QFormer, QFormerConfig, QFormerConnector, QFormerConnectorConfig};
pub use drop_path::{DropPath, DropPathConfig};
pub use error::{Result, VisionError};
pub use hiera::{Hiera, HieraConfig, ImageEncoder, ImageEncoderConfig, ImageFeatures};
pub use internvideo2::{InternVideo2, InternVideo2Config};
pub use key_rule::KeyRewrite;
pub use siglip::{Siglip, SiglipConfig};
pub use umt::{Umt, UmtConfig, VideoEncoder};
