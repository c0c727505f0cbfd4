//! Llama-family decoders for TPO for Rust: LoRA, KV cache, tokenizers, chat templates, generation.

pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod error;
pub mod generation;
mod gguf;
mod hf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod sampling;
pub mod text_tower;
pub mod tokenizer;
pub mod vocabulary;

pub use config::{LORA_TARGETS, LlmConfig};
pub use decoder::{CausalLm, KvCache, VocabularyRows};
pub use error::LlmError;
pub use gguf::GgufModel;
pub use hf::{HfModel, HfOptions, from_pretrained};
pub use text_tower::{QueryTokenizer, TextTower, TextTowerConfig};
pub use tpo_core::LoraConfig;
pub use vocabulary::TokenPlan;

// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
