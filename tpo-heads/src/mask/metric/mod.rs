//! Metrics of the mask task: video object segmentation and tracking.
//!
//! - [`region_similarity`] J and [`Contour`] F of one frame, on bit-packed masks;
//! - [`ObjectScores`]: mean, recall and decay over the frames of an object, and the protocols of
//!   DAVIS and Ref-YouTube-VOS in [`vos`];
//! - [`track`]: success, precision and normalised precision (LaSOT), AO and SR (GOT-10k).

mod bits;
mod contour;
mod statistics;
pub mod track;
pub mod vos;

pub use bits::BitMask;
pub use contour::{BoundaryTolerance, Contour, contour_accuracy, region_similarity};
pub use statistics::{DecayBins, MetricStatistics};
pub use vos::ObjectScores;
