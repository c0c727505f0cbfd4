//! Differentiable box arithmetic on tensors of `xyxy` boxes; the values of torchvision's `ops`.

use burn::tensor::Tensor;

use super::overlap::{Overlap, columns, common_and_hull, pairs};

/// Signed areas `[n]` of boxes `[n, 4]` (xyxy); negative when one axis is reversed.
pub fn area(boxes: Tensor<2>) -> Tensor<1> {
    area_of(&columns(&boxes)).squeeze_dim(1)
}

/// Pairwise intersection over union `[n, m]`. 0/0 is NaN, as in torchvision.
pub fn iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    pairwise(&a, &b).iou()
}

/// Pairwise generalised IoU `[n, m]`: IoU minus the empty share of the enclosing box, without
/// epsilon.
pub fn generalized_iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    pairwise(&a, &b).generalized_iou()
}

/// Generalised IoU `[n]` of matching rows.
pub fn generalized_iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    aligned(&a, &b).generalized_iou().squeeze_dim(1)
}

/// IoU `[n]` of matching rows.
pub fn iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    aligned(&a, &b).iou().squeeze_dim(1)
}

/// torchvision's `generalized_box_iou_loss` per row `[n]`: `1 - giou` with 1e-7 in both
/// denominators, so it is finite for degenerate boxes.
pub fn generalized_iou_loss(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    const EPS: f64 = 1e-7;
    let [ax0, ay0, ax1, ay1] = columns(&a);
    let [bx0, by0, bx1, by1] = columns(&b);
    let ix0 = ax0.clone().max_pair(bx0.clone());
    let iy0 = ay0.clone().max_pair(by0.clone());
    let ix1 = ax1.clone().min_pair(bx1.clone());
    let iy1 = ay1.clone().min_pair(by1.clone());
    let overlaps = iy1
        .clone()
        .greater(iy0.clone())
        .bool_and(ix1.clone().greater(ix0.clone()));
    let inter = (ix1 - ix0) * (iy1 - iy0);
    let inter = inter.mask_fill(overlaps.bool_not(), 0.0);
    let union = (ax1.clone() - ax0.clone()) * (ay1.clone() - ay0.clone())
        + (bx1.clone() - bx0.clone()) * (by1.clone() - by0.clone())
        - inter.clone();
    let iou = inter / (union.clone() + EPS);
    let enclosing =
        (ax1.max_pair(bx1) - ax0.min_pair(bx0)) * (ay1.max_pair(by1) - ay0.min_pair(by0));
    let giou = iou - (enclosing.clone() - union) / (enclosing + EPS);
    (giou.neg() + 1.0).squeeze_dim(1)
}

/// `cxcywh` to `xyxy`, both `[n, 4]`.
pub fn cxcywh_to_xyxy(boxes: Tensor<2>) -> Tensor<2> {
    let [cx, cy, w, h] = columns(&boxes);
    let (hw, hh) = (w * 0.5, h * 0.5);
    Tensor::cat(
        vec![
            cx.clone() - hw.clone(),
            cy.clone() - hh.clone(),
            cx + hw,
            cy + hh,
        ],
        1,
    )
}

/// `xyxy` to `cxcywh`, both `[n, 4]`.
pub fn xyxy_to_cxcywh(boxes: Tensor<2>) -> Tensor<2> {
    let [x0, y0, x1, y1] = columns(&boxes);
    Tensor::cat(
        vec![
            (x0.clone() + x1.clone()) / 2.0,
            (y0.clone() + y1.clone()) / 2.0,
            x1 - x0,
            y1 - y0,
        ],
        1,
    )
}

/// `xyxy` to `xywh` (top-left corner and size), both `[n, 4]`.
pub fn xyxy_to_xywh(boxes: Tensor<2>) -> Tensor<2> {
    let [x0, y0, x1, y1] = columns(&boxes);
    Tensor::cat(vec![x0.clone(), y0.clone(), x1 - x0, y1 - y0], 1)
}

fn area_of([x0, y0, x1, y1]: &[Tensor<2>; 4]) -> Tensor<2> {
    (x1.clone() - x0.clone()) * (y1.clone() - y0.clone())
}

/// Of every box of `a` with every box of `b`.
fn pairwise(a: &Tensor<2>, b: &Tensor<2>) -> Overlap {
    let [a, b] = pairs(a, b);
    let areas = area_of(&a) + area_of(&b);
    overlap([&a, &b], areas)
}

/// Of matching rows.
fn aligned(a: &Tensor<2>, b: &Tensor<2>) -> Overlap {
    let areas = area_of(&columns(a)) + area_of(&columns(b));
    overlap([&columns(a), &columns(b)], areas)
}

/// Of boxes given by their columns, with the sum of the areas of both.
fn overlap([a, b]: [&[Tensor<2>; 4]; 2], areas: Tensor<2>) -> Overlap {
    let side = |lo: usize, hi: usize| common_and_hull([&a[lo], &a[hi]], [&b[lo], &b[hi]]);
    let ((inner_x, outer_x), (inner_y, outer_y)) = (side(0, 2), side(1, 3));
    let inter = inner_x * inner_y;
    Overlap {
        union: areas - inter.clone(),
        inter,
        enclosing: outer_x * outer_y,
    }
}
