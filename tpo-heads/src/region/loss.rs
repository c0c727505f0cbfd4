//! Loss of the region head.

use burn::config::Config;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use tpo_core::geometry::box_ops;
use tpo_core::head::LossTerms;

/// Weights of the two terms.
#[derive(Config, Debug, PartialEq)]
pub struct RegionLossWeights {
    /// Weight of the mean absolute difference of the coordinates.
    pub l1: f64,
    /// Weight of the generalised-IoU loss.
    pub giou: f64,
}

impl RegionLossWeights {
    /// 2 and 1/5 (reference implementation; the paper's text says mean squared error instead).
    pub fn reference() -> Self {
        Self::new(2.0, 0.2)
    }
}

/// Loss of predicted against true boxes, both `[n, 4]` normalised xyxy.
///
/// `l1` is the mean over all coordinates. `giou` is the mean of `1 - GIoU` over the predictions
/// whose corners are in order (`x1 >= x0` and `y1 >= y0`), and the constant 2 if there are none:
/// the reference's rule, since the head has no sigmoid.
pub fn region_loss(
    predicted: Tensor<2>,
    target: Tensor<2>,
    weights: &RegionLossWeights,
) -> LossTerms {
    let device = predicted.device();
    let l1 = (predicted.clone() - target.clone()).abs().mean();
    let ordered = ordered_rows(predicted.clone().detach());
    let giou = if ordered.is_empty() {
        Tensor::<1>::full([1], 2.0, &device)
    } else {
        let n = ordered.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(ordered, [n]), &device);
        let giou = box_ops::generalized_iou_aligned(
            predicted.select(0, rows.clone()),
            target.select(0, rows),
        );
        giou.neg().add_scalar(1.0).mean()
    };
    LossTerms::new()
        .with("l1", l1, weights.l1)
        .with("giou", giou, weights.giou)
}

fn ordered_rows(boxes: Tensor<2>) -> Vec<i64> {
    let n = boxes.dims()[0];
    let first = boxes.clone().slice([0..n, 0..2]);
    let second = boxes.slice([0..n, 2..4]);
    let in_order: Tensor<2, Bool> = second.greater_equal(first);
    let flags: Vec<bool> = in_order.into_data().iter::<bool>().collect();
    flags
        .chunks_exact(2)
        .enumerate()
        .filter(|(_, f)| f[0] && f[1])
        .map(|(i, _)| i as i64)
        .collect()
}
