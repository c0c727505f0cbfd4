//! Weights and constants of the criterion.

use burn::config::Config;

/// Weights of the matching cost.
#[derive(Config, Debug, PartialEq)]
pub struct MatchCosts {
    /// Of the summed absolute difference of centre and width.
    #[config(default = 10.0)]
    pub span: f64,
    /// Of the negated generalised IoU.
    #[config(default = 1.0)]
    pub giou: f64,
    /// Of the negated foreground probability.
    #[config(default = 4.0)]
    pub class: f64,
}

/// Weights and constants of the loss. Defaults are the reference implementation's.
#[derive(Config, Debug, PartialEq)]
pub struct CriterionConfig {
    /// Mean absolute difference of centre and width of matched spans.
    #[config(default = 10.0)]
    pub span: f64,
    /// `1 − gIoU` of matched spans.
    #[config(default = 1.0)]
    pub giou: f64,
    /// Cross entropy of foreground and background.
    #[config(default = 4.0)]
    pub label: f64,
    /// Saliency: margin, rank contrast and foreign texts, on scores and on attention.
    #[config(default = 4.0)]
    pub saliency: f64,
    /// Alignment of moments and sentences.
    #[config(default = 1.0)]
    pub ms_align: f64,
    /// Distillation of clip-word similarity into attention.
    #[config(default = 1.0)]
    pub distill: f64,
    /// Orthogonality of dummies and of saliency prompts.
    #[config(default = 1.0)]
    pub orthogonal_dummy: f64,
    /// Factor on all weights in the sum with the language model's loss.
    #[config(default = 0.05)]
    pub scale: f64,
    /// Class weight of the background; the mean is plain, not weighted.
    #[config(default = 0.1)]
    pub background: f64,
    /// Margin between the clips of a saliency pair.
    #[config(default = 0.2)]
    pub saliency_margin: f64,
    /// Temperature of the rank contrast.
    #[config(default = 0.5)]
    pub temperature: f64,
    /// Weight of the saliency loss on attention within the saliency loss.
    #[config(default = 1.0)]
    pub attention: f64,
    /// Weights of the matching.
    #[config(default = "MatchCosts::new()")]
    pub costs: MatchCosts,
}

impl CriterionConfig {
    /// The reference implementation's weights.
    pub fn reference() -> Self {
        Self::new()
    }
}
