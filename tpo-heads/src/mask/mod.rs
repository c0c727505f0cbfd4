//! The mask head: SAM 2 driven by the mask task token.
//!
//! [`sam2`] holds the network, [`track`] follows objects through a video.

pub mod metric;
pub mod sam2;
pub mod track;
