//! Saliency loss: on the scores, and on the share of attention that goes to the text.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use tpo_core::ops::{floats, indices};

use super::bce::bce;
use super::{BatchTargets, CriterionConfig};
use crate::temporal::model::{CgDetrOutput, CgDetrTraining, mask};

/// Ranks of the contrast: labels 1 to 11 of a sum of three raters' 0–4 (reference implementation;
/// the sum is divided by 12).
const RANKS: std::ops::RangeInclusive<usize> = 1..=11;
const RANK_DIVISOR: f32 = 12.0;
/// Score of padding.
const FAR: f32 = -1e3;

pub(super) fn loss(
    output: &CgDetrOutput,
    training: &CgDetrTraining,
    targets: &BatchTargets,
    config: &CriterionConfig,
) -> Tensor<1> {
    let [batch, clips] = output.saliency.dims();
    let device = output.saliency.device();
    let lengths = &output.video_lengths;
    let scores = output.saliency.clone().cast(FloatDType::F32);
    let attention = output.text_attention.clone().cast(FloatDType::F32);
    let labels: Vec<&[f32]> = targets.saliency.iter().map(Vec::as_slice).collect();

    let mut on_scores = margin(scores.clone(), &targets.pairs, config);
    let mut on_attention = margin(attention.clone(), &targets.pairs, config);
    match &training.negatives {
        None => {
            let contrast = Contrast::new(&labels, lengths, clips, 1);
            on_scores = on_scores + contrast.loss(scores, config.temperature);
            on_attention = on_attention + contrast.loss(attention.clone(), config.temperature);
        }
        Some(negatives) => {
            let rows = &negatives.rows;
            let own = index(rows, &device);
            let pick = |x: &Tensor<2>| x.clone().select(0, own.clone());
            let real: Vec<&[f32]> = rows.iter().map(|r| labels[*r]).collect();
            let real_lengths: Vec<usize> = rows.iter().map(|r| lengths[*r]).collect();
            let contrast = Contrast::new(&real, &real_lengths, clips, 2);
            let with_foreign = |x: &Tensor<2>, foreign: &Tensor<2>| {
                let both = Tensor::cat(vec![pick(x), foreign.clone()], 1);
                contrast.loss(both, config.temperature)
            };
            on_scores = on_scores + with_foreign(&scores, &negatives.saliency);
            on_attention = on_attention + with_foreign(&attention, &negatives.text_attention);

            // Samples whose neighbour shows the same video contrast with themselves; the
            // reference does this for the scores only. Of exactly one such sample a shape mistake
            // there makes a constant of 1e-6, and that is how it was trained.
            let same: Vec<usize> = (0..batch).filter(|b| !rows.contains(b)).collect();
            if same.len() > 1 {
                let labels: Vec<&[f32]> = same.iter().map(|r| labels[*r]).collect();
                let lengths: Vec<usize> = same.iter().map(|r| lengths[*r]).collect();
                let contrast = Contrast::new(&labels, &lengths, clips, 1);
                let scores = scores.select(0, index(&same, &device));
                on_scores = on_scores + contrast.loss(scores, config.temperature);
            }

            // Under a foreign text no clip is salient and no attention goes to the text.
            let real_mask = mask(&real_lengths, clips, &device, DType::F32);
            let summed = |x: Tensor<2>| (x * real_mask.clone()).sum_dim(1).mean();
            on_scores = on_scores - summed(log_sigmoid(negatives.saliency.clone().neg()));
            // Where all attention goes to the text the reference's loss is infinite; here it stops
            // at the smallest difference from one that f32 knows.
            let rest = negatives.text_attention.clone().neg().add_scalar(1.0);
            on_attention = on_attention - summed(rest.clamp_min(f32::EPSILON / 2.0).log());
        }
    }
    let binary: Vec<f32> = targets
        .saliency
        .iter()
        .flatten()
        .map(|s| s.clamp(0.0, 1.0))
        .collect();
    let binary = floats(binary, [batch, clips], &device);
    on_attention = on_attention + bce(attention, binary).mean();
    on_scores + on_attention * config.attention
}

