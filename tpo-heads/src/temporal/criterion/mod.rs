//! Loss of CG-DETR: spans matched to moments, saliency, alignment of moments and sentences.

mod alignment;
mod bce;
mod config;
mod matcher;
mod saliency;
mod spans;

use burn::tensor::Tensor;
use tpo_core::head::LossTerms;

pub use config::{CriterionConfig, MatchCosts};
pub use matcher::{Matched, Matches, match_spans};

pub(super) use matcher::finite;

use super::model::{CgDetrOutput, CgDetrTraining};
use crate::HeadsError;

/// Ground truth of a padded batch, on the host.
#[derive(Debug, Clone, Default)]
pub struct BatchTargets {
    /// True spans (centre, width), 0–1, per sample.
    pub spans: Vec<Vec<[f32; 2]>>,
    /// Saliency label of every clip, 0 on padding, `[batch][clips]`.
    pub saliency: Vec<Vec<f32>>,
    /// Clips that belong to the moment, `false` on padding, `[batch][clips]`.
    pub relevant: Vec<Vec<bool>>,
    /// Pairs (more salient clip, less salient clip) per sample.
    pub pairs: Vec<Vec<(usize, usize)>>,
    /// For every sample whether the text of the next one belongs to another video.
    pub real_negative: Vec<bool>,
}

/// What the criterion computes.
#[derive(Debug, Clone)]
pub struct CriterionOutput {
    /// The terms with their weights, those of earlier layers with the suffix `_0`, `_1`, …
    pub terms: LossTerms,
    /// Matches of the last layer, then of the earlier ones in order.
    pub matches: Vec<Matches>,
    /// Percentage of matched queries that the layer calls background, in the order of `matches`.
    pub class_error: Vec<f32>,
}

/// Losses of a batch.
///
/// `class_weight` is `[2]`: foreground, background.
///
/// # Errors
/// [`HeadsError::NotFinite`] when the model's spans or logits are not finite.
pub fn criterion(
    output: &CgDetrOutput,
    training: &CgDetrTraining,
    targets: &BatchTargets,
    class_weight: Tensor<1>,
    config: &CriterionConfig,
) -> Result<CriterionOutput, HeadsError> {
    let found = match_spans(output, &targets.spans, &config.costs)?;
    let layers = found.matches.len();
    let losses = spans::losses(output, &found.matches, &targets.spans, class_weight);

    let w = |weight: f64| weight * config.scale;
    let mut terms = LossTerms::new();
    let last = layers - 1;
    for layer in std::iter::once(last).chain(0..last) {
        let name = |term: &str| {
            if layer == last {
                term.to_string()
            } else {
                format!("{term}_{layer}")
            }
        };
        let at = |x: &Tensor<1>| x.clone().narrow(0, layer, 1);
        terms = terms
            .with(name("span"), at(&losses.span), w(config.span))
            .with(name("giou"), at(&losses.giou), w(config.giou))
            .with(name("label"), at(&losses.label), w(config.label));
        if layer == last {
            let saliency = saliency::loss(output, training, targets, config);
            let align = alignment::moments_and_sentences(output, training);
            let distill = alignment::distillation(output, training, &targets.relevant);
            let orthogonal = alignment::orthogonal(output);
            terms = terms
                .with("saliency", saliency, w(config.saliency))
                .with("ms_align", align, w(config.ms_align))
                .with("distill", distill, w(config.distill))
                .with("orthogonal_dummy", orthogonal, w(config.orthogonal_dummy));
        }
    }
    let mut matches = found.matches;
    let mut class_error = found.class_error;
    matches.rotate_right(1);
    class_error.rotate_right(1);
    Ok(CriterionOutput {
        terms,
        matches,
        class_error,
    })
}
