//! CG-DETR: moments and highlights of a video for a text (arXiv 2311.08835).

mod config;
mod decoder;
mod decoder_layer;
mod masks;
mod network;
mod saliency_prompt;
mod t2v;
mod training;
mod transformer;

pub use config::{CgDetrConfig, TEF_COLUMNS};
pub use decoder::{Decoded, Decoder};
pub use decoder_layer::{DecoderLayer, Memory, OutputProjection, Queries};
pub use network::{CgDetr, CgDetrInput, CgDetrOutput, TextPositions};
pub use t2v::{AdaptiveCrossAttention, T2vEncoder, T2vLayer, TextKeys};
pub use training::{CgDetrTraining, Negatives, TrainingInput};
pub use transformer::{Encoded, Prompts, Transformer, VideoTokens};

pub(super) use masks::mask;
pub(super) use saliency_prompt::normalise;
