//! Loss of the mask head.

use burn::config::Config;
use burn::tensor::Tensor;
use burn::tensor::activation::{relu, sigmoid};

use super::train::Sam2TrainConfig;

/// Weights of the terms that need a box only.
#[derive(Config, Debug, PartialEq)]
pub struct MaskLossConfig {
    /// Weight of the mean absolute difference between the adapter's prompt tokens and those of
    /// SAM 2's prompt encoder (reference implementation: 1).
    #[config(default = 1.0)]
    pub embedding: f64,
    /// Weight of the mean absolute difference of the auxiliary box (reference implementation: 1).
    #[config(default = 1.0)]
    pub area: f64,
    /// Losses on masks: training of SAM 2 through video, and of the adapter through its decoder and
    /// memory. It acts where parameters of SAM 2 learn, or where its prompts include the task token.
    /// `None`: as the reference implementation, which keeps SAM 2 frozen and has no loss on masks.
    #[config(default = "None")]
    pub video: Option<Sam2TrainConfig>,
}

/// Focal loss of logits against targets 0–1, mean over the pixels of every row: `[n, pixels]` to
/// `[n]`.
///
/// `α_t (1 − p_t)^γ · BCE` with `p_t` the probability of the truth (SAM 2's training code, after
/// RetinaNet).
pub fn focal_loss(logits: Tensor<2>, target: Tensor<2>, alpha: f64, gamma: f64) -> Tensor<1> {
    let rows = logits.dims()[0];
    let p = sigmoid(logits.clone());
    let magnitude = logits.clone().abs().neg().exp().log1p();
    let cross_entropy = relu(logits.clone()) - logits * target.clone() + magnitude;
    let other = target.clone().neg().add_scalar(1.0);
    let p_other = p.clone().neg().add_scalar(1.0);
    let p_true = p * target.clone() + p_other * other.clone();
    // The clamp keeps the slope of the power finite where the prediction is perfect.
    let hard = p_true.neg().add_scalar(1.0).clamp_min(1e-6);
    let balance = target * alpha + other * (1.0 - alpha);
    let hard = if gamma == 2.0 {
        hard.clone() * hard
    } else {
        hard.powf_scalar(gamma)
    };
    (balance * hard * cross_entropy).mean_dim(1).reshape([rows])
}

/// Dice loss of logits against targets 0–1: `1 − (2 Σpt + 1) / (Σp + Σt + 1)` of every row
/// (SAM 2's training code). `[n, pixels]` to `[n]`.
pub fn dice_loss(logits: Tensor<2>, target: Tensor<2>) -> Tensor<1> {
    let rows = logits.dims()[0];
    let p = sigmoid(logits);
    let common = (p.clone() * target.clone()).sum_dim(1) * 2.0 + 1.0;
    let all = p.sum_dim(1) + target.sum_dim(1) + 1.0;
    (common / all).neg().add_scalar(1.0).reshape([rows])
}

/// IoU of the masks `logit > 0` and `target >= 0.5`, `[n, pixels]` to `[n]`; 0 where both are empty.
/// A constant: no gradient.
pub fn actual_iou(logits: Tensor<2>, target: Tensor<2>) -> Tensor<1> {
    let rows = logits.dims()[0];
    let found = logits.detach().greater_scalar(0.0).float();
    let truth = target.detach().greater_equal_scalar(0.5).float();
    let common = (found.clone() * truth.clone()).sum_dim(1);
    let either = (found + truth).sum_dim(1) - common.clone();
    (common / either.clamp_min(1.0)).reshape([rows])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn rows(values: &[f32], n: usize) -> Tensor<2> {
        let data = TensorData::new(values.to_vec(), [n, values.len() / n]);
        Tensor::from_data(data, &Device::flex())
    }

    fn values(x: Tensor<1>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    #[test]
    fn by_hand() {
        // Probabilities 0.5 and 0.75; the truth is 1 and 0.
        let logits = rows(&[0.0, 3f32.ln()], 1);
        let target = rows(&[1.0, 0.0], 1);
        let focal = values(focal_loss(logits.clone(), target.clone(), 0.25, 2.0))[0];
        let expected = (0.25 * 0.25 * 2f32.ln() + 0.75 * 0.5625 * 4f32.ln()) / 2.0;
        assert!((focal - expected).abs() < 1e-6, "{focal} {expected}");
        let dice = values(dice_loss(logits.clone(), target.clone()))[0];
        let expected = 1.0 - (2.0 * 0.5 + 1.0) / (1.25 + 1.0 + 1.0);
        assert!((dice - expected).abs() < 1e-6, "{dice} {expected}");
        // Only the second is above zero, only the first is true.
        assert_eq!(values(actual_iou(logits, target)), [0.0]);
    }

    #[test]
    fn extremes_are_finite_and_rows_are_apart() {
        let logits = rows(&[200.0, -200.0, 200.0, -200.0], 2);
        let target = rows(&[1.0, 0.0, 0.0, 1.0], 2);
        let focal = values(focal_loss(logits.clone(), target.clone(), 0.25, 2.0));
        assert!(
            focal[0] < 1e-6 && (focal[1] - 100.0).abs() < 1e-3,
            "{focal:?}"
        );
        let dice = values(dice_loss(logits.clone(), target.clone()));
        assert!(
            dice[0] < 1e-6 && (dice[1] - 2.0 / 3.0).abs() < 1e-6,
            "{dice:?}"
        );
        assert_eq!(values(actual_iou(logits.clone(), target)), [1.0, 0.0]);
        // Nothing found where nothing is.
        let nothing = rows(&[-1.0, -1.0], 1);
        assert_eq!(values(actual_iou(nothing, rows(&[0.0, 0.0], 1))), [0.0]);
    }
}
