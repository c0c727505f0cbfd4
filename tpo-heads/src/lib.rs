//! Visual task heads of TPO for Rust, one folder per task.
//!
//! - [`region`]: where is it? A box.
//! - [`temporal`]: when does it happen, and what is worth watching? Time spans and a curve.
//! - [`mask`]: which pixels, through the whole video? Masks.
//!
//! A folder holds everything of its task: configuration, head, loss, decoding, metric. The heads
//! use only the public [`TaskHead`](tpo_core::head::TaskHead) interface.

mod error;
pub mod mask;
pub mod numeric;
pub mod region;
pub mod temporal;

pub use error::HeadsError;

// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
