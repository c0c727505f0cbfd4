//! From JSONL files and the synthetic world to training batches.
//!
//! ```text
//! Source (rows on disk, or drawn) ─► Plan (which sample when) ─► ItemMaker (decode, augment, write,
//! encode) ─► Feed (ahead, in order) ─► Collated ─► TpoBatch
//! ```
//!
//! The order of samples and every random choice about one is a pure function of (seed, epoch,
//! place), so a run that stops anywhere and goes on from its [`Cursor`] sees exactly what it
//! would have seen, with any number of threads.

mod augment;
mod collate;
mod dataset;
mod draw;
mod facts;
mod item;
mod loader;
mod mixture;
mod order;
mod permutation;
mod source;
mod truth;
mod view;

pub use augment::AugmentConfig;
pub use collate::Collated;
pub use dataset::BadRows;
pub use draw::{Draw, ItemSeed};
pub use facts::{ClipFrames, ClipSource, SampleFacts};
pub use item::FramesConfig;
pub use loader::{Feed, LoaderConfig};
pub use mixture::{MixtureSpec, SourceSpec};
pub use order::{Cursor, OrderConfig, Plan, SampleKey, SourceRows};
pub use source::Source;
pub use truth::{cut_saliency, place_truth};
pub use view::View;

use crate::MediaLimits;
use crate::schema::RowLimits;

/// Everything about the data of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedConfig {
    /// Files and worlds, and how they are mixed.
    pub mixture: MixtureSpec,
    /// How the epoch is ordered and cut.
    pub order: OrderConfig,
    /// What the model reads of a video.
    pub frames: FramesConfig,
    /// Threads, memory, strictness.
    pub loader: LoaderConfig,
    /// Limits on media files.
    pub media: MediaLimits,
    /// Limits on rows.
    pub rows: RowLimits,
}
