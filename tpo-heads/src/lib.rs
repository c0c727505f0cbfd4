//! Visual task heads of TPO for Rust, one folder per task.
//!
//! - [`region`]: where is it? A box.
//!
//! A folder holds everything of its task: configuration, head, loss, decoding, metric. The heads
//! use only the public [`TaskHead`](tpo_core::head::TaskHead) interface.

pub mod region;
