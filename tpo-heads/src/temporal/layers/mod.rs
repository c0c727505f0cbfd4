//! Layers of CG-DETR, batch first, with parameters under the reference's names.

mod attention;
mod encoder;
mod init;
mod input_projection;
mod position;
mod prelu;

pub use attention::SelfAttention;
pub use encoder::{Encoder, EncoderLayer, FeedForward};
pub use input_projection::InputProjection;
pub use prelu::PRelu;

pub(super) use init::{WeightInit, linear, normal_rows};
pub(super) use position::{sine_positions, sine_spans};

/// What the layers of an encoder or decoder share.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerSizes {
    pub(super) d_model: usize,
    /// Width of the feed-forward part.
    pub(super) d_hidden: usize,
    /// Attention heads; divides `d_model`.
    pub(super) heads: usize,
    /// Every dropout rate of a layer.
    pub(super) dropout: f64,
    /// How the linear layers of the feed-forward part start.
    pub(super) init: WeightInit,
}
