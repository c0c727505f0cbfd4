//! Products of rounded rows and packed weights in integers.
//!
//! Rows are rounded to 16 bits: a block of 32 elements becomes integers times a power of two, so that
//! an element is off by at most 2⁻¹⁵ of the block's largest magnitude, and elements that have no more bits are
//! exact. A product of two integers and the sums of a few of them have fewer bits than an `f32`
//! holds: they are exact whatever makes them.

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Simd, bytemuck};

use super::super::quant_format::GROUP;
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::known;

/// Sums of products in one step of the weight, or words of the weight.
pub(super) const LANES: usize = 16;

/// How the integers of a weight are multiplied, in steps of 16 words of a line, with `X` times 16
/// words of a row.
pub(super) trait Integers<const X: usize>: Send + Sync + 'static {
    /// Blocks of a step.
    const BLOCKS: usize;
    /// Sums of a step, each of elements of one block.
    const SUMS: usize;
    /// What the integers of the weight lack, as they are multiplied.
    const OFFSET: f32;
    /// The integers of a vector of sums.
    type Weights<S: Simd>: Copy;

    /// Arranges the rounded elements of the blocks of a step.
    fn arrange(rounded: &[i16], step: &mut [[u32; LANES]; X]);

    /// The integers of vector `at` of the sums.
    fn weights<S: Simd>(s: S, words: &[u32; LANES], at: usize) -> Self::Weights<S>;

    /// Vector `at` of the sums.
    fn sums<S: Simd>(s: S, w: Self::Weights<S>, x: &[[u32; LANES]; X], at: usize) -> S::f32s;

    /// The scales of the blocks of a step for vector `at` of the sums.
    fn scales<S: Simd>(s: S, scales: &[f32], at: usize) -> S::f32s;
}

/// A byte is an element; a sum has two products.
pub(super) struct Q8;

impl Integers<2> for Q8 {
    const BLOCKS: usize = 2;
    const SUMS: usize = 32;
    const OFFSET: f32 = 0.0;
    type Weights<S: Simd> = S::u32s;

    #[inline(always)]
    fn arrange(rounded: &[i16], step: &mut [[u32; LANES]; 2]) {
        let pairs = bytemuck::cast_slice::<i16, u32>(rounded);
        step.as_flattened_mut()[..pairs.len()].copy_from_slice(pairs);
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, words: &[u32; LANES], at: usize) -> S::u32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = known::<V4>(s) {
            let bytes = words.as_chunks::<8>().0[at];
            return bytemuck::cast(v4.avx512bw._mm512_cvtepi8_epi16(bytemuck::cast(bytes)));
        } else if let Some(v3) = known::<V3>(s) {
            let bytes = words.as_chunks::<4>().0[at];
            return bytemuck::cast(v3.avx2._mm256_cvtepi8_epi16(bytemuck::cast(bytes)));
        }
        let mut lanes = [0; LANES];
        for (lane, pair) in lanes.iter_mut().enumerate().take(S::U32_LANES) {
            let at = at * S::U32_LANES + lane;
            let bytes = words[at / 2].to_le_bytes();
            let byte = |i| i16::from(bytes[at % 2 * 2 + i] as i8);
            *pair = bytemuck::cast([byte(0), byte(1)]);
        }
        S::as_simd_u32s(&lanes).0[0]
    }

    #[inline(always)]
    fn sums<S: Simd>(s: S, w: S::u32s, x: &[[u32; LANES]; 2], at: usize) -> S::f32s {
        floats(s, pairs(s, w, S::as_simd_u32s(x.as_flattened()).0[at]))
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, scales: &[f32], at: usize) -> S::f32s {
        s.splat_f32s(scales[at * S::F32_LANES / LANES])
    }
}

/// Four bits are an element, 8 more than what they stand for; a sum has the eight products of a word.
pub(super) struct Q4;

impl Integers<4> for Q4 {
    const BLOCKS: usize = 4;
    const SUMS: usize = 16;
    const OFFSET: f32 = -8.0;
    type Weights<S: Simd> = [S::u32s; 4];

    /// Elements `k` and `k + 4` of the eight of a word come together.
    #[inline(always)]
    fn arrange(rounded: &[i16], step: &mut [[u32; LANES]; 4]) {
        let pairs = bytemuck::cast_slice::<i16, u32>(rounded).as_chunks::<4>().0;
        for (lane, x) in pairs.iter().enumerate() {
            for k in 0..2 {
                step[2 * k][lane] = x[k] & 0xffff | x[k + 2] << 16;
                step[2 * k + 1][lane] = x[k] >> 16 | x[k + 2] & 0xffff_0000;
            }
        }
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, words: &[u32; LANES], at: usize) -> [S::u32s; 4] {
        let words = S::as_simd_u32s(words).0[at];
        let mut nibbles = [words; 4];
        for (k, nibbles) in nibbles.iter_mut().enumerate().take(3) {
            if k > 0 {
                *nibbles = s.wrapping_dyn_shr_u32s(words, s.splat_u32s(4 * k as u32));
            }
            *nibbles = s.and_u32s(*nibbles, s.splat_u32s(0x000f_000f));
        }
        nibbles[3] = highest(s, words);
        nibbles
    }

