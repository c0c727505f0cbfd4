//! Parallel, vectorised maps over CPU tensors.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Element, Tensor, bf16, f16};
use pulp::bytemuck::Pod;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{Saved, contiguous, differentiable, floats, from_floats};
use super::half::HalfFloat;

/// A function of one number.
pub(super) trait Unary: Copy + Send + Sync + 'static {
    /// Value for a vector of arguments.
    fn eval<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
}

/// A function of two numbers.
pub(super) trait Binary: Copy + Send + Sync + 'static {
    /// Value for two vectors of arguments.
    fn eval<S: Simd>(self, simd: S, x: S::f32s, y: S::f32s) -> S::f32s;
}

/// Elements per task: large enough to hide the cost of a task, small enough to balance.
const CHUNK: usize = 1 << 15;

/// Elements copied or converted at a time (fits the first-level cache).
const SCRATCH: usize = 1024;

struct InPlace<'a, K>(K, &'a mut [f32]);

impl<K: Unary> WithSimd for InPlace<'_, K> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (body, tail) = S::as_mut_simd_f32s(self.1);
        for x in body {
            *x = self.0.eval(s, *x);
        }
        if !tail.is_empty() {
            let y = self.0.eval(s, s.partial_load_f32s(tail));
            s.partial_store_f32s(tail, y);
        }
    }
}

/// Writes `k(x, y)` over `x`.
struct InPlace2<'a, K>(K, &'a mut [f32], &'a [f32]);

impl<K: Binary> WithSimd for InPlace2<'_, K> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (x, x_tail) = S::as_mut_simd_f32s(self.1);
        let (y, y_tail) = S::as_simd_f32s(self.2);
        for (x, y) in x.iter_mut().zip(y) {
            *x = self.0.eval(s, *x, *y);
        }
        if !x_tail.is_empty() {
            let out = self
                .0
                .eval(s, s.partial_load_f32s(x_tail), s.partial_load_f32s(y_tail));
            s.partial_store_f32s(x_tail, out);
        }
    }
}

/// Applies `k` to every element; in place if nobody else holds the storage.
pub(super) fn map<K: Unary>(x: FlexTensor, k: K) -> FlexTensor {
    let mut x = contiguous(x);
    match x.dtype() {
        DType::F16 => return map_half::<f16, K>(x, k),
        DType::BF16 => return map_half::<bf16, K>(x, k),
        _ => {}
    }
    let arch = Arch::new();
    let shape = x.layout().shape().clone();
    if let Some((start, end)) = x.layout().contiguous_offsets()
        && let Some(storage) = x.try_storage_mut::<f32>()
    {
        storage[start..end]
            .par_chunks_mut(CHUNK)
            .for_each(|chunk| arch.dispatch(InPlace(k, chunk)));
        return x;
    }
    let src = floats(&x);
    let mut out = vec![0.0; src.len()];
    out.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(out, src)| {
            // Piece by piece, so that the copy stays in the first-level cache.
            for (out, src) in out.chunks_mut(SCRATCH).zip(src.chunks(SCRATCH)) {
                out.copy_from_slice(src);
                arch.dispatch(InPlace(k, out));
            }
        });
    from_floats(out, shape, DType::F32)
}

fn map_half<H, K: Unary>(mut x: FlexTensor, k: K) -> FlexTensor
where
    H: HalfFloat + Element + Pod,
{
    let arch = Arch::new();
    overwrite_half::<H>(&mut x, |x| {
        x.par_chunks_mut(CHUNK).for_each(|x| {
            let mut scratch = [0.0f32; SCRATCH];
            for x in x.chunks_mut(SCRATCH) {
                let scratch = &mut scratch[..x.len()];
                H::widen_slice(x, scratch);
                arch.dispatch(InPlace(k, &mut *scratch));
                H::narrow_slice(scratch, x);
            }
        });
    });
    x
}

/// Applies `k` to every pair of elements of two tensors of one shape and dtype, written over the
/// first if nobody else holds its storage.
pub(super) fn map2<K: Binary>(x: FlexTensor, y: FlexTensor, k: K) -> FlexTensor {
    let mut x = contiguous(x);
    let dtype = x.dtype();
    match (dtype, y.dtype()) {
        (DType::F16, DType::F16) => return map2_half::<f16, K>(x, y, k),
        (DType::BF16, DType::BF16) => return map2_half::<bf16, K>(x, y, k),
        _ => {}
    }
    let shape = x.layout().shape().clone();
    let arch = Arch::new();
    let y = floats(&y);
    if dtype == DType::F32
        && let Some((start, end)) = x.layout().contiguous_offsets()
        && let Some(storage) = x.try_storage_mut::<f32>()
    {
        storage[start..end]
            .par_chunks_mut(CHUNK)
            .zip(y.par_chunks(CHUNK))
            .for_each(|(x, y)| arch.dispatch(InPlace2(k, x, y)));
        return x;
    }
    let src = floats(&x);
    let mut out = vec![0.0; src.len()];
    out.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)))
        .for_each(|(out, (x, y))| {
            let pairs = x.chunks(SCRATCH).zip(y.chunks(SCRATCH));
            for (out, (x, y)) in out.chunks_mut(SCRATCH).zip(pairs) {
                out.copy_from_slice(x);
                arch.dispatch(InPlace2(k, out, y));
            }
        });
    from_floats(out, shape, dtype)
}

