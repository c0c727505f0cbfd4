//! PReLU with one slope.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use pulp::Simd;
use rayon::prelude::*;

use super::elementwise::{self, Binary, Unary};
use super::flex::{AdTensor, Operands, floats, from_floats, operands, wrap, wrap_autodiff};
use super::rows::CHUNK;

/// `max(x, 0) + slope · min(x, 0)`.
///
/// # Shapes
/// - `x` and output `[..]`, `slope` `[1]`
pub fn prelu<const D: usize>(x: Tensor<D>, slope: Tensor<1>) -> Tensor<D> {
    assert_eq!(slope.dims(), [1], "prelu: one slope for all elements");
    match operands([x.into_dispatch(), slope.into_dispatch()]) {
        Ok(Operands::Plain([x, slope])) => wrap(forward(x, &slope)),
        Ok(Operands::Autodiff(tensors, context)) => wrap_autodiff(autodiff(tensors), context),
        Err([x, slope]) => {
            let x = Tensor::<D>::from_dispatch(x);
            let slope = Tensor::<1>::from_dispatch(slope).cast(x.dtype());
            activation::prelu(x, slope)
        }
    }
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

fn forward(x: FlexTensor, slope: &FlexTensor) -> FlexTensor {
    elementwise::map(x, Value(floats(slope)[0]))
}

#[derive(Debug)]
struct PReluStep;

impl Backward<Flex, 2> for PReluStep {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, slope) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let [x_parent, slope_parent] = ops.parents;
        if let Some(parent) = slope_parent {
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
            let shape = slope.layout().shape().clone();
            grads.register::<Flex>(parent.id, from_floats(vec![sum], shape, slope.dtype()));
        }
        if let Some(parent) = x_parent {
            let value = floats(&slope)[0];
            grads.register::<Flex>(parent.id, elementwise::map2(grad, x, Slope(value)));
        }
    }
}

fn autodiff([x, slope]: [AdTensor; 2]) -> AdTensor {
    let (x, x_node) = x.into_parts();
    let (slope, slope_node) = slope.into_parts();
    let step = PReluStep.prepare::<NoCheckpointing>([x_node, slope_node]);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let out = forward(x.clone(), &slope);
            prep.finish((x, slope), out)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(x, &slope)),
    }
}
