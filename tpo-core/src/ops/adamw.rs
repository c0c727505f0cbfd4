//! The update of AdamW, and the norm that gradients are clipped by.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, FloatDType, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{floats, from_floats, plain, wrap};

/// The numbers of one AdamW update of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWUpdate {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment, after the bias correction.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update of this parameter, from 1.
    pub step: u64,
    /// Factor on the gradient, for clipping and averaging.
    pub grad_scale: f64,
}

/// The constants of the update, rounded once; one number each, or a vector of it.
#[derive(Clone, Copy)]
struct Constants<T> {
    scale: T,
    keep: T,
    blend: T,
    beta_2: T,
    square: T,
    root: T,
    epsilon: T,
    step: T,
}

impl AdamWUpdate {
    /// PyTorch computes these in 64 bits as well.
    fn constants(&self) -> Constants<f32> {
        let power = |beta: f64| 1.0 - beta.powi(i32::try_from(self.step).unwrap_or(i32::MAX));
        Constants {
            scale: self.grad_scale as f32,
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            blend: (1.0 - self.beta_1) as f32,
            beta_2: self.beta_2 as f32,
            square: (1.0 - self.beta_2) as f32,
            root: power(self.beta_2).sqrt() as f32,
            epsilon: self.epsilon as f32,
            step: (self.lr / power(self.beta_1)) as f32,
        }
    }
}

/// One AdamW update (Loshchilov and Hutter, arXiv 1711.05101) with PyTorch's arithmetic:
///
/// ```text
/// g = grad_scale · grad
/// w = w · (1 − lr · weight_decay)
/// m = m + (1 − β₁) · (g − m)
/// v = β₂ · v + (1 − β₂) · g²
/// w = w − lr / (1 − β₁ᵏ) · m / (√v / √(1 − β₂ᵏ) + ε)
/// ```
///
/// On the CPU this is one pass over the four arrays; `weight` and the moments are overwritten
/// where nobody else holds their storage. All are `f32` (the gradient may be narrower); the
/// results are without autodiff.
///
/// # Shapes
/// - all `[n]`; returns weight, first and second moment
pub fn adamw(
    weight: Tensor<1>,
    grad: Tensor<1>,
    moments: [Tensor<1>; 2],
    update: &AdamWUpdate,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let [m, v] = moments;
    let n = weight.dims();
    assert!(
        grad.dims() == n && m.dims() == n && v.dims() == n,
        "adamw: weight {n:?}, gradient {:?} and moments {:?}, {:?} must have one shape",
        grad.dims(),
        m.dims(),
        v.dims()
    );
    let c = update.constants();
    let all = [weight, m, v, grad].map(|t| t.inner().into_dispatch());
    if all[..3].iter().all(|t| t.dtype() == DType::F32) {
        return match plain(all) {
            Ok([w, m, v, g]) => {
                let [w, m, v] = adamw_cpu(w, m, v, &g, c);
                (wrap(w), [wrap(m), wrap(v)])
            }
            Err(all) => composed(all.map(Tensor::from_dispatch), c),
        };
    }
    composed(all.map(Tensor::from_dispatch), c)
}

fn composed([w, m, v, g]: [Tensor<1>; 4], c: Constants<f32>) -> (Tensor<1>, [Tensor<1>; 2]) {
    let g = g.cast(FloatDType::F32) * c.scale;
    let m = m.clone() + (g.clone() - m) * c.blend;
    let v = v * c.beta_2 + g.square() * c.square;
    let denominator = v.clone().sqrt() / c.root + c.epsilon;
    let w = w * c.keep - m.clone() / denominator * c.step;
    (w, [m, v])
}

/// Elements per task.
const CHUNK: usize = 1 << 14;

struct Pass<'a> {
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    c: Constants<f32>,
}

impl Constants<f32> {
    /// The same numbers in all lanes.
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S) -> Constants<S::f32s> {
        Constants {
            scale: s.splat_f32s(self.scale),
            keep: s.splat_f32s(self.keep),
            blend: s.splat_f32s(self.blend),
            beta_2: s.splat_f32s(self.beta_2),
            square: s.splat_f32s(self.square),
            root: s.splat_f32s(self.root),
            epsilon: s.splat_f32s(self.epsilon),
            step: s.splat_f32s(-self.step),
        }
    }
}

/// The update of one vector. A function, because a closure would not be inlined into code for
/// another instruction set than the build's.
#[inline(always)]
fn update<S: Simd>(s: S, c: &Constants<S::f32s>, [w, m, v]: [&mut S::f32s; 3], g: S::f32s) {
    let g = s.mul_f32s(g, c.scale);
    *m = s.mul_add_e_f32s(c.blend, s.sub_f32s(g, *m), *m);
    let kept = s.mul_f32s(*v, c.beta_2);
    *v = s.mul_add_e_f32s(s.mul_f32s(c.square, g), g, kept);
    let denominator = s.add_f32s(s.div_f32s(s.sqrt_f32s(*v), c.root), c.epsilon);
    let direction = s.div_f32s(*m, denominator);
    *w = s.mul_add_e_f32s(c.step, direction, s.mul_f32s(*w, c.keep));
}

impl WithSimd for Pass<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let c = self.c.lanes(s);
        let (w, w_tail) = S::as_mut_simd_f32s(self.w);
        let (m, m_tail) = S::as_mut_simd_f32s(self.m);
        let (v, v_tail) = S::as_mut_simd_f32s(self.v);
        let (g, g_tail) = S::as_simd_f32s(self.g);
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            update(s, &c, [w, m, v], *g);
        }
        if !w_tail.is_empty() {
            let mut w = s.partial_load_f32s(w_tail);
            let mut m = s.partial_load_f32s(m_tail);
            let mut v = s.partial_load_f32s(v_tail);
            let g = s.partial_load_f32s(g_tail);
            update(s, &c, [&mut w, &mut m, &mut v], g);
            s.partial_store_f32s(w_tail, w);
            s.partial_store_f32s(m_tail, m);
            s.partial_store_f32s(v_tail, v);
        }
    }
}

