//! A synthetic world of short clips whose every annotation is known exactly.
//!
//! A clip shows a few shapes moving over a background, with timed events (blink, grow, spin,
//! change colour, stop, leave and return, collide). Everything comes from one scene graph: the
//! pixels, the masks and boxes of every frame, the time spans of the events, and conversations
//! about them. A clip is a pure function of (configuration, seed, split, index), on every machine.
//!
//! ```
//! use tpo_data::synthetic::{Split, World, WorldConfig};
//!
//! let world = World::new(WorldConfig::default(), 7)?;
//! let clip = world.clip(Split::Train, 0);
//! let frames = clip.scene.render_all();
//! for query in clip.temporal_queries() {
//!     println!("{} {:?}", query.question, query.spans);
//! }
//! assert_eq!(frames.len(), clip.scene.frames);
//! # Ok::<(), tpo_data::DataError>(())
//! ```

mod attributes;
mod background;
mod caption;
mod draw;
mod event;
mod exclusion;
mod export;
mod generate;
mod names;
mod questions;
mod render;
mod rows;
mod scene;
mod split;
mod tasks;

pub use attributes::{Colour, Look, Outline, Shape, Size, Texture};
pub use background::{Background, Pattern};
pub use event::{Event, EventKind};
pub use export::ROWS_FILE;
pub use questions::{Question, QuestionKind};
pub use render::RenderedFrame;
pub use rows::{RowsConfig, WorldRows, WorldTask};
pub use scene::{Object, Scene, State};
pub use split::{Split, is_held_out_event, is_held_out_look};
pub use tasks::{MaskQuery, RegionQuery, TemporalQuery};

use serde::Serialize;
use tpo_core::config::Problems;

use crate::DataError;

/// Bounds of the world.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorldConfig {
    /// Side of the square frames in pixels, 32–1024.
    pub side: usize,
    /// Frames of a clip, 12–256.
    pub frames: usize,
    /// Frames per second.
    pub fps: f64,
    /// Fewest shapes of a clip, at least 1.
    pub min_objects: usize,
    /// Most shapes of a clip, at most 8.
    pub max_objects: usize,
    /// Most events of a clip; a clip has at least one.
    pub max_events: usize,
    /// Share of the clips whose camera shakes, 0–1.
    pub camera_shake: f64,
    /// Share of the clips without colours, 0–1: shapes that differ in outline, in greys, named by
    /// their outline alone. They show outlines without the colours that training pairs them with.
    #[serde(skip_serializing_if = "is_zero")]
    pub grey: f64,
    /// Share of the other clips whose shapes all have one outline, 0–1: only their colours distinguish
    /// them. Elsewhere the outline alone is enough for two of three questions, and a model can learn to
    /// ignore colours.
    #[serde(skip_serializing_if = "is_zero")]
    pub one_outline: f64,
    /// Share of the remaining clips whose shapes all have one colour, 0–1: only their outlines
    /// distinguish them.
    #[serde(skip_serializing_if = "is_zero")]
    pub one_colour: f64,
    /// Share of the remaining clips in which two outlines come in two colours, 0–1: neither alone
    /// says which of three or four shapes is meant.
    #[serde(skip_serializing_if = "is_zero")]
    pub crossed: f64,
    /// Share of the remaining clips whose outlines have no name, 0–1: polygons of different colours,
    /// named by those ("the red shape"). Any event may happen to them, so they show events without the
    /// outlines that training pairs them with. Held-out clips have none.
    #[serde(skip_serializing_if = "is_zero")]
    pub irregular: f64,
    /// Share of the mentions in questions that name a shape by its colour or its outline alone where
    /// that is unambiguous ("the red shape", "the star"), 0–1. Above 0 no answer is "shape": where
    /// outlines have no name, no question is asked whose answer would need one.
    #[serde(skip_serializing_if = "is_zero")]
    pub short_names: f64,
    /// A model sees the middle one of this many frames ([`FrameSampling::Middle`](crate::FrameSampling)):
    /// "at the start" and "at the end" mean the first and the last that it sees, and a blink is as
    /// slow. A divisor of `frames`.
    #[serde(skip_serializing_if = "is_one")]
    pub stride: usize,
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Default for WorldConfig {
    /// 16 frames of 64 pixels at two frames per second: 8 seconds, as the vision encoder of the
    /// paper reads 16 frames.
    fn default() -> Self {
        Self {
            side: 64,
            frames: 16,
            fps: 2.0,
            min_objects: 2,
            max_objects: 4,
            max_events: 2,
            camera_shake: 0.25,
            grey: 0.0,
            one_outline: 0.0,
            one_colour: 0.0,
            crossed: 0.0,
            irregular: 0.0,
            short_names: 0.0,
            stride: 1,
        }
    }
}

