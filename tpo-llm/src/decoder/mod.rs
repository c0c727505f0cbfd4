//! One decoder for the Llama family: Mistral, Llama, Qwen2, SmolLM2.

mod adapters;
mod attention;
mod block;
mod cache;
mod causal_lm;
mod lora;
mod rope;
mod vocabulary;

pub use attention::SelfAttention;
pub use block::{Block, GatedMlp};
pub use cache::KvCache;
pub use causal_lm::{CausalLm, Decoder, OutputLayer, TiedOutput};
pub use lora::{LoraAdapter, LoraLinear};
pub use rope::Rope;
pub use vocabulary::VocabularyRows;
