//! Boxes, time spans and masks, as plain values and as tensor operations.

pub mod assignment;
pub mod box_ops;
mod boxes;
mod labels;
mod mask;
mod overlap;
mod span;
pub mod span_ops;

pub use boxes::{BoxPixels, BoxXyxy};
pub use labels::LabelMap;
pub use mask::{Mask, Rle, coco_box_iou};
pub use span::{ScoredSpan, TimeSpan};
