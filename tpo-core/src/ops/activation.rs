//! Element-wise activations.

use std::marker::PhantomData;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary, unary};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use pulp::Simd;

use super::elementwise::{self, Binary, Unary};
use super::flex::{AdTensor, Operands, operands, wrap, wrap_autodiff};
use super::simd::{erf, exp, sigmoid};

/// Exact GELU, `x · Φ(x)` with the error function (PyTorch `GELU(approximate="none")`).
///
/// # Shapes
/// - input and output `[..]`
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply::<Gelu, D>(x, activation::gelu)
}

/// GELU in its tanh form (PyTorch `GELU(approximate="tanh")`).
///
/// # Shapes
/// - input and output `[..]`
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply::<GeluTanh, D>(x, activation::gelu_approximate)
}

/// SiLU (swish), `x · σ(x)`.
///
/// # Shapes
/// - input and output `[..]`
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    apply::<Silu, D>(x, activation::silu)
}

/// The gated unit of the Llama family's MLP, `silu(gate) · up`, in one pass.
///
/// # Shapes
/// - `gate`, `up` and output `[..]`, all the same
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "swiglu: gate and up must have the same shape"
    );
    if gate.dtype() != up.dtype() {
        return activation::silu(gate) * up;
    }
    match operands([gate.into_dispatch(), up.into_dispatch()]) {
        Ok(Operands::Plain([gate, up])) => wrap(elementwise::map2(gate, up, SwiGlu)),
        Ok(Operands::Autodiff(inputs, context)) => wrap_autodiff(swiglu_autodiff(inputs), context),
        Err([gate, up]) => {
            activation::silu(Tensor::from_dispatch(gate)) * Tensor::from_dispatch(up)
        }
    }
}

/// An activation and its derivative.
trait Activation: std::fmt::Debug + Copy + Default + Send + Sync + 'static {
    fn value<S: Simd>(s: S, x: S::f32s) -> S::f32s;
    fn slope<S: Simd>(s: S, x: S::f32s) -> S::f32s;
}

/// The value as a [`Unary`] map.
#[derive(Clone, Copy)]
struct Value<A>(PhantomData<A>);

impl<A: Activation> Unary for Value<A> {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::f32s) -> S::f32s {
        A::value(s, x)
    }
}

/// Incoming gradient times derivative, as a [`Binary`] map of (gradient, input).
#[derive(Clone, Copy)]
struct Slope<A>(PhantomData<A>);

impl<A: Activation> Binary for Slope<A> {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, grad: S::f32s, x: S::f32s) -> S::f32s {
        s.mul_f32s(grad, A::slope(s, x))
    }
}

fn apply<A: Activation, const D: usize>(
    x: Tensor<D>,
    composed: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    match operands([x.into_dispatch()]) {
        Ok(Operands::Plain([x])) => wrap(elementwise::map(x, Value::<A>(PhantomData))),
        Ok(Operands::Autodiff([x], context)) => wrap_autodiff(apply_autodiff::<A>(x), context),
        Err([x]) => composed(Tensor::from_dispatch(x)),
    }
}

#[derive(Debug)]
struct ActivationStep<A>(PhantomData<A>);

impl<A: Activation> Backward<Flex, 1> for ActivationStep<A> {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            elementwise::map2(grad, ops.state, Slope::<A>(PhantomData))
        });
    }
}

fn apply_autodiff<A: Activation>(x: AdTensor) -> AdTensor {
    let (x, node) = x.into_parts();
    let value = Value::<A>(PhantomData);
    let step = ActivationStep::<A>(PhantomData).prepare::<NoCheckpointing>([node]);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(x.clone(), elementwise::map(x, value)),
        OpsKind::UnTracked(prep) => prep.finish(elementwise::map(x, value)),
    }
}

#[derive(Clone, Copy)]
struct SwiGlu;

