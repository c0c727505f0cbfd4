//! Training SAM 2 through video: prompts on the first frame, losses on all of them.
//!
//! The forward pass is the tracker's own, memories included, with everything on the autodiff
//! graph. [`video_losses`] is for a [`Sam2`](super::sam2::Sam2) alone; the mask head adds the same
//! terms when its [`MaskLossConfig::video`](super::MaskLossConfig) is set.

mod batch;
mod config;
mod head;
mod losses;
mod prompt;

pub use batch::{VideoMaskBatch, VideoObject};
pub use config::{PromptMix, Sam2TrainConfig};
pub(super) use head::supervise_video;
pub use losses::{VideoPrediction, video_forward, video_losses};
pub use prompt::VideoPrompt;
