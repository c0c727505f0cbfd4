//! Base models: presets, names in checkpoints, prompt style. One file per family.

pub mod videochat;