    #[inline(always)]
    fn sums<S: Simd>(s: S, w: [S::u32s; 4], x: &[[u32; LANES]; 4], at: usize) -> S::f32s {
        let mut sums = pairs(s, w[0], S::as_simd_u32s(&x[0]).0[at]);
        for k in 1..4 {
            sums = s.add_u32s(sums, pairs(s, w[k], S::as_simd_u32s(&x[k]).0[at]));
        }
        floats(s, sums)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, scales: &[f32], at: usize) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = known::<V4>(s) {
            const BLOCK: [u32; LANES] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
            let four = scales.as_chunks::<4>().0[0];
            let four = v4.avx512f._mm512_castps128_ps512(bytemuck::cast(four));
            return bytemuck::cast(
                v4.avx512f
                    ._mm512_permutexvar_ps(bytemuck::cast(BLOCK), four),
            );
        }
        let _ = s;
        let mut lanes = [0.0; LANES];
        for (lane, scale) in lanes.iter_mut().enumerate().take(S::F32_LANES) {
            *scale = scales[(at * S::F32_LANES + lane) / 4];
        }
        S::as_simd_f32s(&lanes).0[0]
    }
}

/// `a₀b₀ + a₁b₁` of the two signed 16-bit integers in each lane.
#[inline(always)]
fn pairs<S: Simd>(s: S, a: S::u32s, b: S::u32s) -> S::u32s {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = known::<V4>(s) {
        let sums = v4
            .avx512bw
            ._mm512_madd_epi16(bytemuck::cast(a), bytemuck::cast(b));
        return bytemuck::cast(sums);
    } else if let Some(v3) = known::<V3>(s) {
        let sums = v3
            .avx2
            ._mm256_madd_epi16(bytemuck::cast(a), bytemuck::cast(b));
        return bytemuck::cast(sums);
    }
    let _ = s;
    let (a, b) = ([a], [b]);
    let a: &[[i16; 2]] = bytemuck::cast_slice(&a);
    let b: &[[i16; 2]] = bytemuck::cast_slice(&b);
    let mut lanes = [0; LANES];
    for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
        let product = |k: usize| i32::from(a[k]) * i32::from(b[k]);
        *lane = (product(0) + product(1)) as u32;
    }
    S::as_simd_u32s(&lanes).0[0]
}

/// The highest four of the sixteen bits of each half of a lane.
#[inline(always)]
fn highest<S: Simd>(s: S, words: S::u32s) -> S::u32s {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = known::<V4>(s) {
        let words = bytemuck::cast(words);
        return bytemuck::cast(v4.avx512bw._mm512_srli_epi16::<12>(words));
    } else if let Some(v3) = known::<V3>(s) {
        let words = bytemuck::cast(words);
        return bytemuck::cast(v3.avx2._mm256_srli_epi16::<12>(words));
    }
    let shifted = s.wrapping_dyn_shr_u32s(words, s.splat_u32s(12));
    s.and_u32s(shifted, s.splat_u32s(0x000f_000f))
}

/// Signed integers as floats.
#[inline(always)]
fn floats<S: Simd>(s: S, integers: S::u32s) -> S::f32s {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = known::<V4>(s) {
        return bytemuck::cast(v4.avx512f._mm512_cvtepi32_ps(bytemuck::cast(integers)));
    } else if let Some(v3) = known::<V3>(s) {
        return bytemuck::cast(v3.avx._mm256_cvtepi32_ps(bytemuck::cast(integers)));
    }
    let _ = s;
    let integers = [integers];
    let mut lanes = [0.0; LANES];
    for (lane, integer) in lanes
        .iter_mut()
        .zip(bytemuck::cast_slice::<_, i32>(&integers))
    {
        *lane = *integer as f32;
    }
    S::as_simd_f32s(&lanes).0[0]
}

/// Rounds a block to integers, the product of which and the result are its elements.
///
/// The result is a power of two, or NaN if an element is not finite. Below 2⁻¹¹² it stays the same:
/// what is lost there is less than the smallest normal number.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, block: &[f32; GROUP], rounded: &mut [i16; GROUP]) -> f32 {
    /// Added to a small number, it leaves the nearest integer in the lowest bits.
    const MAGIC: f32 = 1.5 * (1 << 23) as f32;
    let (block, _) = S::as_simd_f32s(block);
    let mut peak = s.splat_f32s(0.0);
    let mut probe = s.splat_f32s(0.0);
    for x in block {
        peak = s.max_f32s(s.abs_f32s(*x), peak);
        probe = s.mul_add_e_f32s(*x, s.splat_f32s(0.0), probe);
    }
    let peak = s.reduce_max_f32s(peak).to_bits();
    // Of the largest magnitude, less 14: the integers have 15 bits and a sign.
    let exponent = (peak >> 23).clamp(15, 254) - 14;
    let inverse = s.splat_f32s(f32::from_bits((254 - exponent) << 23));
    let mut bits = [0.0f32; GROUP];
    for (bits, x) in S::as_mut_simd_f32s(&mut bits).0.iter_mut().zip(block) {
        let x = s.min_f32s(s.mul_f32s(*x, inverse), s.splat_f32s(32767.0));
        *bits = s.add_f32s(x, s.splat_f32s(MAGIC));
    }
    for (rounded, bits) in rounded.iter_mut().zip(bits) {
        *rounded = bits.to_bits() as i16;
    }
    // The sum is zero if all elements are finite.
    f32::from_bits(exponent << 23) + s.reduce_sum_f32s(probe)
}
