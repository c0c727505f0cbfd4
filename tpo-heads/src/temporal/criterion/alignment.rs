//! Alignment of moments and sentences, distillation into attention, orthogonality.

use burn::tensor::activation::{log_softmax, sigmoid};
use burn::tensor::{DType, FloatDType, Tensor};
use tpo_core::ops::floats;

use super::bce::bce;
use crate::temporal::model::{CgDetrOutput, CgDetrTraining, mask, normalise};

/// Added to an attention weight before its logarithm (reference implementation).
const ATTENTION_EPS: f64 = 1e-6;

/// A moment is like its own sentence and unlike other sentences, like dummies of other samples,
/// and picks its own clips.
pub(super) fn moments_and_sentences(output: &CgDetrOutput, training: &CgDetrTraining) -> Tensor<1> {
    let batch = training.moment.dims()[0];
    let moment = normalise(training.moment.clone());
    let other = normalise(training.other.clone());
    let against = |rows: &Tensor<2>| {
        let rows = normalise(rows.clone()).transpose();
        let own = moment.clone().matmul(rows.clone());
        Tensor::cat(vec![own, other.clone().matmul(rows)], 1)
    };
    let own: Vec<usize> = (0..batch).collect();
    // The reference asks for the position of the largest label and gets the first of many: the
    // dummies of sample 0, and for sample 0 those of the next entry.
    let foreign: Vec<usize> = (0..batch).map(|b| if b == 0 { 1 } else { 0 }).collect();
    let sentences = cross_entropy(against(&training.sentence), &own);
    let dummies = cross_entropy(against(&training.dummy_sentence), &foreign);

    let [_, clips, d] = training.clips.dims();
    let picked = training
        .moment
        .clone()
        .reshape([batch, 1, d])
        .matmul(training.clips.clone().swap_dims(1, 2))
        .reshape([batch, clips]);
    let device = picked.device();
    let real = mask(&output.video_lengths, clips, &device, DType::F32);
    let clips = (bce(sigmoid(picked), training.relevant.clone()) * real).mean();
    sentences + dummies + clips
}

fn cross_entropy(logits: Tensor<2>, classes: &[usize]) -> Tensor<1> {
    let [rows, width] = logits.dims();
    let mut chosen = vec![0.0f32; rows * width];
    for (row, class) in classes.iter().enumerate() {
        chosen[row * width + class] = 1.0;
    }
    let chosen = floats(chosen, [rows, width], &logits.device());
    (log_softmax(logits, 1) * chosen).sum() / -(rows as f64)
}

/// Divergence of the attention of a moment's clips from their similarity to dummies and words,
/// which is held fixed. Zero when no clip of the batch is relevant (the reference divides by
/// zero).
pub(super) fn distillation(
    output: &CgDetrOutput,
    training: &CgDetrTraining,
    relevant: &[Vec<bool>],
) -> Tensor<1> {
    let attention = output.attention.clone().cast(FloatDType::F32);
    let count = relevant.iter().flatten().filter(|r| **r).count();
    if count == 0 {
        return Tensor::zeros([1], (&attention.device(), DType::F32));
    }
    let [batch, clips, _] = attention.dims();
    let target = log_softmax(training.moment_similarity.clone().detach(), 2);
    let input = attention.add_scalar(ATTENTION_EPS).log();
    let divergence = (target.clone().exp() * (target - input))
        .mean_dim(2)
        .reshape([batch, clips]);
    (divergence * training.relevant.clone()).sum() / count as f64
}

/// Mean absolute cosine between different dummies, plus that between different saliency prompts.
/// The second factor of each product is held fixed (reference implementation).
pub(super) fn orthogonal(output: &CgDetrOutput) -> Tensor<1> {
    let dummies = off_diagonal(output.dummy_tokens.clone());
    let prompts = output.prompts.clone();
    let [n, d] = prompts.dims();
    let prompts = off_diagonal(prompts.reshape([1, n, d]));
    if output.dummy_tokens.dims()[1] > 1 {
        dummies + prompts
    } else {
        prompts
    }
}

/// `[batch, n, d]`: mean over `batch · n · n` with the diagonals zero.
fn off_diagonal(rows: Tensor<3>) -> Tensor<1> {
    let rows = rows.cast(FloatDType::F32);
    let [_, n, _] = rows.dims();
    let device = rows.device();
    let norm = rows.clone().square().sum_dim(2).sqrt();
    let rows = rows / norm;
    let cosine = rows.clone().matmul(rows.detach().swap_dims(1, 2));
    let off = Tensor::<2>::eye(n, &device).neg().add_scalar(1.0);
    (cosine * off.reshape([1, n, n])).abs().mean()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn orthogonality_by_hand() {
        // Cosine 1/√2 twice of four entries.
        let rows = Tensor::<3>::from_data([[[2.0f32, 0.0], [1.0, 1.0]]], &Device::flex());
        let found: f32 = off_diagonal(rows).into_scalar();
        assert!((found - 0.5f32.sqrt() / 2.0).abs() < 1e-6);
    }

    #[test]
    fn cross_entropy_by_hand() {
        let logits = Tensor::<2>::from_data([[0.0f32, 0.0], [0.0, 3f32.ln()]], &Device::flex());
        let found: f32 = cross_entropy(logits, &[0, 1]).into_scalar();
        assert!((found - (2f32.ln() + (4f32 / 3.0).ln()) / 2.0).abs() < 1e-6);
    }
}
