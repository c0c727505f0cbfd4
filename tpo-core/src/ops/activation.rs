//! Element-wise activations.

use std::marker::PhantomData;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};
use pulp::Simd;

use super::elementwise::{self, Binary, Unary};
use super::flex::{Saved, differentiable};
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
    let run = |[gate, up]: [FlexTensor; 2], tracked: bool| {
        let saved = tracked.then(|| GateAndUp(gate.clone(), up.clone()));
        (elementwise::map2(gate, up, SwiGlu), saved)
    };
    differentiable([gate.into_dispatch(), up.into_dispatch()], run).unwrap_or_else(|[gate, up]| {
        activation::silu(Tensor::from_dispatch(gate)) * Tensor::from_dispatch(up)
    })
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
    let run = |[x]: [FlexTensor; 1], tracked: bool| {
        let saved = tracked.then(|| Input::<A>(x.clone(), PhantomData));
        (elementwise::map(x, Value::<A>(PhantomData)), saved)
    };
    differentiable([x.into_dispatch()], run)
        .unwrap_or_else(|[x]| composed(Tensor::from_dispatch(x)))
}

/// The input of an activation.
#[derive(Clone, Debug)]
struct Input<A>(FlexTensor, PhantomData<A>);

impl<A: Activation> Saved<1> for Input<A> {
    fn gradients(self, grad: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let slope = Slope::<A>(PhantomData);
        [Some(elementwise::map2(grad, self.0, slope))]
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

/// The inputs of the gated unit.
#[derive(Clone, Debug)]
struct GateAndUp(FlexTensor, FlexTensor);

impl Saved<2> for GateAndUp {
    fn gradients(self, grad: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let Self(gate, up) = self;
        let d_up = wanted[1].then(|| elementwise::map2(gate.clone(), grad.clone(), SwiGlu));
        let d_gate = wanted[0].then(|| {
            let grad = elementwise::map2(grad, up, Product);
            elementwise::map2(grad, gate, Slope::<Silu>(PhantomData))
        });
        [d_gate, d_up]
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
