//! The Q-Former.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{DType, Device, Tensor};
use tpo_core::traits::Instruction;

use super::QFormerConfig;
use super::embeddings::QFormerEmbeddings;
use super::layer::QFormerLayer;
use crate::drop_path::DropPathConfig;
use crate::error::{Result, VisionError};

const PLACE: &str = "Q-Former";
/// Added to the score of a padded key (reference implementation; BERT's convention).
const MASK_BIAS: f64 = -10_000.0;

/// The layers.
#[derive(Module, Debug)]
pub struct QFormerEncoder {
    /// Layers in order.
    pub layer: Vec<QFormerLayer>,
}

/// Embeddings and layers, as the checkpoint groups them.
#[derive(Module, Debug)]
pub struct QFormerBert {
    /// Embeddings.
    pub embeddings: QFormerEmbeddings,
    /// Layers.
    pub encoder: QFormerEncoder,
}

/// Learned queries and the BERT that lets them read visual tokens.
#[derive(Module, Debug)]
pub struct QFormer {
    /// Queries `[1, num_query_token, hidden_size]`.
    pub query_tokens: Param<Tensor<3>>,
    /// Queries added for video `[1, extra_num_query_token, hidden_size]`, zero at first.
    pub extra_query_tokens: Option<Param<Tensor<3>>>,
    /// The transformer.
    pub bert: QFormerBert,
    #[module(skip)]
    config: QFormerConfig,
}

impl QFormerConfig {
    /// Creates the Q-Former with BERT's initialisation: weights and queries normal, biases and
    /// extra queries zero, norms one. Values are drawn on first use.
    ///
    /// # Errors
    /// [`VisionError::Config`] when [`validate`](Self::validate) finds problems.
    pub fn init(&self, device: &Device) -> Result<QFormer> {
        self.validate()?;
        let layer = DropPathConfig::linear_decay(self.drop_path_rate, self.num_hidden_layers)
            .into_iter()
            .enumerate()
            .map(|(index, drop_path)| QFormerLayer::new(self, index, drop_path, device))
            .collect();
        let normal = Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        };
        let extra = self.extra_num_query_token;
        Ok(QFormer {
            query_tokens: normal.init([1, self.num_query_token, self.hidden_size], device),
            extra_query_tokens: (extra > 0)
                .then(|| Initializer::Zeros.init([1, extra, self.hidden_size], device)),
            bert: QFormerBert {
                embeddings: QFormerEmbeddings::new(self, device),
                encoder: QFormerEncoder { layer },
            },
            config: self.clone(),
        })
    }
}

impl QFormer {
    /// The architecture.
    pub fn config(&self) -> &QFormerConfig {
        &self.config
    }

    /// Dtype of the parameters, to which features are cast.
    pub fn dtype(&self) -> DType {
        self.query_tokens.val().dtype()
    }

    /// Reads visual tokens through the queries.
    ///
    /// # Shapes
    /// - features `[batch, tokens, encoder_width]`
    /// - instruction ids and mask `[batch, length]`, padded on the left; padding consumes
    ///   positions, as in the reference
    /// - output `[batch, n_query, hidden_size]`
    ///
    /// # Errors
    /// [`VisionError::Shape`] or [`VisionError::Instruction`].
    pub fn forward(
        &self,
        features: Tensor<3>,
        instruction: Option<&Instruction>,
    ) -> Result<Tensor<3>> {
        let last = self.hidden(features, instruction, |_| {})?;
        Ok(last.narrow(1, 0, self.config.n_query()))
    }

    /// Output of the last layer, `[batch, n_query + length, hidden_size]`, the queries first; `see`
    /// gets the input of each layer.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden(
        &self,
        features: Tensor<3>,
        instruction: Option<&Instruction>,
        mut see: impl FnMut(&Tensor<3>),
    ) -> Result<Tensor<3>> {
        self.check_features(features.dims())?;
        if let Some(instruction) = instruction {
            self.check_instruction(features.dims()[0], instruction)?;
        }
        let batch = features.dims()[0];
        let dtype = self.dtype();
        let features = features.cast(dtype);
        let n_query = self.config.n_query();
        let mut queries = vec![self.query_tokens.val()];
        queries.extend(self.extra_query_tokens.as_ref().map(|q| q.val()));
        let queries = Tensor::cat(queries, 1).repeat_dim(0, batch);

        let bias = instruction.map(|instruction| {
            let padding = instruction.mask.clone().equal_elem(0).float().cast(dtype) * MASK_BIAS;
            let none = Tensor::<2>::zeros([batch, n_query], (&padding.device(), dtype));
            Tensor::cat(vec![none, padding], 1).unsqueeze_dims(&[1, 1])
        });
        let ids = instruction.map(|instruction| instruction.ids.clone());
        let mut x = self.bert.embeddings.forward(queries, ids);
        for layer in &self.bert.encoder.layer {
            see(&x);
            x = layer.forward(x, n_query, features.clone(), bias.clone());
        }
        Ok(x)
    }

    fn check_features(&self, shape: [usize; 3]) -> Result<()> {
        let width = self.config.encoder_width;
        if shape.contains(&0) || shape[2] != width {
            return Err(VisionError::Shape {
                place: PLACE,
                what: "visual features",
                expected: format!("[batch, tokens, {width}], none of them zero"),
                found: shape.to_vec(),
            });
        }
        Ok(())
    }

    fn check_instruction(&self, batch: usize, instruction: &Instruction) -> Result<()> {
        let found = instruction.ids.dims();
        if found[0] != batch || found[1] == 0 {
            return Err(VisionError::Shape {
                place: PLACE,
                what: "instruction ids",
                expected: format!("[{batch}, length >= 1]"),
                found: found.to_vec(),
            });
        }
        if instruction.mask.dims() != found {
            return Err(VisionError::Shape {
                place: PLACE,
                what: "instruction mask",
                expected: format!("{found:?}, as the ids"),
                found: instruction.mask.dims().to_vec(),
            });
        }
        let wrong = |why: String| Err(VisionError::Instruction { place: PLACE, why });
        let (length, max) = (found[1], self.config.max_position_embeddings);
        if length > max {
            return wrong(format!(
                "the instruction has {length} tokens, padding included, but there are {max} \
                 positions; truncate it on the left as the reference's tokenizer does"
            ));
        }
        let vocab = self.config.vocab_size;
        let lowest: i64 = instruction.ids.clone().min().into_scalar();
        let highest: i64 = instruction.ids.clone().max().into_scalar();
        for id in [lowest, highest] {
            if id < 0 || id >= vocab as i64 {
                return wrong(format!(
                    "token id {id} is outside the vocabulary of {vocab}; tokenise the instruction \
                     with the connector's own (BERT) tokenizer"
                ));
            }
        }
        Ok(())
    }
}
