//! Q-Former: a BERT that reads a clip through learned queries.
//!
//! The sequence is *queries, extra queries, instruction tokens (optional)*. Every layer attends
//! within the sequence; in every second layer the queries then attend to the visual tokens. Only
//! the outputs at the queries are kept (96 in VideoChat-TPO), and `project_up` maps them to the
//! language model's width ("BLIP-2", arXiv 2301.12597; TPO paper, section 3 and appendix).
//!
//! Without an instruction the word and position tables and each layer's `intermediate` and
//! `output` are never used; the reference ships them and they load.

mod attention;
mod config;
mod embeddings;
mod keys;
mod layer;
mod model;
mod project;

pub use attention::{QFormerAttention, QFormerSelfAttention, ResidualOutput};
pub use config::QFormerConfig;
pub use embeddings::QFormerEmbeddings;
pub use keys::{QFORMER_KEYS, QFORMER_KEYS_INVERSE, QFORMER_UNUSED_KEYS};
pub use layer::{QFormerIntermediate, QFormerLayer};
pub use model::{QFormer, QFormerBert, QFormerEncoder};
pub use project::{QFormerConnector, QFormerConnectorConfig};
