//! PReLU with one slope.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use pulp::Simd;
use rayon::prelude::*;

use super::elementwise::{self, Binary, Unary};
use super::flex::{Saved, differentiable, floats, from_floats};
use super::rows::CHUNK;

/// `max(x, 0) + slope · min(x, 0)`.
///
/// # Shapes
/// - `x` and output `[..]`, `slope` `[1]`
pub fn prelu<const D: usize>(x: Tensor<D>, slope: Tensor<1>) -> Tensor<D> {
    assert_eq!(slope.dims(), [1], "prelu: one slope for all elements");
    let run = |[x, slope]: [FlexTensor; 2], tracked: bool| {
        let saved = tracked.then(|| Inputs(x.clone(), slope.clone()));
        (elementwise::map(x, Value(floats(&slope)[0])), saved)
    };
    differentiable([x.into_dispatch(), slope.into_dispatch()], run).unwrap_or_else(|[x, slope]| {
        let x = Tensor::<D>::from_dispatch(x);
        let slope = Tensor::<1>::from_dispatch(slope).cast(x.dtype());
        activation::prelu(x, slope)
    })
}

#[derive(Clone, Copy)]
struct Value(f32);

impl Unary for Value {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::f32s) -> S::f32s {
        let zero = s.splat_f32s(0.0);
        let negative = s.min_f32s(x, zero);
        s.mul_add_e_f32s(negative, s.splat_f32s(self.0), s.max_f32s(x, zero))
    }
}

/// Of (incoming gradient, input).
#[derive(Clone, Copy)]
struct Slope(f32);

impl Binary for Slope {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, grad: S::f32s, x: S::f32s) -> S::f32s {
        let positive = s.greater_than_f32s(x, s.splat_f32s(0.0));
        let other = s.mul_f32s(grad, s.splat_f32s(self.0));
        s.select_f32s(positive, grad, other)
    }
}

/// The input and the slope.
#[derive(Clone, Debug)]
struct Inputs(FlexTensor, FlexTensor);

impl Saved<2> for Inputs {
    fn gradients(self, grad: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Self(x, slope) = self;
        let d_slope = wanted[1].then(|| {
            let (x, grad) = (floats(&x), floats(&grad));
            // Added in order, so that the result does not depend on the threads.
            let sums: Vec<f32> = x
                .par_chunks(CHUNK)
                .zip(grad.par_chunks(CHUNK))
                .map(|(x, grad)| {
                    let pairs = x.iter().zip(grad);
                    pairs.map(|(x, grad)| x.min(0.0) * grad).sum::<f32>()
                })
                .collect();
            let sum: f32 = sums.iter().sum();
            from_floats(vec![sum], slope.layout().shape().clone(), slope.dtype())
        });
        let value = floats(&slope)[0];
        let d_x = wanted[0].then(|| elementwise::map2(grad, x, Slope(value)));
        [d_x, d_slope]
    }
}
