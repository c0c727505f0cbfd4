//! One vector per token of a query.

use std::sync::OnceLock;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use tpo_core::prompt::TextEncoder;
use tpo_core::traits::LanguageModel;
use tpo_llm::text_tower::{QueryTokenizer, TextTower};

use super::{plain_device, weights_fingerprint};
use crate::error::HeadsError;

/// Most tokens of a query's features (reference implementation).
const MAX_QUERY_TOKENS: usize = 100;

/// A frozen tower that turns a query into one vector per token.
pub trait QueryFeatureExtractor: Send + Sync {
    /// Width of a feature.
    fn width(&self) -> usize;

    /// Names the tower and its weights; with one tokenizer, equal identities give equal features.
    ///
    /// # Errors
    /// Files of weights that cannot be read.
    fn identity(&self) -> Result<String, HeadsError>;

    /// Features of a query, in f32, without autodiff: `[tokens, width]`, at least one token.
    ///
    /// # Errors
    /// When the query cannot be encoded, and the tower's own.
    fn extract(&self, query: &str) -> Result<Tensor<2>, HeadsError>;
}

/// Hidden states of InternVideo2-CLIP's text tower, of every token of the query, the
/// `summarize:` in front and the ends included (reference implementation).
#[derive(Debug)]
pub struct TextTowerFeatures {
    tower: TextTower,
    tokenizer: QueryTokenizer,
    identity: OnceLock<String>,
}

impl TextTowerFeatures {
    /// Freezes a tower.
    pub fn new(tower: TextTower, tokenizer: QueryTokenizer) -> Self {
        Self {
            tower: tower.valid(),
            tokenizer,
            identity: OnceLock::new(),
        }
    }
}

impl QueryFeatureExtractor for TextTowerFeatures {
    fn width(&self) -> usize {
        self.tower.dim()
    }

    fn identity(&self) -> Result<String, HeadsError> {
        let identity = || format!("internvideo2-text:{}", weights_fingerprint(&self.tower));
        Ok(self.identity.get_or_init(identity).clone())
    }

    fn extract(&self, query: &str) -> Result<Tensor<2>, HeadsError> {
        let ids = self.tokenizer.encode(query)?;
        let features = self.tower.features(&ids)?;
        Ok(cut(features).cast(FloatDType::F32))
    }
}

/// Hidden states of any [`LanguageModel`] with its tokenizer. What a small model uses in place of
/// InternVideo2's text tower.
#[derive(Debug)]
pub struct LanguageModelFeatures<L, T> {
    lm: L,
    tokenizer: T,
    name: String,
    device: Device,
    identity: OnceLock<String>,
}

impl<L: LanguageModel, T: TextEncoder> LanguageModelFeatures<L, T> {
    /// Freezes a language model. `name` tells architectures apart whose weights are equal.
    pub fn new(lm: L, tokenizer: T, name: impl Into<String>) -> Self {
        Self {
            device: plain_device(&lm),
            lm: lm.valid(),
            tokenizer,
            name: name.into(),
            identity: OnceLock::new(),
        }
    }
}

impl<L, T> QueryFeatureExtractor for LanguageModelFeatures<L, T>
where
    L: LanguageModel + Sync,
    T: TextEncoder + Send + Sync,
{
    fn width(&self) -> usize {
        self.lm.dim()
    }

    fn identity(&self) -> Result<String, HeadsError> {
        let identity = || format!("{}:{}", self.name, weights_fingerprint(&self.lm));
        Ok(self.identity.get_or_init(identity).clone())
    }

    fn extract(&self, query: &str) -> Result<Tensor<2>, HeadsError> {
        let mut ids = self.tokenizer.encode_with_bos(query)?;
        ids.truncate(MAX_QUERY_TOKENS);
        let vocab = self.lm.vocab_size();
        let known = !ids.is_empty() && ids.iter().all(|id| (*id as usize) < vocab);
        let expected = format!("at least one, each below {vocab}");
        HeadsError::require(
            known,
            "tokens of the query",
            expected,
            format_args!("{ids:?}"),
        )?;
        let data: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(data, [1, ids.len()]), &self.device);
        let hidden = self.lm.hidden(self.lm.embed(ids), None)?;
        Ok(hidden.squeeze_dim::<2>(0).cast(FloatDType::F32))
    }
}

fn cut(features: Tensor<2>) -> Tensor<2> {
    let rows = features.dims()[0];
    features.narrow(0, 0, rows.min(MAX_QUERY_TOKENS))
}