impl Binary for SwiGlu {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, gate: S::f32s, up: S::f32s) -> S::f32s {
        s.mul_f32s(Silu::value(s, gate), up)
    }
}

#[derive(Debug)]
struct SwiGluStep;

impl Backward<Flex, 2> for SwiGluStep {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = ops.state;
        binary::<Flex, _, _>(
            ops.parents,
            ops.node,
            grads,
            {
                let gate = gate.clone();
                |grad| {
                    let grad = elementwise::map2(grad, up, Product);
                    elementwise::map2(grad, gate, Slope::<Silu>(PhantomData))
                }
            },
            |grad| elementwise::map2(gate, grad, SwiGlu),
        );
    }
}

#[derive(Clone, Copy)]
struct Product;

impl Binary for Product {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::f32s, y: S::f32s) -> S::f32s {
        s.mul_f32s(x, y)
    }
}

fn swiglu_autodiff([gate, up]: [AdTensor; 2]) -> AdTensor {
    let (gate, gate_node) = gate.into_parts();
    let (up, up_node) = up.into_parts();
    let step = SwiGluStep.prepare::<NoCheckpointing>([gate_node, up_node]);
    match step.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(
            (gate.clone(), up.clone()),
            elementwise::map2(gate, up, SwiGlu),
        ),
        OpsKind::UnTracked(prep) => prep.finish(elementwise::map2(gate, up, SwiGlu)),
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Gelu;

impl Gelu {
    /// `Φ(x)`, the cumulative normal distribution.
    #[inline(always)]
    fn cdf<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        let half = s.splat_f32s(0.5);
        let e = erf(
            s,
            s.mul_f32s(x, s.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)),
        );
        s.mul_add_e_f32s(half, e, half)
    }
}

impl Activation for Gelu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        s.mul_f32s(x, Self::cdf(s, x))
    }

    /// `Φ(x) + x · φ(x)`.
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        // 1 / sqrt(2π)
        let density = s.splat_f32s(0.398_942_3);
        let half_sq = s.mul_f32s(s.mul_f32s(x, x), s.splat_f32s(-0.5));
        let density = s.mul_f32s(density, exp(s, half_sq));
        s.mul_add_e_f32s(x, density, Self::cdf(s, x))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct GeluTanh;

impl GeluTanh {
    /// `2 · sqrt(2/π)`: `(1 + tanh u) / 2 = σ(2u)`.
    const FACTOR: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
}

impl Activation for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        let sq = s.mul_f32s(x, x);
        let inner = s.mul_add_e_f32s(sq, s.splat_f32s(Self::CUBIC), s.splat_f32s(1.0));
        let u = s.mul_f32s(s.mul_f32s(x, s.splat_f32s(Self::FACTOR)), inner);
        s.mul_f32s(x, sigmoid(s, u))
    }

    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        let one = s.splat_f32s(1.0);
        let sq = s.mul_f32s(x, x);
        let factor = s.splat_f32s(Self::FACTOR);
        let inner = s.mul_add_e_f32s(sq, s.splat_f32s(Self::CUBIC), one);
        let gate = sigmoid(s, s.mul_f32s(s.mul_f32s(x, factor), inner));
        let du = s.mul_f32s(
            factor,
            s.mul_add_e_f32s(sq, s.splat_f32s(3.0 * Self::CUBIC), one),
        );
        let spread = s.mul_f32s(gate, s.sub_f32s(one, gate));
        s.mul_add_e_f32s(s.mul_f32s(x, spread), du, gate)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Silu;

impl Activation for Silu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        s.mul_f32s(x, sigmoid(s, x))
    }

    /// `σ · (1 + x · (1 − σ))`.
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::f32s) -> S::f32s {
        let one = s.splat_f32s(1.0);
        let gate = sigmoid(s, x);
        s.mul_f32s(gate, s.mul_add_e_f32s(x, s.sub_f32s(one, gate), one))
    }
}
