//! Base models: presets, names in checkpoints, prompt style. One file per family.

pub mod onevision;
pub(crate) mod parts;
pub(crate) mod published;
pub mod videochat;
