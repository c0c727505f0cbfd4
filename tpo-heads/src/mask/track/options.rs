//! Settings of a tracking run.

use serde::{Deserialize, Serialize};

/// What a tracker keeps of the frames it has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// What following frames can attend to, around the frame it stands at and around prompted
    /// frames. Memory does not grow with the length of the video.
    #[default]
    Window,
    /// Everything, as the reference implementation: any frame can be corrected at any time.
    Everything,
}

/// Settings of a [`TrackState`](super::TrackState): by default as the published video predictor, but
/// bounded in memory. Names in brackets are the reference's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrackOptions {
    /// What is kept.
    pub keep: Keep,
    /// Whether a pixel belongs to at most one object in the masks handed out
    /// (`non_overlap_masks`).
    pub non_overlapping_masks: bool,
    /// Largest area of a filled hole in pixels of the low-resolution mask; `None` for that of the
    /// model (`fill_hole_area`).
    pub fill_hole_area: Option<usize>,
}

/// Which way a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To later frames.
    #[default]
    Forward,
    /// To earlier frames.
    Backward,
}

/// Which frames to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Propagation {
    /// Which way.
    pub direction: Direction,
    /// The first frame; `None` for the earliest prompted one.
    pub start: Option<usize>,
    /// Most frames to go through, the first included; `None` for all.
    pub frames: Option<usize>,
}

impl Propagation {
    /// From the earliest prompted frame to the end.
    pub fn forward() -> Self {
        Self::default()
    }

    /// From the earliest prompted frame to the first.
    pub fn backward() -> Self {
        Self {
            direction: Direction::Backward,
            ..Self::default()
        }
    }

    /// Starts at `frame`.
    pub fn from(mut self, frame: usize) -> Self {
        self.start = Some(frame);
        self
    }

    /// Ends after `frames` frames.
    pub fn take(mut self, frames: usize) -> Self {
        self.frames = Some(frames);
        self
    }
}
