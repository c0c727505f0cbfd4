//! The trainer on a tiny model: accumulation, stages, gradient flow, resumption, memory.
//!
//! Burn's CPU generator belongs to the process, so these tests run one at a time.

mod exact;
mod safety;
mod stages;
mod tiny;
