//! How an answer is shown, without saying by what: words, and shapes for whoever draws.

use crate::geometry::{BoxXyxy, Rle, ScoredSpan};

/// An answer as words and shapes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Drawing {
    /// In words, one line.
    pub text: String,
    /// What is drawn.
    pub shapes: Vec<Shape>,
}

/// Something to draw. Places on pictures are normalised (0–1), times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A box on the first frame.
    Box(BoxXyxy),
    /// A cross at `[x, y]` on the first frame.
    Point([f32; 2]),
    /// Spans on the time line, the best first.
    Spans(Vec<ScoredSpan>),
    /// A curve on the time line: a value every so many seconds.
    Curve {
        /// Seconds between values.
        step: f64,
        /// The values.
        values: Vec<f32>,
    },
    /// A mask on a frame, by its index among the frames that were gone through.
    Mask {
        /// The frame.
        frame: usize,
        /// Its pixels.
        mask: Rle,
    },
}

impl Drawing {
    /// Words without shapes.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            shapes: Vec::new(),
        }
    }

    /// Adds a shape.
    pub fn with(mut self, shape: Shape) -> Self {
        self.shapes.push(shape);
        self
    }
}
