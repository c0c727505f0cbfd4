//! Span and label losses of all decoder layers at once.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, FloatDType, Tensor};
use tpo_core::geometry::span_ops;
use tpo_core::ops::{floats, indices};

use super::Matches;
use crate::temporal::model::CgDetrOutput;

/// One value per layer, each `[layers]`.
pub(super) struct SpanLosses {
    /// Mean absolute difference of centre and width.
    pub(super) span: Tensor<1>,
    /// Mean of `1 − gIoU`.
    pub(super) giou: Tensor<1>,
    /// Class-weighted cross entropy, plain mean over all queries.
    pub(super) label: Tensor<1>,
}

pub(super) fn losses(
    output: &CgDetrOutput,
    matches: &[Matches],
    targets: &[Vec<[f32; 2]>],
    class_weight: Tensor<1>,
) -> SpanLosses {
    let [layers, batch, queries, _] = output.spans.dims();
    let device = output.spans.device();
    let mut rows = Vec::new();
    let mut truth = Vec::new();
    // Class 1 is the background.
    let mut classes = vec![[0.0f32, 1.0]; layers * batch * queries];
    for (layer, samples) in matches.iter().enumerate() {
        for (b, pairs) in samples.iter().enumerate() {
            for &(query, target) in pairs {
                let row = (layer * batch + b) * queries + query;
                rows.push(row);
                truth.extend(targets[b][target]);
                classes[row] = [1.0, 0.0];
            }
        }
    }
    let per_layer = rows.len() / layers;
    let (span, giou) = if per_layer == 0 {
        let zero = Tensor::zeros([layers], (&device, DType::F32));
        (zero.clone(), zero)
    } else {
        let n = rows.len();
        let rows = indices(rows, &device);
        let truth = floats(truth, [n, 2], &device);
        let spans = output
            .spans
            .clone()
            .cast(FloatDType::F32)
            .reshape([layers * batch * queries, 2])
            .select(0, rows);
        let l1 = (spans.clone() - truth.clone())
            .abs()
            .reshape([layers, per_layer * 2]);
        let giou = span_ops::generalized_iou_aligned(
            span_ops::cxw_to_xx(spans),
            span_ops::cxw_to_xx(truth),
        );
        let giou = giou.neg().add_scalar(1.0).reshape([layers, per_layer]);
        (mean_rows(l1), mean_rows(giou))
    };

    let classes: Vec<f32> = classes.into_iter().flatten().collect();
    let classes = floats(classes, [layers, batch * queries, 2], &device);
    let weight = class_weight
        .detach()
        .cast(FloatDType::F32)
        .reshape([1, 1, 2]);
    let logits = output.logits.clone().cast(FloatDType::F32);
    let log_p = log_softmax(logits.reshape([layers, batch * queries, 2]), 2);
    let label = (log_p * classes * weight)
        .sum_dim(2)
        .reshape([layers, batch * queries]);
    SpanLosses {
        span,
        giou,
        label: mean_rows(label).neg(),
    }
}

fn mean_rows(x: Tensor<2>) -> Tensor<1> {
    let rows = x.dims()[0];
    x.mean_dim(1).reshape([rows])
}
