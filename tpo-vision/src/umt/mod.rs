//! UMT: the video vision transformer of VideoChat-TPO.
//!
//! A ViT whose patches are tubelets of a clip and whose attention is joint over all patches of
//! all frames. Positions are constant sine tables, interpolated in time (and in space for images
//! that are not 224 pixels wide); blocks are pre-norm, with query and value biases but no key
//! bias and an exact GELU. The output of the last but one block is used, so the checkpoint holds
//! only 23 of 24 blocks and no final norm; a separate layer norm follows in [`VideoEncoder`].

mod block;
mod config;
mod encoder;
mod keys;
mod patch_embed;
pub mod position;
mod video_encoder;

pub use block::{UmtAttention, UmtBlock, UmtMlp};
pub use config::UmtConfig;
pub use encoder::Umt;
pub use keys::{UMT_KEYS, UMT_KEYS_INVERSE};
pub use patch_embed::{ConvPatch, PatchEmbed, Stem};
pub use video_encoder::VideoEncoder;
