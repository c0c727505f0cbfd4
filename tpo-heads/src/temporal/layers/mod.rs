//! Layers of CG-DETR, batch first, with parameters under the reference's names.

mod attention;
mod encoder;
mod init;
mod input_projection;
mod position;
mod prelu;

pub use attention::{SelfAttention, SelfAttentionConfig};
pub use encoder::{
    Encoder, EncoderConfig, EncoderLayer, EncoderLayerConfig, FeedForward, FeedForwardConfig,
};
pub use input_projection::{InputProjection, InputProjectionConfig};
pub use prelu::{PRelu, PReluConfig};

pub(super) use init::{WeightInit, linear, normal_rows};
pub(super) use position::{sine_positions, sine_spans};
