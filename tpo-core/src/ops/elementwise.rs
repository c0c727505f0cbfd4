//! Parallel, vectorised maps over CPU tensors.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::flex::{contiguous, floats, from_floats};
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

fn map_half<H, K: Unary>(x: FlexTensor, k: K) -> FlexTensor
where
    H: HalfFloat + burn::tensor::Element + pulp::bytemuck::Pod,
{
    let arch = Arch::new();
    let shape = x.layout().shape().clone();
    let dtype = x.dtype();
    let src = x.as_slice::<H>().unwrap_or_default();
    let mut out = vec![H::ZERO; src.len()];
    out.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(out, src)| {
            let mut scratch = [0.0f32; SCRATCH];
            for (out, src) in out.chunks_mut(SCRATCH).zip(src.chunks(SCRATCH)) {
                let scratch = &mut scratch[..src.len()];
                H::widen_slice(src, scratch);
                arch.dispatch(InPlace(k, &mut *scratch));
                H::narrow_slice(scratch, out);
            }
        });
    FlexTensor::new(
        burn::tensor::Bytes::from_elems(out),
        burn::backend::flex::Layout::contiguous(shape),
        dtype,
    )
}

/// Applies `k` to every pair of elements of two tensors of one shape and dtype, written over the
/// first if nobody else holds its storage.
pub(super) fn map2<K: Binary>(x: FlexTensor, y: FlexTensor, k: K) -> FlexTensor {
    let mut x = contiguous(x);
    let dtype = x.dtype();
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
