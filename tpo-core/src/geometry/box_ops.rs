//! Differentiable box arithmetic on tensors of `xyxy` boxes; the values of torchvision's `ops`.

use burn::tensor::Tensor;

/// Signed areas `[n]` of boxes `[n, 4]` (xyxy); negative when one axis is reversed.
pub fn area(boxes: Tensor<2>) -> Tensor<1> {
    let [x0, y0, x1, y1] = columns(boxes);
    (x1 - x0) * (y1 - y0)
}

/// Pairwise intersection over union `[n, m]`. 0/0 is NaN, as in torchvision.
pub fn iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let (inter, union) = pairwise(&a, &b);
    inter / union
}

/// Pairwise generalised IoU `[n, m]`: IoU minus the empty share of the enclosing box, without
/// epsilon.
pub fn generalized_iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let (inter, union) = pairwise(&a, &b);
    let (n, m) = (a.dims()[0], b.dims()[0]);
    let side = |lo: usize, hi: usize| {
        let start = row(&a, lo, m).min_pair(col(&b, lo, n));
        let end = row(&a, hi, m).max_pair(col(&b, hi, n));
        (end - start).clamp_min(0.0)
    };
    let enclosing = side(0, 2) * side(1, 3);
    inter / union.clone() - (enclosing.clone() - union) / enclosing
}

/// Generalised IoU `[n]` of matching rows.
pub fn generalized_iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let (inter, union, enclosing) = aligned(a, b);
    inter / union.clone() - (enclosing.clone() - union) / enclosing
}

/// IoU `[n]` of matching rows.
pub fn iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let (inter, union, _) = aligned(a, b);
    inter / union
}

/// torchvision's `generalized_box_iou_loss` per row `[n]`: `1 - giou` with 1e-7 in both
/// denominators, so it is finite for degenerate boxes.
pub fn generalized_iou_loss(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    const EPS: f64 = 1e-7;
    let [ax0, ay0, ax1, ay1] = columns(a);
    let [bx0, by0, bx1, by1] = columns(b);
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
    giou.neg() + 1.0
}

/// `cxcywh` to `xyxy`, both `[n, 4]`.
pub fn cxcywh_to_xyxy(boxes: Tensor<2>) -> Tensor<2> {
    let [cx, cy, w, h] = columns(boxes);
    let (hw, hh) = (w * 0.5, h * 0.5);
    Tensor::stack(
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
    let [x0, y0, x1, y1] = columns(boxes);
    Tensor::stack(
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
    let [x0, y0, x1, y1] = columns(boxes);
    Tensor::stack(vec![x0.clone(), y0.clone(), x1 - x0, y1 - y0], 1)
}

fn columns(boxes: Tensor<2>) -> [Tensor<1>; 4] {
    let column = |i: usize| {
        boxes
            .clone()
            .slice([0..boxes.dims()[0], i..i + 1])
            .squeeze_dim(1)
    };
    [column(0), column(1), column(2), column(3)]
}

/// Column `i` of `a` `[n, 4]`, repeated over `m` columns.
fn row(a: &Tensor<2>, i: usize, m: usize) -> Tensor<2> {
    let n = a.dims()[0];
    a.clone().slice([0..n, i..i + 1]).expand([n, m])
}

/// Column `i` of `b` `[m, 4]`, repeated over `n` rows.
fn col(b: &Tensor<2>, i: usize, n: usize) -> Tensor<2> {
    let m = b.dims()[0];
    b.clone().slice([0..m, i..i + 1]).transpose().expand([n, m])
}

fn pairwise(a: &Tensor<2>, b: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (n, m) = (a.dims()[0], b.dims()[0]);
    let side = |lo: usize, hi: usize| {
        let start = row(a, lo, m).max_pair(col(b, lo, n));
        let end = row(a, hi, m).min_pair(col(b, hi, n));
        (end - start).clamp_min(0.0)
    };
    let inter = side(0, 2) * side(1, 3);
    let areas_a = area(a.clone()).unsqueeze_dim::<2>(1).expand([n, m]);
    let areas_b = area(b.clone()).unsqueeze_dim::<2>(0).expand([n, m]);
    let union = areas_a + areas_b - inter.clone();
    (inter, union)
}

fn aligned(a: Tensor<2>, b: Tensor<2>) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let areas = area(a.clone()) + area(b.clone());
    let [ax0, ay0, ax1, ay1] = columns(a);
    let [bx0, by0, bx1, by1] = columns(b);
    let side = |a0: &Tensor<1>, a1: &Tensor<1>, b0: &Tensor<1>, b1: &Tensor<1>| {
        let inner =
            (a1.clone().min_pair(b1.clone()) - a0.clone().max_pair(b0.clone())).clamp_min(0.0);
        let outer =
            (a1.clone().max_pair(b1.clone()) - a0.clone().min_pair(b0.clone())).clamp_min(0.0);
        (inner, outer)
    };
    let (iw, ow) = side(&ax0, &ax1, &bx0, &bx1);
    let (ih, oh) = side(&ay0, &ay1, &by0, &by1);
    let inter = iw * ih;
    let union = areas - inter.clone();
    (inter, union, ow * oh)
}
