//! The scene graph: where every shape is in every frame.

use serde::{Deserialize, Serialize};

use super::attributes::Look;
use super::background::Background;
use super::event::Event;
use crate::DataError;

/// A shape in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Centre in pixels from the left edge, before camera shake.
    pub x: f64,
    /// Centre in pixels from the top edge, before camera shake.
    pub y: f64,
    /// Radius in pixels.
    pub radius: f64,
    /// Clockwise turn in radians.
    pub angle: f64,
    /// Red, green, blue, 0–255.
    pub colour: [u8; 3],
    /// Whether it is drawn.
    pub visible: bool,
}

/// A shape through the clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its look in the first frame.
    pub look: Look,
    /// One state per frame.
    pub states: Vec<State>,
}

/// Everything a clip shows. Later shapes cover earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// Side of the square frames in pixels.
    pub side: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames per second.
    pub fps: f64,
    /// Background behind the shapes.
    pub background: Background,
    /// The shapes, from back to front.
    pub objects: Vec<Object>,
    /// What happens, by start.
    pub events: Vec<Event>,
    /// Shift of the picture in whole pixels `(right, down)` per frame.
    pub camera: Vec<(i32, i32)>,
}

impl Scene {
    /// Length in seconds.
    pub fn duration(&self) -> f64 {
        self.frames as f64 / self.fps
    }

    /// Start and end of an event in seconds.
    pub fn span(&self, event: &Event) -> (f64, f64) {
        (event.start as f64 / self.fps, event.end as f64 / self.fps)
    }

    /// Checks that a scene read from a file can be drawn.
    ///
    /// # Errors
    /// [`DataError::InvalidSynthetic`] with the first problem.
    pub fn validate(&self) -> Result<(), DataError> {
        let bad = |reason: String| Err(DataError::InvalidSynthetic { reason });
        if !(1..=4096).contains(&self.side) || !(1..=65_536).contains(&self.frames) {
            return bad(format!(
                "a scene of {} frames of {} pixels",
                self.frames, self.side
            ));
        }
        if !(self.fps.is_finite() && self.fps > 0.0) || self.objects.len() > 200 {
            return bad(format!(
                "fps is {}, with {} shapes",
                self.fps,
                self.objects.len()
            ));
        }
        if self.camera.len() != self.frames {
            return bad(format!(
                "the camera has {} positions for {} frames",
                self.camera.len(),
                self.frames
            ));
        }
        for (i, object) in self.objects.iter().enumerate() {
            if object.states.len() != self.frames {
                return bad(format!(
                    "shape {i} has {} states for {} frames",
                    object.states.len(),
                    self.frames
                ));
            }
            let finite = |s: &State| {
                [s.x, s.y, s.radius, s.angle].iter().all(|v| v.is_finite())
                    && s.radius > 0.0
                    && s.radius < 65_536.0
                    && s.x.abs() < 1e6
                    && s.y.abs() < 1e6
            };
            if let Some(at) = object.states.iter().position(|s| !finite(s)) {
                return bad(format!("shape {i} has no usable place in frame {at}"));
            }
        }
        for (i, event) in self.events.iter().enumerate() {
            let objects = self.objects.len();
            let exists = event.object < objects && event.other.is_none_or(|o| o < objects);
            if !exists || event.start >= event.end || event.end > self.frames {
                return bad(format!(
                    "event {i} names a shape or a time that does not exist"
                ));
            }
        }
        Ok(())
    }
}
