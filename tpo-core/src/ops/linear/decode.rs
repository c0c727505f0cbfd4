//! Weights of any float dtype as 32-bit units, widened to `f32` in registers.
//!
//! A *block* is two vectors of `f32`. An `f32` weight fills it with two vectors of units; two
//! half-precision elements share a unit, so there one vector of units gives the elements at even
//! places in the first `f32` vector and those at odd places in the second. The other operand is
//! [`arrange`]d in the same order.

use pulp::Simd;

/// Widens one block of `U` unit vectors.
pub(super) trait Decode<const U: usize>: Copy + Send + Sync + 'static {
    /// Rows from which lines are widened once for all rows, rather than for every few of them.
    const WIDEN_ONCE: usize;
    fn block<S: Simd>(s: S, units: [S::u32s; U]) -> [S::f32s; 2];
}

#[derive(Clone, Copy)]
pub(super) struct F32;

impl Decode<2> for F32 {
    const WIDEN_ONCE: usize = usize::MAX;

    #[inline(always)]
    fn block<S: Simd>(s: S, units: [S::u32s; 2]) -> [S::f32s; 2] {
        [
            s.transmute_f32s_u32s(units[0]),
            s.transmute_f32s_u32s(units[1]),
        ]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Bf16;

impl Decode<1> for Bf16 {
    const WIDEN_ONCE: usize = 96;

    #[inline(always)]
    fn block<S: Simd>(s: S, [u]: [S::u32s; 1]) -> [S::f32s; 2] {
        // No closures around vector code: they would not inherit the CPU features.
        let [even, odd] = halves(s, u);
        [s.transmute_f32s_u32s(even), s.transmute_f32s_u32s(odd)]
    }
}

#[derive(Clone, Copy)]
pub(super) struct F16;

impl Decode<1> for F16 {
    const WIDEN_ONCE: usize = 16;

    #[inline(always)]
    fn block<S: Simd>(s: S, [u]: [S::u32s; 1]) -> [S::f32s; 2] {
        let [even, odd] = halves(s, u);
        [widen_f16(s, even), widen_f16(s, odd)]
    }
}

/// An `f16` in the upper half of each lane, as `f32`.
#[inline(always)]
fn widen_f16<S: Simd>(s: S, u: S::u32s) -> S::f32s {
    let sign = s.and_u32s(u, s.splat_u32s(0x8000_0000));
    let magnitude = s.and_u32s(u, s.splat_u32s(0x7fff_ffff));
    let shifted = s.wrapping_dyn_shr_u32s(magnitude, s.splat_u32s(3));
    // 2^112 moves the exponent bias from 15 to 127 and makes subnormals exact.
    let factor = s.splat_f32s(f32::from_bits((127 + 112) << 23));
    let value = s.transmute_u32s_f32s(s.mul_f32s(s.transmute_f32s_u32s(shifted), factor));
    // Infinities and NaNs have all exponent bits set.
    let special = s.greater_than_or_equal_u32s(magnitude, s.splat_u32s(0x7c00_0000));
    let infinite = s.or_u32s(shifted, s.splat_u32s(0x7f80_0000));
    let value = s.select_u32s(special, infinite, value);
    s.transmute_f32s_u32s(s.or_u32s(value, sign))
}

/// The two 16-bit halves of each unit, each in the upper half of a 32-bit lane.
#[inline(always)]
fn halves<S: Simd>(s: S, u: S::u32s) -> [S::u32s; 2] {
    [
        s.wrapping_dyn_shl_u32s(u, s.splat_u32s(16)),
        s.and_u32s(u, s.splat_u32s(0xffff_0000)),
    ]
}

/// Place of element `at` in the block order.
#[inline(always)]
pub(super) fn place(at: usize, lanes: usize, paired: bool) -> usize {
    if !paired {
        return at;
    }
    let (block, within) = (at / (2 * lanes), at % (2 * lanes));
    block * 2 * lanes + within % 2 * lanes + within / 2
}

/// Copies a row to `dst` in block order; what is past the row stays as it is.
#[inline(always)]
pub(super) fn arrange<S: Simd, const U: usize>(_: S, row: &[f32], dst: &mut [f32]) {
    if U == 2 {
        dst[..row.len()].copy_from_slice(row);
        return;
    }
    let lanes = S::F32_LANES;
    let blocks = row.chunks_exact(2 * lanes);
    let tail = blocks.remainder();
    let mut out = dst.chunks_exact_mut(2 * lanes);
    for (block, out) in blocks.zip(&mut out) {
        let (even, odd) = out.split_at_mut(lanes);
        for (pair, (even, odd)) in block
            .as_chunks::<2>()
            .0
            .iter()
            .zip(even.iter_mut().zip(odd))
        {
            [*even, *odd] = *pair;
        }
    }
    if let Some(out) = out.next() {
        for (at, &value) in tail.iter().enumerate() {
            out[at % 2 * lanes + at / 2] = value;
        }
    }
}
