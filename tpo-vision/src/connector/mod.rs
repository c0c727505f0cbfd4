//! Connectors: from visual tokens to embeddings the language model reads.

pub mod mlp;
pub mod qformer;
