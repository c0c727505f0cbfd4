//! Checkpoint keys of the video encoder.

use crate::key_rule::KeyRewrite;

/// Checkpoint keys → paths of [`VideoEncoder`](super::VideoEncoder).
///
/// `vision_encoder.encoder.blocks.0.attn.qkv.weight` becomes `encoder.blocks.0.attn.qkv.weight`;
/// `vision_layernorm.weight` is a path already.
pub const UMT_KEYS: &[KeyRewrite] = &[(r"^vision_encoder\.encoder\.", "encoder.")];

/// The inverse of [`UMT_KEYS`].
pub const UMT_KEYS_INVERSE: &[KeyRewrite] = &[(r"^encoder\.", "vision_encoder.encoder.")];
