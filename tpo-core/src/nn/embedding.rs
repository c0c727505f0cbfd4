//! Token embedding table.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Int, Tensor};

/// Configuration of [`Embedding`].
#[derive(Config, Debug)]
pub struct EmbeddingConfig {
    /// Number of rows.
    pub n_embedding: usize,
    /// Width of a row.
    pub d_model: usize,
    /// Standard deviation of the normal initialisation (0.02 in BERT and Llama).
    #[config(default = 0.02)]
    pub std: f64,
}

/// A lookup table `[n_embedding, d_model]`.
#[derive(Module, Debug)]
pub struct Embedding {
    /// Rows `[n_embedding, d_model]`.
    pub weight: Param<Tensor<2>>,
}

impl EmbeddingConfig {
    /// Creates the table.
    pub fn init(&self, device: &Device) -> Embedding {
        Embedding {
            weight: Initializer::Normal {
                mean: 0.0,
                std: self.std,
            }
            .init([self.n_embedding, self.d_model], device),
        }
    }
}

impl Embedding {
    /// Looks rows up.
    ///
    /// # Shapes
    /// - ids `[batch, length]`, each below `n_embedding`
    /// - output `[batch, length, d_model]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        burn::tensor::module::embedding(self.weight.val(), ids)
    }
}
