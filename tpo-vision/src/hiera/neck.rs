//! The feature pyramid.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Conv2d, Conv2dConfig};

use super::config::{ImageEncoderConfig, STAGES};

/// A 1x1 convolution under the reference's name.
#[derive(Module, Debug)]
pub struct NeckConv {
    /// The convolution.
    pub conv: Conv2d,
}

/// Brings the stages' outputs to one width and adds coarser levels to finer ones.
#[derive(Module, Debug)]
pub struct FpnNeck {
    /// One per level, **coarsest first**.
    pub convs: Vec<NeckConv>,
    #[module(skip)]
    top_down: Vec<usize>,
    #[module(skip)]
    scalp: usize,
}

impl FpnNeck {
    pub(super) fn new(config: &ImageEncoderConfig, device: &Device) -> Self {
        let convs = config
            .trunk
            .widths()
            .iter()
            .rev()
            .map(|&width| NeckConv {
                conv: Conv2dConfig::new(width, config.d_model, 1).init(device),
            })
            .collect();
        Self {
            convs,
            top_down: config.fpn_top_down_levels.clone(),
            scalp: config.scalp,
        }
    }

    /// Maps of the trunk, finest first, to those of the pyramid without the coarsest `scalp`
    /// levels, finest first: `[batch, height, width, d_model]`.
    pub fn forward(&self, stages: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
        let kept = STAGES - self.scalp;
        let mut outputs = Vec::new();
        let mut above: Option<Tensor<4>> = None;
        for (conv, (level, map)) in self.convs.iter().zip(stages.into_iter().enumerate().rev()) {
            // A coarse level that is neither used nor returned.
            if level >= kept && !(kept..=level).all(|l| self.top_down.contains(&(l - 1))) {
                continue;
            }
            let lateral = conv.conv.forward(map);
            let map = match above.take() {
                Some(above) if self.top_down.contains(&level) => lateral + enlarge(above),
                _ => lateral,
            };
            above = Some(map.clone());
            if level < kept {
                outputs.push(map);
            }
        }
        outputs.reverse();
        outputs
    }
}

/// Every pixel as a block of 2x2.
fn enlarge(x: Tensor<4>) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    x.reshape([batch, height, 1, width, 1, channels])
        .expand([batch, height, 2, width, 2, channels])
        .reshape([batch, 2 * height, 2 * width, channels])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarging_repeats_pixels() {
        let x = Tensor::<4>::from_data([[[[1.0], [2.0]], [[3.0], [4.0]]]], &Device::flex());
        let values: Vec<f32> = enlarge(x).into_data().iter::<f32>().collect();
        let expected = [
            1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 3.0, 3.0, 4.0, 4.0,
        ];
        assert_eq!(values, expected);
    }
}
