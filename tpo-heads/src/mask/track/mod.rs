//! SAM 2 on a video: objects are prompted on some frames and followed through the others.
//!
//! [`TrackState`] is the state and has the verbs; the model, [`Sam2`](super::sam2::Sam2), has
//! none. Frames come from a [`FrameReader`], one at a time.

mod bank;
mod components;
mod frames;
mod masks;
mod object;
mod options;
mod prompts;
mod propagate;
mod resize;
mod state;
mod step;
mod unroll;

pub use components::fill_holes;
pub use frames::{FrameReader, IMAGENET_MEAN, IMAGENET_STD, SeekFrames, SourceFrames, VideoFrame};
pub use masks::{FrameMasks, ObjectId, ObjectMask};
pub use options::{Direction, Keep, Propagation, TrackOptions};
pub use prompts::Click;
pub use propagate::Propagate;
pub(in crate::mask) use resize::mask_prompt;
pub use state::TrackState;
#[doc(hidden)]
pub use step::FrameOutput;
pub(in crate::mask) use step::Prompts;
pub(in crate::mask) use unroll::{Candidates, Unrolled, unroll};
