//! The scene graph: where every shape is in every frame.

use super::attributes::Look;
use super::background::Background;
use super::event::Event;

/// A shape in one frame.
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its look in the first frame.
    pub look: Look,
    /// One state per frame.
    pub states: Vec<State>,
}

/// Everything a clip shows. Later shapes cover earlier ones.
#[derive(Debug, Clone, PartialEq)]
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
}
