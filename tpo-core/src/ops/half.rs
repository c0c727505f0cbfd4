//! Conversion between half precision and `f32`, in slices.

use burn::tensor::{bf16, f16};
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, Simd, WithSimd};

/// A 16-bit float type.
pub(super) trait HalfFloat: Copy + Send + Sync + 'static {
    /// Positive zero.
    const ZERO: Self;
    /// The same number as `f32`; without branches, so that loops over it become vector code.
    fn widened(self) -> f32;
    /// Rounds `src` to nearest even into `dst` of the same length, on the calling thread.
    fn narrow_slice(src: &[f32], dst: &mut [Self]);

    /// Widens `src` into `dst` of the same length, on the calling thread.
    fn widen_slice(src: &[Self], dst: &mut [f32]) {
        Arch::new().dispatch(Widen { src, dst });
    }
}

impl HalfFloat for f16 {
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn widened(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals exact.
        let factor = f32::from_bits((127 + 112) << 23);
        let finite = (f32::from_bits(magnitude) * factor).to_bits();
        // Infinities and NaNs have all exponent bits set.
        let special = magnitude >= 0x7c00 << 13;
        let value = if special {
            magnitude | 0x7f80_0000
        } else {
            finite
        };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    fn narrow_slice(src: &[f32], dst: &mut [Self]) {
        dst.convert_from_f32_slice(src);
    }
}

impl HalfFloat for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn narrow_slice(src: &[f32], dst: &mut [Self]) {
        Arch::new().dispatch(NarrowBf16 { src, dst });
    }
}

struct Widen<'a, H> {
    src: &'a [H],
    dst: &'a mut [f32],
}

impl<H: HalfFloat> WithSimd for Widen<'_, H> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (dst, src) in self.dst.iter_mut().zip(self.src) {
            *dst = src.widened();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of both types, bit for bit; a NaN stays a NaN.
    #[test]
    fn widening_is_exact() {
        fn check<H: HalfFloat>(number: impl Fn(u16) -> H, exact: impl Fn(u16) -> f32) {
            let numbers: Vec<H> = (0..=u16::MAX).map(number).collect();
            let mut wide = vec![0.0f32; numbers.len()];
            H::widen_slice(&numbers, &mut wide);
            for (bits, wide) in (0..=u16::MAX).zip(wide) {
                let exact = exact(bits);
                let same = wide.to_bits() == exact.to_bits() || wide.is_nan() && exact.is_nan();
                assert!(same, "{bits:04x}: {wide} for {exact}");
            }
        }
        check(f16::from_bits, |bits| f16::from_bits(bits).to_f32());
        check(bf16::from_bits, |bits| bf16::from_bits(bits).to_f32());
    }
}
