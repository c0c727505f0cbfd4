//! The background behind the shapes.

use super::attributes::named;
use tpo_core::seed::finish;

named! {
    /// Pattern of a background.
    Pattern {
        /// One colour.
        Plain = "plain",
        /// From one colour to the other, top to bottom.
        Gradient = "gradient",
        /// Squares of both colours.
        Checkers = "checkers",
        /// Slanted stripes.
        Stripes = "stripes",
        /// Random grains of both colours.
        Noise = "noise",
    }
}

/// A background of two muted colours. It moves with the camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    /// Pattern.
    pub pattern: Pattern,
    /// Red, green, blue, 0–255.
    pub first: [u8; 3],
    /// The other colour.
    pub second: [u8; 3],
    /// Seed of the grains.
    pub seed: u64,
}

impl Background {
    /// Colour at a place of the world, in pixels; any place exists.
    pub fn at(&self, x: i32, y: i32, side: usize) -> [u8; 3] {
        let cell = (side as i32 / 8).max(1);
        let share = match self.pattern {
            Pattern::Plain => 0.0,
            Pattern::Gradient => (y as f64 / side as f64).clamp(0.0, 1.0),
            Pattern::Checkers => ((x.div_euclid(cell) + y.div_euclid(cell)) & 1) as f64,
            Pattern::Stripes => ((x + y).div_euclid(cell) & 1) as f64,
            Pattern::Noise => grain(self.seed, x.div_euclid(2), y.div_euclid(2)),
        };
        let mix = |i: usize| {
            let (a, b) = (self.first[i] as f64, self.second[i] as f64);
            (a + (b - a) * share).round() as u8
        };
        [mix(0), mix(1), mix(2)]
    }
}

/// A number in `[0, 1)` that looks random and depends on the place only.
fn grain(seed: u64, x: i32, y: i32) -> f64 {
    let place = (x as u32 as u64) << 32 ^ y as u32 as u64;
    (finish(seed ^ place) >> 11) as f64 / (1u64 << 53) as f64
}
