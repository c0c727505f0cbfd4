//! The one dataset format of this project: JSON lines, one [`Sample`] a row.
//!
//! `docs/DATA.md` explains every field with examples. [`SampleReader`] streams a file and gives
//! a bad row as a value with its line number; [`Sample::problems`] finds everything wrong with a
//! row; [`check_media`] opens the file it names.

mod annotation;
mod fields;
mod inspect;
mod jsonl;
mod marks;
mod sample;
mod validate;

pub use annotation::{
    Annotation, BoxCoords, FramePosition, Saliency, Target, TrackFrame, TrackRegion,
};
pub use inspect::{Summary, check_media, open_media, resolve};
pub use jsonl::{
    Line, LineReader, RowError, RowFault, RowLimits, SampleReader, parse_row, write_row,
};
pub use marks::{BOX_MARK, Mark, marks};
pub use sample::{Media, MediaKind, Sample, Turn};
pub use validate::Problem;
