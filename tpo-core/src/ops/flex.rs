//! Access to the storage of CPU (flex) tensors, without copies.

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
    DispatchTensorKind, Flex, TensorMetadata,
};
use burn::tensor::{Bytes, DType, Shape, Tensor, bf16, f16};

use super::half;

/// Float tensor of the differentiable CPU backend.
pub(super) type AdTensor = FloatTensor<Autodiff<Flex>>;

/// The operands of one operation, all on the CPU.
pub(super) enum Operands<const N: usize> {
    /// No gradient can flow.
    Plain([FlexTensor; N]),
    /// At least one operand is on an autodiff device; the others became constants.
    Autodiff([AdTensor; N], DispatchAutodiffContext),
}

/// Takes the operands apart if all are `f32`, `f16` or `bf16` tensors on the CPU; otherwise hands
/// them back unchanged.
pub(super) fn operands<const N: usize>(
    tensors: [DispatchTensor; N],
) -> Result<Operands<N>, [DispatchTensor; N]> {
    let ours = tensors.iter().all(|tensor| {
        let on_cpu = match &tensor.kind {
            DispatchTensorKind::Flex(BackendTensor::Float(_)) => true,
            DispatchTensorKind::Autodiff(inner) => matches!(
                **inner,
                DispatchTensorKind::Flex(BackendTensor::Autodiff(_))
            ),
            _ => false,
        };
        on_cpu && matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
    });
    if !ours {
        return Err(tensors);
    }
    let context = tensors
        .iter()
        .fold(DispatchAutodiffContext::Disabled, |context, tensor| {
            context.merge(tensor.autodiff)
        });
    if context == DispatchAutodiffContext::Disabled {
        return Ok(Operands::Plain(tensors.map(|tensor| match tensor.kind {
            DispatchTensorKind::Flex(tensor) => tensor.float(),
            _ => unreachable!("checked above"),
        })));
    }
    let tensors = tensors.map(|tensor| match tensor.kind {
        DispatchTensorKind::Flex(tensor) => Autodiff::<Flex>::from_inner(tensor.float()),
        DispatchTensorKind::Autodiff(inner) => match *inner {
            DispatchTensorKind::Flex(tensor) => tensor.autodiff(),
            _ => unreachable!("checked above"),
        },
        #[allow(unreachable_patterns)] // other variants exist only with GPU features
        _ => unreachable!("checked above"),
    });
    Ok(Operands::Autodiff(tensors, context))
}

/// Back to the public tensor type.
pub(super) fn wrap<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// Back to the public tensor type, on the autodiff device.
pub(super) fn wrap_autodiff<const D: usize>(
    tensor: AdTensor,
    context: DispatchAutodiffContext,
) -> Tensor<D> {
    Tensor::from_dispatch(dispatch_autodiff(tensor, context))
}

fn dispatch_autodiff(tensor: AdTensor, context: DispatchAutodiffContext) -> DispatchTensor {
    DispatchTensor {
        kind: DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(
            BackendTensor::Autodiff(tensor),
        ))),
        autodiff: context,
    }
}

/// Takes the operands of a kernel without a backward pass apart. Otherwise hands them back, all on
/// the autodiff device if one is.
pub(crate) fn plain<const N: usize>(
    tensors: [DispatchTensor; N],
) -> Result<[FlexTensor; N], [DispatchTensor; N]> {
    match operands(tensors) {
        Ok(Operands::Plain(tensors)) => Ok(tensors),
        Ok(Operands::Autodiff(tensors, context)) => {
            Err(tensors.map(|tensor| dispatch_autodiff(tensor, context)))
        }
        Err(tensors) => Err(tensors),
    }
}

/// What an operation keeps for its backward pass.
pub(super) trait Saved<const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the operands, from that of the result. Those that are not `wanted` may be left
    /// out.
    fn gradients(self, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

/// Runs a kernel that has a backward pass, and records the latter where a gradient can flow. `run`
/// is told whether it does, and only then gives what it keeps. Hands operands back that are not
/// on the CPU.
pub(super) fn differentiable<S: Saved<N>, const N: usize, const D: usize>(
    tensors: [DispatchTensor; N],
    run: impl FnOnce([FlexTensor; N], bool) -> (FlexTensor, Option<S>),
) -> Result<Tensor<D>, [DispatchTensor; N]> {
    let (operands, context) = match operands(tensors)? {
        Operands::Plain(tensors) => return Ok(wrap(run(tensors, false).0)),
        Operands::Autodiff(operands, context) => (operands, context),
    };
    let mut nodes: Vec<NodeGuard> = Vec::with_capacity(N);
    let tensors = operands.map(|operand| {
        let (tensor, node) = operand.into_parts();
        nodes.push(node);
        tensor
    });
    let Ok(nodes) = nodes.try_into() else {
        unreachable!("there is one node for each operand");
    };
    let step = Recorded::<S>(PhantomData).prepare::<NoCheckpointing>(nodes);
    let out = match step.compute_bound().stateful() {
        OpsKind::Tracked(prep) => match run(tensors, true) {
            (out, Some(saved)) => prep.finish(saved, out),
            (_, None) => unreachable!("a tracked operation keeps what its gradients need"),
        },
        OpsKind::UnTracked(prep) => prep.finish(run(tensors, false).0),
    };
    Ok(wrap_autodiff(out, context))
}

/// The backward pass of an operation that keeps `S`.
#[derive(Debug)]
struct Recorded<S>(PhantomData<S>);

impl<S: Saved<N>, const N: usize> Backward<Flex, N> for Recorded<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = ops.state.gradients(grad, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// The tensor itself if its elements lie in order, else an ordered copy.
pub(super) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The elements in order as `f32`: borrowed where they are stored so, else converted.
pub(super) fn floats(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    if tensor.dtype() == DType::F32
        && let Some(slice) = tensor.as_slice::<f32>()
    {
        return Cow::Borrowed(slice);
    }
    let ordered = contiguous(tensor.clone());
    let mut out = vec![0.0; ordered.layout().num_elements()];
    match ordered.dtype() {
        DType::F32 => out.copy_from_slice(ordered.as_slice().unwrap_or_default()),
        DType::F16 => half::widen(ordered.as_slice::<f16>().unwrap_or_default(), &mut out),
        DType::BF16 => half::widen(ordered.as_slice::<bf16>().unwrap_or_default(), &mut out),
        dtype => unreachable!("operands admits no {dtype:?}"),
    }
    Cow::Owned(out)
}

/// A contiguous tensor that owns `values`, rounded to `dtype`.
pub(super) fn from_floats(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    let bytes = match dtype {
        DType::F16 => Bytes::from_elems(half::narrow::<f16>(&values)),
        DType::BF16 => Bytes::from_elems(half::narrow::<bf16>(&values)),
        _ => Bytes::from_elems(values),
    };
    FlexTensor::new(bytes, Layout::contiguous(shape), dtype)
}
