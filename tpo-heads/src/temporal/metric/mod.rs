//! Metrics of the temporal task: moment retrieval and highlight detection, on plain windows and
//! scores. The benchmarks' files are read by the facade.

pub mod highlight;
pub mod qvhighlights;
pub mod retrieval;
mod window;

pub use window::{grounding_overlap, hull_iou, iou};
