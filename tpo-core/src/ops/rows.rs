//! Parallel, vectorised maps over the rows (last axis) of a CPU tensor.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element, bf16, f16};
use pulp::bytemuck::Pod;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elementwise::overwrite_half;
use super::flex::{contiguous, floats, from_floats};
use super::half::HalfFloat;

/// Rewrites one row in place.
pub(super) trait RowMap: Copy + Send + Sync {
    fn apply<S: Simd>(self, s: S, row: &mut [f32]);
}

struct Rows<'a, K> {
    kernel: K,
    rows: &'a mut [f32],
    width: usize,
}

impl<K: RowMap> WithSimd for Rows<'_, K> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        for row in self.rows.chunks_exact_mut(self.width) {
            self.kernel.apply(s, row);
        }
    }
}

/// Elements per task.
pub(super) const CHUNK: usize = 1 << 15;

/// Applies `kernel` to every row, in `f32`; in place if nobody else holds the storage.
pub(super) fn map_rows<K: RowMap>(x: FlexTensor, kernel: K) -> FlexTensor {
    let mut x = contiguous(x);
    let shape = x.layout().shape().clone();
    let width = shape.last().copied().unwrap_or(1);
    if shape.num_elements() == 0 {
        return x;
    }
    let dtype = x.dtype();
    let arch = Arch::new();
    let chunk = (CHUNK / width).max(1) * width;
    if dtype == DType::F32
        && let Some((start, end)) = x.layout().contiguous_offsets()
        && let Some(storage) = x.try_storage_mut::<f32>()
    {
        storage[start..end].par_chunks_mut(chunk).for_each(|rows| {
            arch.dispatch(Rows {
                kernel,
                rows,
                width,
            });
        });
        return x;
    }
    match dtype {
        DType::F16 => return map_half::<f16, K>(x, width, kernel),
        DType::BF16 => return map_half::<bf16, K>(x, width, kernel),
        _ => {}
    }
    let src = floats(&x);
    let mut out = vec![0.0f32; src.len()];
    out.par_chunks_mut(chunk)
        .zip(src.par_chunks(chunk))
        .for_each(|(rows, src)| {
            // Row by row, so that the copy stays in the first-level cache.
            for (row, src) in rows.chunks_exact_mut(width).zip(src.chunks_exact(width)) {
                row.copy_from_slice(src);
                arch.dispatch(Rows {
                    kernel,
                    rows: row,
                    width,
                });
            }
        });
    from_floats(out, shape, dtype)
}

fn map_half<H, K: RowMap>(mut x: FlexTensor, width: usize, kernel: K) -> FlexTensor
where
    H: HalfFloat + Element + Pod,
{
    let arch = Arch::new();
    overwrite_half::<H>(&mut x, |x| {
        x.par_chunks_mut((CHUNK / width).max(1) * width)
            .for_each(|rows| {
                let mut wide = vec![0.0f32; width];
                for row in rows.chunks_exact_mut(width) {
                    H::widen_slice(row, &mut wide);
                    arch.dispatch(Rows {
                        kernel,
                        rows: &mut wide,
                        width,
                    });
                    H::narrow_slice(&wide, row);
                }
            });
    });
    x
}

/// Largest element of the row.
#[inline(always)]
pub(super) fn largest<S: Simd>(s: S, row: &[f32]) -> f32 {
    let (body, tail) = S::as_simd_f32s(row);
    let mut top = s.splat_f32s(f32::NEG_INFINITY);
    for &x in body {
        top = s.max_f32s(top, x);
    }
    let top = s.reduce_max_f32s(top);
    tail.iter().fold(top, |max, &x| max.max(x))
}

/// Sum of the row after adding `shift` to every element and squaring if `square`.
#[inline(always)]
pub(super) fn sum<S: Simd>(s: S, row: &[f32], shift: f32, square: bool) -> f32 {
    let (body, tail) = S::as_simd_f32s(row);
    let shift_v = s.splat_f32s(shift);
    // Independent partial sums hide the latency of the additions.
    let mut acc = [s.splat_f32s(0.0); 4];
    let (quads, rest) = body.as_chunks::<4>();
    for quad in quads {
        for i in 0..4 {
            let x = s.add_f32s(quad[i], shift_v);
            acc[i] = if square {
                s.mul_add_e_f32s(x, x, acc[i])
            } else {
                s.add_f32s(acc[i], x)
            };
        }
    }
    for &x in rest {
        let x = s.add_f32s(x, shift_v);
        acc[0] = if square {
            s.mul_add_e_f32s(x, x, acc[0])
        } else {
            s.add_f32s(acc[0], x)
        };
    }
    let total = s.add_f32s(s.add_f32s(acc[0], acc[1]), s.add_f32s(acc[2], acc[3]));
    let mut total = s.reduce_sum_f32s(total);
    for &x in tail {
        let x = x + shift;
        total += if square { x * x } else { x };
    }
    total
}
