//! The vocabulary of TPO for Rust: geometry, task tokens, prompts, the traits of the four parts,
//! the assembled [`TpoModel`](model::TpoModel) and strict weight import.
//!
//! Task Preference Optimization (arXiv 2412.19326) wires a video language model as
//! *vision encoder → connector → language model → task heads*. This crate defines the joints and
//! names no concrete encoder, language model or head; those live in the sibling crates.

pub mod cancel;
pub mod config;
pub mod error;
pub mod geometry;
pub mod gradient_checkpointing;
pub mod head;
pub mod lora;
pub mod model;
pub mod nn;
pub mod ops;
pub mod prompt;
pub mod seed;
pub mod threads;
pub mod token;
pub mod traits;
pub mod truth;
pub mod weights;

pub use error::{CoreError, Result};
pub use lora::LoraConfig;

// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
