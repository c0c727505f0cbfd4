//! The mask head: SAM 2 driven by the mask task token.

pub mod metric;
pub mod sam2;
