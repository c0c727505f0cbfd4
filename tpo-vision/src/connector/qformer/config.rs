//! Architecture of the Q-Former.

use burn::config::Config;
use tpo_core::config::{MOST, MOST_LAYERS, Problems, overlay};

use crate::error::{Result, VisionError};

/// Architecture of [`QFormer`](super::QFormer). Field names are those of Hugging Face's BERT
/// config and of the reference's Q-Former options.
#[derive(Config, Debug, PartialEq)]
pub struct QFormerConfig {
    /// Width of a query.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the hidden layer of the feed-forward networks.
    pub intermediate_size: usize,
    /// Width of the visual tokens.
    pub encoder_width: usize,
    /// Rows of the word table.
    #[config(default = 30523)]
    pub vocab_size: usize,
    /// Rows of the position table of the instruction.
    #[config(default = 512)]
    pub max_position_embeddings: usize,
    /// Number of queries of the image Q-Former.
    #[config(default = 32)]
    pub num_query_token: usize,
    /// Number of queries added for video; zero leaves them out.
    #[config(default = 64)]
    pub extra_num_query_token: usize,
    /// Cross-attention in layers `0, n, 2n, ..`.
    #[config(default = 2)]
    pub cross_attention_freq: usize,
    /// Dropout after the embeddings and after every output projection. Training only.
    #[config(default = 0.1)]
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention weights. Training only.
    #[config(default = 0.1)]
    pub attention_probs_dropout_prob: f64,
    /// Drop-path probability of the last layer; it rises linearly from zero. Training only.
    #[config(default = 0.2)]
    pub drop_path_rate: f64,
    /// Added to the variance in the layer norms.
    #[config(default = 1e-12)]
    pub layer_norm_eps: f64,
    /// Standard deviation of the initial weights.
    #[config(default = 0.02)]
    pub initializer_range: f64,
}

/// What errors call this config.
const PART: &str = "Q-Former";

impl QFormerConfig {
    /// The Q-Former of VideoChat-TPO: BERT-base over UMT-L with 32 + 64 queries (reference
    /// implementation).
    pub fn base() -> Self {
        Self::new(768, 12, 12, 3072, 1024)
    }

    /// A small Q-Former for experiments on a CPU: 4 layers of width 128 with 4 heads over
    /// [`UmtConfig::mini`](crate::UmtConfig::mini), 8 + 16 queries, 1024 words.
    pub fn mini() -> Self {
        Self::new(128, 4, 4, 512, 128)
            .with_vocab_size(1024)
            .with_max_position_embeddings(64)
            .with_num_query_token(8)
            .with_extra_num_query_token(16)
    }

    /// Reads a JSON object with this config's field names. Absent optional fields take this
    /// config's defaults; other fields of a BERT config are ignored.
    ///
    /// # Errors
    /// [`VisionError::ConfigJson`] for a missing size or a wrong type, [`VisionError::Config`]
    /// for sizes that contradict each other.
    pub fn from_hf_json(json: &serde_json::Value) -> Result<Self> {
        let required = [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "encoder_width",
        ];
        let optional = [
            "vocab_size",
            "max_position_embeddings",
            "num_query_token",
            "extra_num_query_token",
            "cross_attention_freq",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "drop_path_rate",
            "layer_norm_eps",
            "initializer_range",
        ];
        let config = overlay(&Self::base(), json, &required, &optional)
            .map_err(|source| VisionError::ConfigJson { part: PART, source })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`VisionError::Config`] with every broken rule.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("encoder_width", self.encoder_width),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("num_query_token", self.num_query_token),
            ("cross_attention_freq", self.cross_attention_freq),
        ];
        problems.sizes(&sizes, MOST);
        problems.sizes(
            &[("num_hidden_layers", self.num_hidden_layers)],
            MOST_LAYERS,
        );
        let extra = self.extra_num_query_token;
        problems.at_most(&[("extra_num_query_token", extra, MOST)]);
        let heads = ("num_attention_heads", self.num_attention_heads);
        problems.multiple(("hidden_size", self.hidden_size), heads);
        let attention_dropout = self.attention_probs_dropout_prob;
        problems.dropout(&[
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", attention_dropout),
            ("drop_path_rate", self.drop_path_rate),
        ]);
        problems.positive(&[
            ("layer_norm_eps", self.layer_norm_eps),
            ("initializer_range", self.initializer_range),
        ]);
        problems.into_result(VisionError::config(PART))
    }

    /// Number of outputs: queries and extra queries (96 in VideoChat-TPO).
    pub fn n_query(&self) -> usize {
        self.num_query_token + self.extra_num_query_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_has_96_queries() {
        QFormerConfig::base().validate().unwrap();
        QFormerConfig::mini().validate().unwrap();
        assert_eq!(QFormerConfig::base().n_query(), 96);
    }

    #[test]
    fn every_problem_is_listed() {
        let config = QFormerConfig::new(10, 2, 3, 8, 0)
            .with_hidden_dropout_prob(1.0)
            .with_layer_norm_eps(f64::NAN);
        let VisionError::Config { problems, .. } = config.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn json_fields_override_defaults() {
        let json = serde_json::json!({
            "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4,
            "intermediate_size": 48, "encoder_width": 24, "vocab_size": 61,
            "hidden_act": "gelu", "drop_path_rate": 0.0
        });
        let config = QFormerConfig::from_hf_json(&json).unwrap();
        assert_eq!(config.vocab_size, 61);
        assert_eq!(config.drop_path_rate, 0.0);
        assert_eq!(config.max_position_embeddings, 512);
        let broken = serde_json::json!({"hidden_size": -1});
        assert!(matches!(
            QFormerConfig::from_hf_json(&broken),
            Err(VisionError::ConfigJson { .. })
        ));
    }
}