fn map2_half<H, K: Binary>(mut x: FlexTensor, y: FlexTensor, k: K) -> FlexTensor
where
    H: HalfFloat + Element + Pod,
{
    let arch = Arch::new();
    let y = contiguous(y);
    let y = y.as_slice::<H>().unwrap_or_default();
    overwrite_half::<H>(&mut x, |x| {
        x.par_chunks_mut(CHUNK)
            .zip(y.par_chunks(CHUNK))
            .for_each(|(x, y)| {
                let mut wide = [[0.0f32; SCRATCH]; 2];
                for (x, y) in x.chunks_mut(SCRATCH).zip(y.chunks(SCRATCH)) {
                    let [a, b] = wide.each_mut().map(|wide| &mut wide[..x.len()]);
                    H::widen_slice(x, a);
                    H::widen_slice(y, b);
                    arch.dispatch(InPlace2(k, &mut *a, &*b));
                    H::narrow_slice(a, x);
                }
            });
    });
    x
}

/// Lets `run` overwrite the elements of an ordered tensor of type `H`: in place if nobody else holds the storage,
/// else of a copy that takes its place.
pub(super) fn overwrite_half<H: Element + Pod>(x: &mut FlexTensor, run: impl FnOnce(&mut [H])) {
    if let Some((start, end)) = x.layout().contiguous_offsets()
        && let Some(storage) = x.try_storage_mut::<H>()
    {
        return run(&mut storage[start..end]);
    }
    let mut copy = x.as_slice::<H>().unwrap_or_default().to_vec();
    run(&mut copy);
    let layout = Layout::contiguous(x.layout().shape().clone());
    *x = FlexTensor::new(Bytes::from_elems(copy), layout, x.dtype());
}

/// `x + y`, of half precision rounded once.
///
/// # Shapes
/// - `x`, `y` and output `[..]`, all the same
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    assert_eq!(x.dims(), y.dims(), "add: both must have the same shape");
    if x.dtype() != y.dtype() {
        return x + y;
    }
    let run = |[x, y]: [FlexTensor; 2], tracked: bool| (map2(x, y, Sum), tracked.then_some(Sum));
    differentiable([x.into_dispatch(), y.into_dispatch()], run)
        .unwrap_or_else(|[x, y]| Tensor::from_dispatch(x) + Tensor::from_dispatch(y))
}

#[derive(Clone, Copy, Debug)]
struct Sum;

impl Binary for Sum {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::f32s, y: S::f32s) -> S::f32s {
        s.add_f32s(x, y)
    }
}

impl Saved<2> for Sum {
    fn gradients(self, grad: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        wanted.map(|wanted| wanted.then(|| grad.clone()))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Bits of sums and gradients are those of Burn's addition, in order or not, and operands that others hold
    /// stay as they are.
    #[test]
    fn adds_as_burn_does() {
        let device = Device::default();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let numbers = |seed: usize| {
                let values = (0..70 * 46).map(|i| ((i * 7919 + seed) % 1021) as f32 / 37.0 - 9.0);
                TensorData::new(values.collect::<Vec<_>>(), [70, 46])
            };
            let tensor = |seed| Tensor::<2>::from_data(numbers(seed), &device).cast(dtype);
            let (x, y) = (tensor(3), tensor(500));
            let held = x.clone().into_data();
            let expected = (x.clone() + y.clone()).into_data();
            assert_eq!(add(x.clone(), y.clone()).into_data(), expected);
            assert_eq!(x.clone().into_data(), held);
            let turned = add(x.clone().transpose(), y.clone().transpose());
            assert_eq!(turned.transpose().into_data(), expected);
            // Nobody else holds the storage.
            assert_eq!(add(tensor(3), y).into_data(), expected, "{dtype:?}");
        }
    }

    #[test]
    fn gradients_of_a_sum_reach_both() {
        let device = Device::default().autodiff();
        let tensor = |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).require_grad();
        let (x, y) = (tensor([1.0, 2.0, 3.0]), tensor([-4.0, 5.0, 6.0]));
        let sum = add(x.clone(), y.clone());
        let grads = (sum.clone() * sum.detach()).sum().backward();
        for input in [x, y] {
            let gradient: Vec<f32> = input
                .grad(&grads)
                .unwrap()
                .into_data()
                .try_to_vec()
                .unwrap();
            assert_eq!(gradient, [-3.0, 7.0, 9.0]);
        }
    }
}