/// Mean over pairs of `max(0, margin + less − more)`, times two.
fn margin(scores: Tensor<2>, pairs: &[Vec<(usize, usize)>], config: &CriterionConfig) -> Tensor<1> {
    let [batch, clips] = scores.dims();
    let device = scores.device();
    let (mut more, mut less) = (Vec::new(), Vec::new());
    for (b, pairs) in pairs.iter().enumerate() {
        for &(high, low) in pairs {
            more.push(b * clips + high);
            less.push(b * clips + low);
        }
    }
    if more.is_empty() {
        return Tensor::zeros([1], (&device, DType::F32));
    }
    let flat = scores.reshape([batch * clips]);
    let at = |rows: &[usize]| flat.clone().select(0, index(rows, &device));
    (at(&less) - at(&more))
        .add_scalar(config.saliency_margin)
        .clamp_min(0.0)
        .mean()
        * 2.0
}

/// Contrast of ranked clips. The log-probabilities do not depend on the rank, so all ranks
/// together are one weighted sum whose weights are known on the host.
struct Contrast {
    weights: Vec<f32>,
    mask: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Contrast {
    /// `copies` of the clips lie side by side in a row: the second are of a foreign text and have
    /// label zero.
    fn new(labels: &[&[f32]], lengths: &[usize], clips: usize, copies: usize) -> Self {
        let (rows, width) = (labels.len(), copies * clips);
        let mut weights = vec![0.0f32; rows * width];
        let mut mask = vec![0.0f32; rows * width];
        for (row, (labels, &length)) in labels.iter().zip(lengths).enumerate() {
            for at in 0..width {
                mask[row * width + at] = (at % clips < length) as u8 as f32;
            }
            for rank in RANKS {
                let positive = |label: f32| label >= rank as f32;
                let count = labels.iter().filter(|l| positive(**l)).count();
                if count == 0 {
                    continue;
                }
                let share = 1.0 / ((count as f32 + 1e-6) * rows as f32 * RANK_DIVISOR);
                for (at, label) in labels.iter().enumerate() {
                    if positive(*label) && at < length {
                        weights[row * width + at] += share;
                    }
                }
            }
        }
        Self {
            weights,
            mask,
            rows,
            width,
        }
    }

    fn loss(&self, scores: Tensor<2>, temperature: f64) -> Tensor<1> {
        let device = scores.device();
        let tensor = |values: &[f32]| floats(values.to_vec(), [self.rows, self.width], &device);
        let mask = tensor(&self.mask);
        let padding = mask.clone().neg().add_scalar(1.0) * FAR;
        let scores = (scores * mask + padding) / temperature;
        let scores = scores.clone() - scores.detach().max_dim(1);
        let log_p = scores.clone() - scores.exp().sum_dim(1).add_scalar(1e-6).log();
        (log_p * tensor(&self.weights)).sum().neg()
    }
}

fn index(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    indices(rows.iter().copied(), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_by_hand() {
        // Two clips with labels 2 and 0 and equal scores: log p = ln(1/2) at ranks 1 and 2.
        let contrast = Contrast::new(&[&[2.0, 0.0]], &[2], 2, 1);
        let scores = Tensor::<2>::from_data([[0.3f32, 0.3]], &Device::flex());
        let found: f32 = contrast.loss(scores, 0.5).into_scalar();
        assert!((found - 2.0 * 2f32.ln() / 12.0).abs() < 1e-6, "{found}");
    }

    #[test]
    fn padding_has_no_part() {
        let short = Contrast::new(&[&[1.0, 0.0]], &[2], 2, 1);
        let long = Contrast::new(&[&[1.0, 0.0, 0.0]], &[2], 3, 1);
        let device = Device::flex();
        let a: f32 = short
            .loss(Tensor::from_data([[0.1f32, 0.4]], &device), 0.5)
            .into_scalar();
        let b: f32 = long
            .loss(Tensor::from_data([[0.1f32, 0.4, 9.0]], &device), 0.5)
            .into_scalar();
        assert!((a - b).abs() < 1e-6);
    }

    #[test]
    fn margin_by_hand() {
        let scores = Tensor::<2>::from_data([[1.0f32, 0.9, 0.0]], &Device::flex());
        let config = CriterionConfig::reference();
        // Pairs (0, 1): 0.2 − 0.1 = 0.1; (0, 2): satisfied. Mean 0.05, doubled.
        let found: f32 = margin(scores, &[vec![(0, 1), (0, 2)]], &config).into_scalar();
        assert!((found - 0.1).abs() < 1e-6, "{found}");
    }
}
