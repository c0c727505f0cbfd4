//! Linear maps with gradients on the CPU. Only what a wanted gradient needs is kept: a frozen
//! weight keeps no input.

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use rayon::prelude::*;

use super::super::flex::{AdTensor, contiguous, floats, from_floats};
use super::{cpu, float_dtype};

#[derive(Clone, Debug)]
struct Saved {
    /// For the gradient of the weight.
    x: Option<FlexTensor>,
    /// For the gradient of the input.
    weight: Option<FlexTensor>,
    x_shape: Shape,
    weight_dtype: DType,
    /// The weight's storage is `[d_out, d_in]`.
    by_output: bool,
    bias_dtype: DType,
}

impl Saved {
    fn new(x: &AdTensor, weight: &AdTensor, bias: Option<&AdTensor>) -> Self {
        let weight_in = weight.primitive();
        Self {
            x: weight.is_tracked().then(|| x.primitive().clone()),
            weight: x.is_tracked().then(|| weight_in.clone()),
            x_shape: x.primitive().layout().shape().clone(),
            weight_dtype: weight_in.dtype(),
            by_output: weight_in.layout().strides()[0] == 1,
            bias_dtype: bias.map_or(DType::F32, |b| b.primitive().dtype()),
        }
    }

    fn register<const N: usize>(
        self,
        parents: [Option<NodeId>; N],
        grad: FlexTensor,
        grads: &mut Gradients,
    ) {
        let parent = |i: usize| parents.get(i).copied().flatten();
        let grad = contiguous(grad);
        if let (Some(id), Some(weight)) = (parent(0), &self.weight) {
            let transposed = Flex::float_swap_dims(weight.clone(), 0, 1);
            let d_x = cpu(grad.clone(), transposed, None, self.x_shape.clone());
            grads.register::<Flex>(id, d_x);
        }
        if let (Some(id), Some(x)) = (parent(1), self.x) {
            let d_weight = weight_gradient(x, grad.clone(), self.by_output);
            let d_weight = Flex::float_cast(d_weight, float_dtype(self.weight_dtype));
            grads.register::<Flex>(id, d_weight);
        }
        if let Some(id) = parent(2) {
            grads.register::<Flex>(id, bias_gradient(&grad, self.bias_dtype));
        }
    }
}

/// `xᵀ · grad` `[d_in, d_out]`, stored as the weight is.
fn weight_gradient(x: FlexTensor, grad: FlexTensor, by_output: bool) -> FlexTensor {
    let rows = |t: FlexTensor| {
        let width = t.layout().shape().last().copied().unwrap_or(1);
        let rows = t.layout().num_elements().checked_div(width).unwrap_or(0);
        Flex::float_reshape(contiguous(t), Shape::new([rows, width]))
    };
    let (x, grad) = (rows(x), rows(grad));
    if by_output {
        let product = Flex::float_matmul(Flex::float_swap_dims(grad, 0, 1), x);
        Flex::float_swap_dims(product, 0, 1)
    } else {
        Flex::float_matmul(Flex::float_swap_dims(x, 0, 1), grad)
    }
}

/// Sum over all rows.
pub(super) fn bias_gradient(grad: &FlexTensor, dtype: DType) -> FlexTensor {
    let width = grad.layout().shape().last().copied().unwrap_or(1).max(1);
    let values = floats(grad);
    let chunk = ((1 << 15) / width).max(1) * width;
    let parts: Vec<Vec<f32>> = values
        .par_chunks(chunk)
        .map(|chunk| {
            let mut sum = vec![0.0f32; width];
            for row in chunk.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
            }
            sum
        })
        .collect();
    let mut sum = vec![0.0f32; width];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, v)| *s += v);
    }
    from_floats(sum, Shape::new([width]), dtype)
}

#[derive(Debug)]
struct LinearStep;

impl Backward<Flex, 2> for LinearStep {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let parents = ops.parents.map(|p| p.map(|p| p.id));
        ops.state.register(parents, grad, grads);
    }
}

impl Backward<Flex, 3> for LinearStep {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let parents = ops.parents.map(|p| p.map(|p| p.id));
        ops.state.register(parents, grad, grads);
    }
}

/// Differentiable linear map to `shape`.
pub(super) fn linear(
    x: AdTensor,
    weight: AdTensor,
    bias: Option<AdTensor>,
    shape: Shape,
) -> AdTensor {
    let saved = Saved::new(&x, &weight, bias.as_ref());
    let (x, x_node) = x.into_parts();
    let (weight, weight_node) = weight.into_parts();
    match bias {
        None => {
            let out = cpu(x, weight, None, shape);
            let step =
                Backward::<Flex, 2>::prepare::<NoCheckpointing>(LinearStep, [x_node, weight_node]);
            match step.compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(saved, out),
                OpsKind::UnTracked(prep) => prep.finish(out),
            }
        }
        Some(bias) => {
            let (bias, bias_node) = bias.into_parts();
            let out = cpu(x, weight, Some(bias), shape);
            let step = Backward::<Flex, 3>::prepare::<NoCheckpointing>(
                LinearStep,
                [x_node, weight_node, bias_node],
            );
            match step.compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(saved, out),
                OpsKind::UnTracked(prep) => prep.finish(out),
            }
        }
    }
}
