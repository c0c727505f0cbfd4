//! Embeddings of queries and instruction.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Device, Int, Tensor};
use tpo_core::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};

use super::QFormerConfig;

/// Word and position embeddings of the instruction, and the norm over the whole sequence.
#[derive(Module, Debug)]
pub struct QFormerEmbeddings {
    /// Word table `[vocab_size, hidden_size]`.
    pub word_embeddings: Embedding,
    /// Position table `[max_position_embeddings, hidden_size]`.
    pub position_embeddings: Embedding,
    /// Norm over queries and instruction.
    pub layer_norm: LayerNorm,
    /// Dropout after the norm.
    pub dropout: Dropout,
}

impl QFormerEmbeddings {
    pub(super) fn new(config: &QFormerConfig, device: &Device) -> Self {
        let table = |rows| {
            EmbeddingConfig::new(rows, config.hidden_size)
                .with_std(config.initializer_range)
                .init(device)
        };
        Self {
            word_embeddings: table(config.vocab_size),
            position_embeddings: table(config.max_position_embeddings),
            layer_norm: LayerNormConfig::new(config.hidden_size)
                .with_eps(config.layer_norm_eps)
                .init(device),
            dropout: DropoutConfig::new(config.hidden_dropout_prob).init(),
        }
    }

    /// Queries take neither word nor position embedding; instruction tokens take the positions
    /// `0..length`, which padding on the left consumes too, as in the reference.
    ///
    /// # Shapes
    /// - queries `[batch, n_query, hidden_size]`
    /// - ids `[batch, length]`
    /// - output `[batch, n_query + length, hidden_size]`
    pub fn forward(&self, queries: Tensor<3>, ids: Option<Tensor<2, Int>>) -> Tensor<3> {
        let sequence = match ids {
            None => queries,
            Some(ids) => {
                let length = ids.dims()[1] as i64;
                let positions = Tensor::<1, Int>::arange(0..length, &ids.device()).unsqueeze();
                let text =
                    self.word_embeddings.forward(ids) + self.position_embeddings.forward(positions);
                Tensor::cat(vec![queries, text], 1)
            }
        };
        self.dropout.forward(self.layer_norm.forward(sequence))
    }
}
