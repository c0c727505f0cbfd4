//! Differentiable arithmetic on time spans `[n, 2]`, as CG-DETR's span utilities compute it.

use burn::tensor::Tensor;

/// `(centre, width)` to `(start, end)`.
pub fn cxw_to_xx(spans: Tensor<2>) -> Tensor<2> {
    let (c, w) = ends(&spans);
    let half = w * 0.5;
    Tensor::stack(vec![c.clone() - half.clone(), c + half], 1)
}

/// `(start, end)` to `(centre, width)`.
pub fn xx_to_cxw(spans: Tensor<2>) -> Tensor<2> {
    let (s, e) = ends(&spans);
    Tensor::stack(vec![(s.clone() + e.clone()) * 0.5, e - s], 1)
}

/// Pairwise intersection and union, both `[n, m]`.
pub fn intersection_union(a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let g = Grid::new(&a, &b);
    let inter =
        (g.a1.clone().min_pair(g.b1.clone()) - g.a0.clone().max_pair(g.b0.clone())).clamp_min(0.0);
    let union = (g.a1 - g.a0) + (g.b1 - g.b0) - inter.clone();
    (inter, union)
}

/// Pairwise temporal IoU `[n, m]`; 0/0 is NaN.
pub fn iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let (inter, union) = intersection_union(a, b);
    inter / union
}

/// Pairwise generalised temporal IoU `[n, m]`.
pub fn generalized_iou(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let g = Grid::new(&a, &b);
    let enclosing = (g.a1.max_pair(g.b1) - g.a0.min_pair(g.b0)).clamp_min(0.0);
    let (inter, union) = intersection_union(a, b);
    inter / union.clone() - (enclosing.clone() - union) / enclosing
}

/// Generalised temporal IoU `[n]` of matching rows.
pub fn generalized_iou_aligned(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let (a0, a1) = ends(&a);
    let (b0, b1) = ends(&b);
    let inter = (a1.clone().min_pair(b1.clone()) - a0.clone().max_pair(b0.clone())).clamp_min(0.0);
    let enclosing =
        (a1.clone().max_pair(b1.clone()) - a0.clone().min_pair(b0.clone())).clamp_min(0.0);
    let union = (a1 - a0) + (b1 - b0) - inter.clone();
    inter / union.clone() - (enclosing.clone() - union) / enclosing
}

/// Pairwise intersection over the length of `b` `[n, m]` (IoP, with `b` the predictions).
pub fn intersection_over_second(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let g = Grid::new(&a, &b);
    let length = g.b1 - g.b0;
    let (inter, _) = intersection_union(a, b);
    inter / length
}

struct Grid {
    a0: Tensor<2>,
    a1: Tensor<2>,
    b0: Tensor<2>,
    b1: Tensor<2>,
}

impl Grid {
    fn new(a: &Tensor<2>, b: &Tensor<2>) -> Self {
        let (n, m) = (a.dims()[0], b.dims()[0]);
        let left = |i: usize| a.clone().slice([0..n, i..i + 1]).expand([n, m]);
        let right = |i: usize| b.clone().slice([0..m, i..i + 1]).transpose().expand([n, m]);
        Self {
            a0: left(0),
            a1: left(1),
            b0: right(0),
            b1: right(1),
        }
    }
}

fn ends(spans: &Tensor<2>) -> (Tensor<1>, Tensor<1>) {
    let n = spans.dims()[0];
    let column = |i: usize| spans.clone().slice([0..n, i..i + 1]).squeeze_dim(1);
    (column(0), column(1))
}
