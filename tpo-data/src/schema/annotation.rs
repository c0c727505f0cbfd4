//! Ground truth of a head: a box, time spans, a track of boxes or masks, or free JSON.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::{BoxPixels, BoxXyxy, Rle};
pub use tpo_core::truth::Saliency;

use super::fields::{AnnotationFields, BoxFields, TrackFrameFields};

/// One annotation of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AnnotationFields", into = "AnnotationFields")]
pub struct Annotation {
    /// Name of the head: `region`, `temporal`, `mask`, or your own.
    pub task: String,
    /// What is asked for, as a phrase or sentence: `the red ball`.
    pub query: Option<String>,
    /// A box shown in the question, for tracking; where the object is on the first frame.
    pub prompt_box: Option<BoxCoords>,
    /// The ground truth.
    pub target: Target,
}

impl Annotation {
    /// Ground truth asked for with a phrase.
    pub fn asked(task: &str, query: &str, target: Target) -> Self {
        Self {
            task: task.into(),
            query: Some(query.trim().into()),
            prompt_box: None,
            target,
        }
    }
}

/// Ground truth of one task token.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Field `box` or `box_pixels`.
    Box(BoxCoords),
    /// Field `spans`, with `saliency` if there is any.
    Spans {
        /// `[start, end]` in seconds of the file.
        spans: Vec<[f64; 2]>,
        /// How well parts of the video fit the query.
        saliency: Option<Saliency>,
    },
    /// Field `track`: where an object is, frame by frame.
    Track(Vec<TrackFrame>),
    /// Field `value`: anything your own head declares.
    Value(serde_json::Value),
}

impl Target {
    /// Time spans without saliency.
    pub fn spans(spans: Vec<[f64; 2]>) -> Self {
        Self::Spans {
            spans,
            saliency: None,
        }
    }
}

/// A box `[x0, y0, x1, y1]`, x to the right, y down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BoxFields", into = "BoxFields")]
pub enum BoxCoords {
    /// Divided by the width and height of the picture: 0–1.
    Normalised([f32; 4]),
    /// Pixel edges of the picture as it is in the file (upright): 0–width, 0–height.
    Pixels([f32; 4]),
}

impl BoxCoords {
    /// The four numbers as written.
    pub fn to_array(self) -> [f32; 4] {
        match self {
            Self::Normalised(b) | Self::Pixels(b) => b,
        }
    }

    /// Normalised corners in a picture of `width` × `height` pixels. Pixel boxes that reach less
    /// than one pixel outside, as annotations that count pixel centres do, are clipped.
    pub fn normalised(self, width: u32, height: u32) -> BoxXyxy {
        match self {
            Self::Normalised(b) => BoxXyxy::from(b),
            Self::Pixels(b) => {
                let n = BoxPixels::from(b).to_normalised(width as f32, height as f32);
                let (sx, sy) = (1.0 / width as f32, 1.0 / height as f32);
                let cut = |v: f32, slack: f32| {
                    let near = v > -slack && v < 1.0 + slack;
                    if near { v.clamp(0.0, 1.0) } else { v }
                };
                BoxXyxy {
                    x0: cut(n.x0, sx),
                    y0: cut(n.y0, sy),
                    x1: cut(n.x1, sx),
                    y1: cut(n.y1, sy),
                }
            }
        }
    }
}

/// One frame of a track.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TrackFrameFields", into = "TrackFrameFields")]
pub struct TrackFrame {
    /// Which frame.
    pub at: FramePosition,
    /// Where the object is on it.
    pub region: TrackRegion,
}

/// A frame by number or by time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FramePosition {
    /// Field `frame`: 0-based, in presentation order of the file.
    Frame(u64),
    /// Field `time`: seconds of the file.
    Time(f64),
}

/// Where an object is on one frame.
#[derive(Debug, Clone, PartialEq)]
pub enum TrackRegion {
    /// Field `absent`: annotated as not visible.
    Absent,
    /// Field `box` or `box_pixels`.
    Box(BoxCoords),
    /// Field `rle`: COCO's compressed run lengths.
    Mask(Rle),
}
