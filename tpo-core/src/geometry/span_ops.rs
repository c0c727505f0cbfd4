//! Differentiable arithmetic on time spans `[n, 2]`, as CG-DETR's span utilities compute it.

use burn::tensor::Tensor;

use super::overlap::{Overlap, columns, common_and_hull, pairs};

/// `(centre, width)` to `(start, end)`.
pub fn cxw_to_xx(spans: Tensor<2>) -> Tensor<2> {
    let [c, w] = columns(&spans);
    let half = w * 0.5;
    Tensor::cat(vec![c.clone() - half.clone(), c + half], 1)
}

/// `(start, end)` to `(centre, width)`.
pub fn xx_to_cxw(spans: Tensor<2>) -> Tensor<2> {
    let [s, e] = columns(&spans);
    Tensor::cat(vec![(s.clone() + e.clone()) * 0.5, e - s], 1)
}

/// Pairwise intersection and union, both `[n, m]`.
pub fn intersection_union(a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let [a, b] = pairs(&a, &b);
    let overlap = overlap(a, b);
    (overlap.inter, overlap.union)
}

/// Pairwise temporal IoU `[n, m]`; 0/0 is NaN.
pub fn iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [a, b] = pairs(&a, &b);
    overlap(a, b).iou()
}

/// Pairwise generalised temporal IoU `[n, m]`.
pub fn generalized_iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [a, b] = pairs(&a, &b);
    overlap(a, b).generalized_iou()
}

/// Generalised temporal IoU `[n]` of matching rows.
pub fn generalized_iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let overlap = overlap(columns(&a), columns(&b));
    overlap.generalized_iou().squeeze_dim(1)
}

/// Pairwise intersection over the length of `b` `[n, m]` (IoP, with `b` the predictions).
pub fn intersection_over_second(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [a, b] = pairs(&a, &b);
    let length = b[1].clone() - b[0].clone();
    overlap(a, b).inter / length
}

/// Of spans given by their ends.
fn overlap([a0, a1]: [Tensor<2>; 2], [b0, b1]: [Tensor<2>; 2]) -> Overlap {
    let (inter, enclosing) = common_and_hull([&a0, &a1], [&b0, &b1]);
    Overlap {
        union: (a1 - a0) + (b1 - b0) - inter.clone(),
        inter,
        enclosing,
    }
}
