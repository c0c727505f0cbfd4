//! The temporal head: CG-DETR driven by the temporal task token.

pub mod metric;
