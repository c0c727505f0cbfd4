//! The temporal head: CG-DETR driven by the temporal task token.
//!
//! [`TemporalHead`] answers *when* with ranked spans and *what is worth watching* with a highlight
//! curve; with [`TemporalHeadConfig::simple`] a [`SimpleTemporalHead`], two MLPs on start and end,
//! answers in place of CG-DETR. Both read [`features`] of the video, and CG-DETR also of the query,
//! that somebody else computes.

pub mod criterion;
pub mod decode;
pub mod features;
mod head;
mod keys;
mod labels;
mod layers;
pub mod metric;
pub mod model;
mod start_end;
mod target;

pub use criterion::{BatchTargets, CriterionConfig, CriterionOutput, MatchCosts, criterion};
pub use decode::{DecodeConfig, TemporalPrediction, rank_spans, temporal_nms};
pub use head::{Criterion, TemporalHead, TemporalHeadConfig, TemporalOutput};
pub use keys::{CG_DETR_KEYS, CG_DETR_KEYS_INVERSE, cg_detr_rules};
pub use labels::SaliencyLabels;
pub use layers::{Encoder, EncoderLayer, FeedForward, InputProjection, PRelu, SelfAttention};
pub use model::{CgDetr, CgDetrConfig};
pub use start_end::{SimpleTemporalHead, SimpleTemporalOutput, StartEndMlps, best_frames};
pub use target::{MomentWindows, TemporalTarget, feature_rows, moment_metrics, temporal_target};
