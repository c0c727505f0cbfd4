//! From logits and normalised spans to an answer in seconds.

mod nms;
mod prediction;
mod rank;
mod windows;

pub use nms::temporal_nms;
pub use prediction::TemporalPrediction;
pub use rank::{DecodeConfig, rank_spans, round_decimals, round_to_multiple};
pub use windows::{KeepSide, WindowRules, WindowStep};
