//! Token embedding table.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Initializer;
use burn::tensor::{Device, Int, Tensor};

use super::Weight;
use crate::ops::QuantFormat;

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
    /// How the table is quantised, if it is and its rows are whole blocks.
    pub quantization: Option<QuantFormat>,
}

/// A lookup table `[n_embedding, d_model]`.
#[derive(Module, Debug)]
pub struct Embedding {
    /// Rows `[n_embedding, d_model]`.
    pub weight: Weight,
}

impl EmbeddingConfig {
    /// Creates the table. Values are drawn lazily, on first use; a quantised one is zero until it is
    /// filled from a file.
    pub fn init(&self, device: &Device) -> Embedding {
        let shape = [self.n_embedding, self.d_model];
        let normal = Initializer::Normal {
            mean: 0.0,
            std: self.std,
        };
        let packed = self
            .quantization
            .and_then(|format| Weight::to_fill(format, shape, device));
        Embedding {
            weight: packed.unwrap_or_else(|| Weight::Float(normal.init(shape, device))),
        }
    }
}

impl Embedding {
    /// Looks rows up; those of a quantised table are `f32`.
    ///
    /// # Shapes
    /// - ids `[batch, length]`, each below `n_embedding`
    /// - output `[batch, length, d_model]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        match &self.weight {
            Weight::Float(table) => burn::tensor::module::embedding(table.val(), ids),
            Weight::Quantized(table) => table.lines(ids),
        }
    }
}
