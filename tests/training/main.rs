//! The trainer on a tiny model: accumulation, stages, gradient flow, resumption, memory,
//! evaluation, adapters.
//!
//! Burn's CPU generator belongs to the process, so these tests run one at a time.

mod adapters;
#[path = "../common/alone.rs"]
mod alone;
mod evaluate;
mod exact;
#[path = "../common/generated.rs"]
mod generated;
mod safety;
mod stages;
mod tiny;