fn adamw_cpu(
    w: FlexTensor,
    m: FlexTensor,
    v: FlexTensor,
    g: &FlexTensor,
    c: Constants<f32>,
) -> [FlexTensor; 3] {
    let g = floats(g);
    let [mut w, mut m, mut v] = [w, m, v].map(owned);
    if let (Some(w), Some(m), Some(v)) = (
        w.try_storage_mut::<f32>(),
        m.try_storage_mut::<f32>(),
        v.try_storage_mut::<f32>(),
    ) {
        let arch = Arch::new();
        w.par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|(((w, m), v), g)| arch.dispatch(Pass { w, m, v, g, c }));
    }
    [w, m, v]
}

/// The tensor itself if it alone holds exactly its elements, else a copy that does.
fn owned(mut tensor: FlexTensor) -> FlexTensor {
    let n = tensor.layout().num_elements();
    let whole = tensor.layout().contiguous_offsets() == Some((0, n));
    if whole
        && tensor
            .try_storage_mut::<f32>()
            .is_some_and(|s| s.len() == n)
    {
        return tensor;
    }
    let shape = tensor.layout().shape().clone();
    from_floats(floats(&tensor).into_owned(), shape, DType::F32)
}

/// Sum of the squares of all elements of all tensors, added up in 64 bits on the CPU.
///
/// On other devices the sum of each tensor is taken there, and all are read at once.
///
/// # Shapes
/// - each tensor `[n]`
pub fn sum_of_squares(tensors: impl IntoIterator<Item = Tensor<1>>) -> f64 {
    let mut total = 0.0;
    let mut elsewhere = Vec::new();
    for tensor in tensors {
        match plain([tensor.inner().into_dispatch()]) {
            Ok([tensor]) => total += squares_cpu(&tensor),
            Err([tensor]) => {
                let tensor = Tensor::<1>::from_dispatch(tensor);
                elsewhere.push(tensor.cast(FloatDType::F32).square().sum());
            }
        }
    }
    if !elsewhere.is_empty() {
        let sums = Tensor::cat(elsewhere, 0).into_data();
        total += sums.iter::<f32>().map(f64::from).sum::<f64>();
    }
    total
}

struct Squares<'a>(&'a [f32]);

impl WithSimd for Squares<'_> {
    type Output = f64;
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        // In `f32` a few hundred terms at a time.
        self.0
            .chunks(512)
            .map(|part| f64::from(super::rows::sum(s, part, 0.0, true)))
            .sum()
    }
}

fn squares_cpu(tensor: &FlexTensor) -> f64 {
    let arch = Arch::new();
    let parts: Vec<f64> = floats(tensor)
        .par_chunks(CHUNK)
        .map(|part| arch.dispatch(Squares(part)))
        .collect();
    // In order, so that the result does not depend on the threads.
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn tensor(values: &[f32]) -> Tensor<1> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values.to_vec(), [n]), &Device::flex())
    }

    fn values(t: &Tensor<1>) -> Vec<f32> {
        t.to_data().iter::<f32>().collect()
    }

    const UPDATE: AdamWUpdate = AdamWUpdate {
        lr: 0.1,
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.5,
        step: 1,
        grad_scale: 0.5,
    };

    #[test]
    fn the_first_step_by_hand() {
        // g = 0.5 · 4 = 2: m = 0.1 · 2, v = 0.001 · 4; corrected 2 and 4; 2 / √4 = 1, so
        // w = 3 · (1 − 0.1 · 0.5) − 0.1 · 1 = 2.75.
        let zero = || tensor(&[0.0]);
        let (w, [m, v]) = adamw(tensor(&[3.0]), tensor(&[4.0]), [zero(), zero()], &UPDATE);
        assert!((values(&w)[0] - 2.75).abs() < 1e-6);
        assert!((values(&m)[0] - 0.2).abs() < 1e-7);
        assert!((values(&v)[0] - 0.004).abs() < 1e-8);
    }

    #[test]
    fn kernel_and_composition_agree_and_shared_storage_is_not_overwritten() {
        let n = 40_003;
        let wave = |f: f32| {
            let v: Vec<f32> = (0..n).map(|i| (i as f32 * f).sin()).collect();
            tensor(&v)
        };
        let (w, g, m) = (wave(0.1), wave(0.7), wave(0.3));
        let v = m.clone().square() * 0.1;
        let before = values(&w);
        let update = AdamWUpdate { step: 7, ..UPDATE };
        let (w1, [m1, v1]) = adamw(w.clone(), g.clone(), [m.clone(), v.clone()], &update);
        assert_eq!(values(&w), before);
        let (w2, [m2, v2]) = composed([w, m, v, g], update.constants());
        for (a, b) in [(w1, w2), (m1, m2), (v1, v2)] {
            for (a, b) in values(&a).iter().zip(values(&b)) {
                assert!((a - b).abs() <= 2e-6 * b.abs().max(0.1), "{a} {b}");
            }
        }
    }

    #[test]
    fn squares_of_several_tensors() {
        let many = vec![0.5f32; 70_000];
        let sum = sum_of_squares([tensor(&[3.0, 4.0]), tensor(&many)]);
        assert_eq!(sum, 25.0 + 17_500.0);
        assert_eq!(sum_of_squares([]), 0.0);
        assert!(sum_of_squares([tensor(&[f32::NAN])]).is_nan());
    }
}
