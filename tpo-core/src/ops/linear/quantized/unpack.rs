//! Blocks of a quantised line as vectors of `f32`.

use burn::tensor::f16;
use half::slice::HalfFloatSliceExt;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Simd, bytemuck};

use super::super::quant_format::GROUP;
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::known;

/// How the `W` words of a block become its elements.
///
/// An element is the product of an integer and the block's scale. It has no more bits than an
/// `f32`, so it is exact, and the same whatever unpacks it.
pub(super) trait Unpack<const W: usize>: Copy + Send + Sync + 'static {
    /// Vector `at` of the elements of a block, which come in an order of their own.
    fn vector<S: Simd>(s: S, words: &[u32; W], at: usize, scale: S::f32s) -> S::f32s;

    /// The elements of a block, as they are unpacked, in the block's order.
    fn restore(block: &[f32; GROUP]) -> [f32; GROUP];
}

/// A byte is an element.
#[derive(Clone, Copy)]
pub(super) struct Q8;

impl Unpack<8> for Q8 {
    #[inline(always)]
    fn vector<S: Simd>(s: S, words: &[u32; 8], at: usize, scale: S::f32s) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = known::<V4>(s) {
            let bytes: [u32; 4] = std::array::from_fn(|i| words[at * 4 + i]);
            let q = v4.avx512f._mm512_cvtepi8_epi32(bytemuck::cast(bytes));
            let q = v4.avx512f._mm512_cvtepi32_ps(q);
            return s.mul_f32s(bytemuck::cast(q), scale);
        } else if let Some(v3) = known::<V3>(s) {
            let bytes = [words[at * 2], words[at * 2 + 1], 0, 0];
            let q = v3.avx2._mm256_cvtepi8_epi32(bytemuck::cast(bytes));
            let q = v3.avx._mm256_cvtepi32_ps(q);
            return s.mul_f32s(bytemuck::cast(q), scale);
        }
        let first = at * S::F32_LANES;
        let q = |i| f32::from(byte(words, first + i) as i8);
        s.mul_f32s(vector(s, std::array::from_fn(q)), scale)
    }

    #[inline(always)]
    fn restore(block: &[f32; GROUP]) -> [f32; GROUP] {
        *block
    }
}

/// A byte is two elements. The first of all bytes come before the second of all.
#[derive(Clone, Copy)]
pub(super) struct Q4;

/// What four bits stand for.
const INTEGERS: [f32; 16] = [
    -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
];

impl Unpack<4> for Q4 {
    #[inline(always)]
    fn vector<S: Simd>(s: S, words: &[u32; 4], at: usize, scale: S::f32s) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = known::<V4>(s) {
            let bytes = v4.avx512f._mm512_cvtepu8_epi32(bytemuck::cast(*words));
            // The lowest four bits of a lane choose an element of the table.
            let nibbles = match at {
                0 => bytes,
                _ => v4.avx512f._mm512_srli_epi32::<4>(bytes),
            };
            let table = bytemuck::cast(s.mul_f32s(bytemuck::cast(INTEGERS), scale));
            return bytemuck::cast(v4.avx512f._mm512_permutexvar_ps(nibbles, table));
        } else if let Some(v3) = known::<V3>(s) {
            let bytes = [words[at % 2 * 2], words[at % 2 * 2 + 1], 0, 0];
            let bytes = v3.avx2._mm256_cvtepu8_epi32(bytemuck::cast(bytes));
            let nibbles = match at {
                0 | 1 => s.and_u32s(bytemuck::cast(bytes), s.splat_u32s(15)),
                _ => s.wrapping_dyn_shr_u32s(bytemuck::cast(bytes), s.splat_u32s(4)),
            };
            let q = v3.avx._mm256_cvtepi32_ps(bytemuck::cast(nibbles));
            let q = s.sub_f32s(bytemuck::cast(q), s.splat_f32s(8.0));
            return s.mul_f32s(q, scale);
        }
        let first = at * S::F32_LANES;
        let q = |i| {
            let (half, byte_at) = ((first + i) / 16, (first + i) % 16);
            INTEGERS[usize::from(byte(words, byte_at) >> (4 * half) & 15)]
        };
        s.mul_f32s(vector(s, std::array::from_fn(q)), scale)
    }

    #[inline(always)]
    fn restore(block: &[f32; GROUP]) -> [f32; GROUP] {
        std::array::from_fn(|i| block[i % 2 * 16 + i / 2])
    }
}

#[inline(always)]
fn byte(words: &[u32], at: usize) -> u8 {
    words[at / 4 % words.len()].to_le_bytes()[at % 4]
}

/// The first lanes as a vector; there are at most 16.
#[inline(always)]
fn vector<S: Simd>(_: S, lanes: [f32; 16]) -> S::f32s {
    S::as_simd_f32s(&lanes).0[0]
}

/// How many bytes ahead memory is asked for: far into the second-level cache, which waits for more lines at
/// a time than the first, near into that. What the machine's own prefetcher does leaves half of the
/// bandwidth unused.
const FAR: usize = 8192;
const NEAR: usize = 1024;

/// Asks for the memory some way after `words`, so that it is there when it is needed.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(s: S, words: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1};
        let sse = match known::<V4>(s) {
            Some(v4) => Some(v4.sse),
            None => known::<V3>(s).map(|v3| v3.sse),
        };
        if let Some(sse) = sse {
            let address = words.as_ptr().cast::<i8>();
            sse._mm_prefetch::<_MM_HINT_T1>(address.wrapping_add(FAR));
            sse._mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(NEAR));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (s, words);
}

/// Scales as `f32`.
#[inline(always)]
pub(super) fn widen_scales<S: Simd>(s: S, scales: &[f16], dst: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = known::<V4>(s)
        && let Some(last) = scales.len().checked_sub(16)
    {
        let scales: &[u16] = scales.reinterpret_cast();
        let mut at = 0;
        loop {
            let mut bits = [0u16; 16];
            bits.copy_from_slice(&scales[at..at + 16]);
            let wide = v4.avx512f._mm512_cvtph_ps(bytemuck::cast(bits));
            dst[at..at + 16].copy_from_slice(&bytemuck::cast::<_, [f32; 16]>(wide));
            if at == last {
                return;
            }
            // The last sixteen may overlap those before.
            at = (at + 16).min(last);
        }
    }
    let _ = s;
    scales.convert_to_f32_slice(dst);
}

/// Writes the elements of some blocks in the order in which they are unpacked.
#[inline(always)]
pub(super) fn widen<S: Simd, U: Unpack<W>, const W: usize>(
    s: S,
    units: &[u32],
    scales: &[f16],
    dst: &mut [f32],
) {
    let (units, _) = units.as_chunks::<W>();
    let (dst, _) = dst.as_chunks_mut::<GROUP>();
    let mut wide = [0.0f32; 16];
    for ((dst, units), scales) in dst
        .chunks_mut(16)
        .zip(units.chunks(16))
        .zip(scales.chunks(16))
    {
        let wide = &mut wide[..scales.len()];
        widen_scales(s, scales, wide);
        for ((dst, words), &scale) in dst.iter_mut().zip(units).zip(&*wide) {
            prefetch(s, words);
            let scale = s.splat_f32s(scale);
            let (dst, _) = S::as_mut_simd_f32s(dst);
            for (at, dst) in dst.iter_mut().enumerate() {
                *dst = U::vector(s, words, at, scale);
            }
        }
    }
}
