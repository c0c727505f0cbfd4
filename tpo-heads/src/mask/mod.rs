//! The mask head: SAM 2 driven by the mask task token.
//!
//! [`MaskHead`] answers *which pixels, through the whole video*: a small adapter turns the task
//! embedding into prompt tokens of a frozen [`sam2`], and [`track`] follows the object.

mod decode;
mod head;
mod loss;
pub mod metric;
mod prompt;
pub mod sam2;
mod score;
mod target;
pub mod track;
pub mod train;

pub use decode::{MaskPrediction, TrackedFrame};
pub use head::{MaskHead, MaskHeadConfig, MaskOutput};
pub use loss::{MaskLossConfig, actual_iou, dice_loss, focal_loss};
pub use prompt::{BOX_TOKENS, PromptSource, box_in_text, box_tokens, question_box};
pub use target::{FrameMask, MaskTarget, coverage, mask_box, mask_target};
