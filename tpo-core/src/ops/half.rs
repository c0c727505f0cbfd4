//! Conversion between half precision and `f32`, in slices.

use burn::tensor::{bf16, f16};
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, Simd, WithSimd};

/// A 16-bit float type.
pub(super) trait HalfFloat: Copy + Send + Sync + 'static {
    /// Positive zero.
    const ZERO: Self;
    /// Widens `src` into `dst` of the same length, on the calling thread.
    fn widen_slice(src: &[Self], dst: &mut [f32]);
    /// Rounds `src` to nearest even into `dst` of the same length, on the calling thread.
    fn narrow_slice(src: &[f32], dst: &mut [Self]);
}

impl HalfFloat for f16 {
    const ZERO: Self = f16::ZERO;
    fn widen_slice(src: &[Self], dst: &mut [f32]) {
        src.convert_to_f32_slice(dst);
    }
    fn narrow_slice(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

impl HalfFloat for bf16 {
    const ZERO: Self = bf16::ZERO;
    fn widen_slice(src: &[Self], dst: &mut [f32]) {
        Arch::new().dispatch(WidenBf16 { src, dst });
    }
    fn narrow_slice(src: &[f32], dst: &mut [Self]) {
        Arch::new().dispatch(NarrowBf16 { src, dst });
    }
}

struct WidenBf16<'a> {
    src: &'a [bf16],
    dst: &'a mut [f32],
}

impl WithSimd for WidenBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (dst, src) in self.dst.iter_mut().zip(self.src) {
            *dst = f32::from_bits(u32::from(src.to_bits()) << 16);
        }
    }
}

struct NarrowBf16<'a> {
    src: &'a [f32],
    dst: &'a mut [bf16],
}

impl WithSimd for NarrowBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (dst, src) in self.dst.iter_mut().zip(self.src) {
            let bits = src.to_bits();
            // Round to nearest even; a NaN is kept one by setting its quiet bit.
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            let nan = bits & 0x7fff_ffff > 0x7f80_0000;
            *dst = bf16::from_bits(if nan { quiet } else { rounded } as u16);
        }
    }
}

/// Elements per task when a conversion is spread over threads.
const CHUNK: usize = 1 << 15;

/// Widens `src` into `dst` of the same length, on all threads.
pub(super) fn widen<H: HalfFloat>(src: &[H], dst: &mut [f32]) {
    use rayon::prelude::*;
    dst.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(dst, src)| H::widen_slice(src, dst));
}

/// Rounds to nearest even, on all threads.
pub(super) fn narrow<H: HalfFloat>(src: &[f32]) -> Vec<H> {
    use rayon::prelude::*;
    let mut dst = vec![H::ZERO; src.len()];
    dst.par_chunks_mut(CHUNK)
        .zip(src.par_chunks(CHUNK))
        .for_each(|(dst, src)| H::narrow_slice(src, dst));
    dst
}
