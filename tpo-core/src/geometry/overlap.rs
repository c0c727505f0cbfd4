//! What the ratios of boxes and of time spans have in common.

use burn::tensor::Tensor;

/// How far pairs of boxes or spans cover each other; all of one shape.
pub(super) struct Overlap {
    /// What both cover.
    pub inter: Tensor<2>,
    /// What either covers.
    pub union: Tensor<2>,
    /// The smallest box or span around both.
    pub enclosing: Tensor<2>,
}

impl Overlap {
    /// Intersection over union.
    pub fn iou(self) -> Tensor<2> {
        self.inter / self.union
    }

    /// Intersection over union, minus the empty share of what encloses both.
    pub fn generalized_iou(self) -> Tensor<2> {
        let empty = self.enclosing.clone() - self.union.clone();
        self.inter / self.union - empty / self.enclosing
    }
}

/// The columns of `[n, C]`, each `[n, 1]`.
pub(super) fn columns<const C: usize>(rows: &Tensor<2>) -> [Tensor<2>; C] {
    std::array::from_fn(|i| rows.clone().narrow(1, i, 1))
}

/// The columns of `[n, C]` and `[m, C]`, each as `[n, m]`, so that every row meets every other.
pub(super) fn pairs<const C: usize>(a: &Tensor<2>, b: &Tensor<2>) -> [[Tensor<2>; C]; 2] {
    let shape = [a.dims()[0], b.dims()[0]];
    [
        columns(a).map(|column| column.expand(shape)),
        columns(b).map(|column| column.transpose().expand(shape)),
    ]
}

/// Lengths along one axis that two intervals have in common, and from the first start to the last
/// end.
pub(super) fn common_and_hull(
    [a0, a1]: [&Tensor<2>; 2],
    [b0, b1]: [&Tensor<2>; 2],
) -> (Tensor<2>, Tensor<2>) {
    let [a0, a1, b0, b1] = [a0, a1, b0, b1].map(Tensor::clone);
    let common = a1.clone().min_pair(b1.clone()) - a0.clone().max_pair(b0.clone());
    let hull = a1.max_pair(b1) - a0.min_pair(b0);
    (common.clamp_min(0.0), hull.clamp_min(0.0))
}
