//! SAM 2: modules without tracking state.
//!
//! [`Sam2`] assembles the image encoder (Hiera with a feature pyramid, from `tpo-vision`), the
//! prompt encoder, the mask decoder, and the memory encoder and attention that carry an object
//! from frame to frame, with the learned vectors the tracker needs. It holds parameters only.
//!
//! Maps are channels-last, `[batch, height, width, channels]`; masks are `[batch, masks, height,
//! width]`. Parameters have the names of the SAM 2 checkpoints up to the rules of [`sam2_keys`].

mod attention;
mod config;
mod fields;
mod hugging_face_config;
mod keys;
mod mask_decoder;
mod memory_attention;
mod memory_encoder;
mod model;
mod prompt_encoder;
mod reference_config;
mod rope;
mod two_way;

pub use attention::Attention;
pub use config::{
    MaskDecoderConfig, MemoryAttentionConfig, MemoryEncoderConfig, PointTableLayout,
    PromptEncoderConfig, Sam2Config, Sam2Version, TrackingConfig,
};
pub use keys::{sam2_hugging_face_keys, sam2_keys, sam2_videochat_tpo_keys};
pub use mask_decoder::{MaskDecoder, MaskDecoderOutput, MaskUpscaling};
pub use memory_attention::{MemoryAttention, MemoryAttentionLayer, MemoryInput};
pub use memory_encoder::{ConvNextBlock, Fuser, MaskDownsampler, MemoryEncoder};
pub use model::{MaskSource, Sam2, Sam2Features};
pub use prompt_encoder::{
    PointLabel, PointPrompt, PointTable, PromptEmbedding, PromptEncoder, RandomFourier,
};
pub use rope::AxialRope;
pub use two_way::{TwoWayBlock, TwoWayTransformer};