impl WorldConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`DataError::InvalidSynthetic`] naming every field that is out of bounds.
    pub fn validate(&self) -> Result<(), DataError> {
        let mut problems = Problems::default();
        let mut within = |name: &str, value: usize, low: usize, high: usize| {
            problems.unless(
                (low..=high).contains(&value),
                format_args!("{name} is {value}, expected {low} to {high}"),
            );
        };
        within("side", self.side, 32, 1024);
        within("frames", self.frames, 12, 256);
        within("max_objects", self.max_objects, 1, 8);
        within("min_objects", self.min_objects, 1, self.max_objects);
        // An event needs six frames.
        within("max_events", self.max_events, 1, self.frames / 6);
        for (name, share) in [
            ("camera_shake", self.camera_shake),
            ("grey", self.grey),
            ("one_outline", self.one_outline),
            ("one_colour", self.one_colour),
            ("crossed", self.crossed),
            ("irregular", self.irregular),
            ("short_names", self.short_names),
        ] {
            problems.unless(
                (0.0..=1.0).contains(&share),
                format_args!("{name} is {share}, expected 0 to 1"),
            );
        }
        problems.positive(&[("fps", self.fps)]);
        let shapes = Shape::ALL.len();
        problems.unless(
            self.grey == 0.0 || self.max_objects <= shapes,
            format_args!(
                "max_objects is {}, expected at most {shapes} where clips are grey: their shapes \
                 differ in outline",
                self.max_objects
            ),
        );
        problems.unless(
            self.stride >= 1 && self.frames.is_multiple_of(self.stride),
            format_args!(
                "stride is {}, expected a divisor of {} frames",
                self.stride, self.frames
            ),
        );
        problems.into_result(DataError::synthetic)
    }
}

/// The world: an unlimited, deterministic source of clips.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    config: WorldConfig,
    seed: u64,
}

/// One clip with everything that is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Where it comes from.
    pub split: Split,
    /// Its index in the split.
    pub index: u64,
    /// What it shows.
    pub scene: Scene,
    /// Seed of the wording of its questions.
    pub(crate) wording: u64,
    /// [`WorldConfig::short_names`].
    pub(crate) short_names: f64,
    /// [`WorldConfig::stride`].
    pub(crate) stride: usize,
}

impl World {
    /// A world.
    ///
    /// # Errors
    /// [`DataError::InvalidSynthetic`] for a configuration that cannot work.
    pub fn new(config: WorldConfig, seed: u64) -> Result<Self, DataError> {
        config.validate()?;
        Ok(Self { config, seed })
    }

    /// The configuration.
    pub fn config(&self) -> &WorldConfig {
        &self.config
    }

    /// The `index`-th clip of a split.
    pub fn clip(&self, split: Split, index: u64) -> Clip {
        let mut draw = draw::Draw::of(&[self.seed, split as u64 + 1, index]);
        let scene = generate::scene(&self.config, split, &mut draw);
        Clip {
            split,
            index,
            scene,
            wording: draw.next(),
            short_names: self.config.short_names,
            stride: self.config.stride,
        }
    }
}

impl Clip {
    /// The first frame that a model sees.
    pub fn first_seen(&self) -> usize {
        (self.stride - 1) / 2
    }

    /// The last frame that a model sees.
    pub fn last_seen(&self) -> usize {
        self.scene.frames - self.stride + self.first_seen()
    }

    /// A name unique in the world, for example `train-000012`.
    pub fn name(&self) -> String {
        format!("{}-{:06}", self.split.name(), self.index)
    }
}
