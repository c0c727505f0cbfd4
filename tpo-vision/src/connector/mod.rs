//! Connectors: from visual tokens to embeddings the language model reads.

pub mod mlp;
pub mod onevision;
pub mod qformer;
