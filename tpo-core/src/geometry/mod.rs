//! Boxes, time spans and masks, as plain values and as tensor operations; pictures in tiles and the rows of
//! visuals.

pub mod assignment;
pub mod box_ops;
mod boxes;
mod labels;
mod mask;
mod overlap;
mod packing;
mod span;
pub mod span_ops;
mod tiling;

pub use boxes::{BoxPixels, BoxXyxy};
pub use labels::LabelMap;
pub use mask::{Mask, Rle, coco_box_iou};
pub use packing::{
    GridLayout, Layout, Merge, Packing, Pooling, UnpadRule, VideoNewline, shrunk, unpad,
};
pub use span::{ScoredSpan, TimeSpan};
pub use tiling::{Canvas, Tiling};
