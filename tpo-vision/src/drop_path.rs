//! Stochastic depth.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use tpo_core::nn::drops;

/// Configuration of [`DropPath`].
#[derive(Config, Debug)]
pub struct DropPathConfig {
    /// Probability of dropping the branch of one sample, in `[0, 1)`.
    pub prob: f64,
}

/// Drops a residual branch per sample while training ("Deep Networks with Stochastic Depth",
/// arXiv 1603.09382). Kept branches are divided by `1 - prob`.
///
/// Inactive on a device without autodiff and in a frozen module, like Burn's dropout.
#[derive(Module, Debug)]
pub struct DropPath {
    /// Draws one value per sample.
    pub dropout: Dropout,
}

impl DropPathConfig {
    /// Creates the layer.
    ///
    /// # Panics
    /// When `prob` is not in `[0, 1)`; the configs of this crate check that before.
    pub fn init(&self) -> DropPath {
        DropPath {
            dropout: DropoutConfig::new(self.prob).init(),
        }
    }

    /// Probabilities of `depth` blocks, rising linearly from zero to `max`
    /// (`linspace(0, max, depth)` of the reference).
    pub fn linear_decay(max: f64, depth: usize) -> Vec<f64> {
        (0..depth)
            .map(|i| match depth {
                1 => 0.0,
                _ => max * i as f64 / (depth - 1) as f64,
            })
            .collect()
    }
}

impl DropPath {
    /// Applies the layer to a branch `[batch, ..]`; shape unchanged.
    pub fn forward<const D: usize>(&self, branch: Tensor<D>) -> Tensor<D> {
        let device = branch.device();
        if !drops(&self.dropout, &device) {
            return branch;
        }
        let mut per_item = [1; D];
        per_item[0] = branch.dims()[0];
        let kept = Tensor::<D>::ones(per_item, (&device, branch.dtype()));
        branch * self.dropout.forward(kept)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn linear_decay_ends_at_the_maximum() {
        assert_eq!(DropPathConfig::linear_decay(0.2, 3), vec![0.0, 0.1, 0.2]);
        assert_eq!(DropPathConfig::linear_decay(0.2, 1), vec![0.0]);
        assert!(DropPathConfig::linear_decay(0.2, 0).is_empty());
    }

    #[test]
    fn drops_whole_samples_and_rescales_the_rest() {
        let device = Device::flex().autodiff();
        device.seed(7);
        let layer = DropPathConfig::new(0.25).init();
        let out = layer.forward(Tensor::<3>::ones([400, 2, 3], &device));
        let values: Vec<f32> = out.into_data().try_to_vec().unwrap();
        let mut dropped = 0;
        for sample in values.chunks(6) {
            assert!(sample.iter().all(|v| *v == sample[0]));
            if sample[0] == 0.0 {
                dropped += 1;
            } else {
                assert!((sample[0] - 4.0 / 3.0).abs() < 1e-6);
            }
        }
        // Binomial(400, 0.25): mean 100, standard deviation 8.7.
        assert!((60..140).contains(&dropped), "{dropped} of 400 dropped");
    }

    #[test]
    fn is_the_identity_in_inference_and_when_frozen() {
        let layer = DropPathConfig::new(0.9).init();
        let plain = layer.forward(Tensor::<3>::ones([32, 1, 1], &Device::flex()));
        assert_eq!(plain.sum().into_scalar::<f32>(), 32.0);
        let autodiff = Device::flex().autodiff();
        let frozen = layer.freeze();
        let out = frozen.forward(Tensor::<3>::ones([32, 1, 1], &autodiff));
        assert_eq!(out.sum().into_scalar::<f32>(), 32.0);
    }
}
