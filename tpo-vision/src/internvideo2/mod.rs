//! InternVideo2-CLIP, the video tower whose features the temporal head reads.
//!
//! A ViT with joint attention over space and time, queries and keys normalised over the full
//! width, LayerScale on every branch, and attention pooling to one vector per clip
//! (arXiv 2403.15377). VideoChat-TPO feeds CG-DETR with one such vector per second, from clips of
//! eight frames (reference implementation).
//!
//! - [`InternVideo2`] is the tower, [`InternVideo2Config`] its sizes.
//! - [`load`] reads the two published files it is made of, strictly.
//! - [`position`] makes and resizes the stored position table.

mod attention_pool;
mod block;
mod config;
mod encoder;
pub mod load;
pub mod position;

pub use attention_pool::{AttentionPool, CrossAttention};
pub use block::{InternVideo2Attention, InternVideo2Block, LayerScale};
pub use config::InternVideo2Config;
pub use encoder::InternVideo2;
pub use load::{VisionFileKind, VisionFiles, VisionLoadOptions};
