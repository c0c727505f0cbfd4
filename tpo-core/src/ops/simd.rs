//! Elementary functions on SIMD vectors, for any instruction set `pulp` knows.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512d};

#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;
use pulp::{Arch, Simd, WithSimd, bytemuck};

/// `1.5 · 2²³`: adding and subtracting it rounds a small `f32` to the nearest integer.
const ROUND: f32 = 12_582_912.0;

// In `min` and `max` the constant comes first: x86 returns the second operand if one is NaN, so a
// NaN argument gives a NaN.

/// `2^x` to about 1 ulp. Below −126 the result is zero, above 127.49 it saturates.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let magic = s.splat_f32s(ROUND);
    let clamped = s.min_f32s(s.splat_f32s(127.49), s.max_f32s(s.splat_f32s(-126.0), x));
    let shifted = s.add_f32s(clamped, magic);
    let r = s.sub_f32s(clamped, s.sub_f32s(shifted, magic));
    // Cephes exp2f polynomial of 2^r on [-0.5, 0.5].
    let mut p = s.splat_f32s(1.535_336_2e-4);
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        2.402_264_8e-1,
        6.931_472e-1,
        1.0,
    ] {
        p = s.mul_add_e_f32s(p, r, s.splat_f32s(c));
    }
    // The low bits of `shifted` hold the integer part; move it to the exponent field.
    let exponent = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(shifted), s.splat_u32s(23));
    let scaled = s.transmute_f32s_u32s(s.add_u32s(s.transmute_u32s_f32s(p), exponent));
    let underflow = s.less_than_f32s(x, s.splat_f32s(-126.0));
    s.select_f32s(underflow, s.splat_f32s(0.0), scaled)
}

/// `e^x` to about 1 ulp (argument reduced in two parts).
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let magic = s.splat_f32s(ROUND);
    let clamped = s.min_f32s(s.splat_f32s(88.37), s.max_f32s(s.splat_f32s(-87.336), x));
    let shifted = s.mul_add_e_f32s(clamped, s.splat_f32s(std::f32::consts::LOG2_E), magic);
    let n = s.sub_f32s(shifted, magic);
    // ln 2 in two parts (Cephes expf); the first product is exact.
    let r = s.mul_add_e_f32s(n, s.splat_f32s(-0.693_359_4), clamped);
    let r = s.mul_add_e_f32s(n, s.splat_f32s(2.121_944_4e-4), r);
    // Cephes expf polynomial on [-ln2/2, ln2/2].
    let mut p = s.splat_f32s(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = s.mul_add_e_f32s(p, r, s.splat_f32s(c));
    }
    let p = s.mul_add_e_f32s(s.mul_f32s(r, r), p, s.add_f32s(r, s.splat_f32s(1.0)));
    let exponent = s.wrapping_dyn_shl_u32s(s.transmute_u32s_f32s(shifted), s.splat_u32s(23));
    let scaled = s.transmute_f32s_u32s(s.add_u32s(s.transmute_u32s_f32s(p), exponent));
    let underflow = s.less_than_f32s(x, s.splat_f32s(-87.336));
    s.select_f32s(underflow, s.splat_f32s(0.0), scaled)
}

/// Logistic function `1 / (1 + e^−x)`.
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let one = s.splat_f32s(1.0);
    let e = exp(s, s.sub_f32s(s.splat_f32s(0.0), x));
    s.div_f32s(one, s.add_f32s(one, e))
}

/// Error function to about 1 ulp: an odd polynomial near zero, `1 − e^−P(|x|)` beyond
/// (coefficients: N. Juffa, "fast single-precision erff").
#[inline(always)]
pub(super) fn erf<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let abs = s.abs_f32s(x);
    let t = s.min_f32s(abs, s.splat_f32s(4.0));
    let sq = s.mul_f32s(t, t);
    let far = {
        let r = s.mul_add_e_f32s(
            s.splat_f32s(-1.728_534_7e-5),
            t,
            s.splat_f32s(3.831_971_3e-4),
        );
        let u = s.mul_add_e_f32s(
            s.splat_f32s(-3.883_964_4e-3),
            t,
            s.splat_f32s(2.425_462_2e-2),
        );
        let mut r = s.mul_add_e_f32s(r, sq, u);
        for c in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
            r = s.mul_add_e_f32s(r, t, s.splat_f32s(c));
        }
        let r = s.sub_f32s(s.mul_f32s(r, t), t);
        s.sub_f32s(s.splat_f32s(1.0), exp(s, r))
    };
    let near = {
        let mut r = s.splat_f32s(-5.967_617e-4);
        for c in [
            4.991_194_2e-3,
            -2.676_813_5e-2,
            1.128_199_2e-1,
            -3.761_253_4e-1,
            1.283_791_7e-1,
        ] {
            r = s.mul_add_e_f32s(r, sq, s.splat_f32s(c));
        }
        s.mul_add_e_f32s(r, t, t)
    };
    let magnitude = s.select_f32s(
        s.greater_than_f32s(abs, s.splat_f32s(0.927_734_4)),
        far,
        near,
    );
    let sign = s.and_f32s(x, s.splat_f32s(-0.0));
    s.or_f32s(magnitude, sign)
}

/// The instruction set as one of x86, where it is that one. Decided while compiling.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn known<T: Copy + 'static>(s: impl Simd) -> Option<T> {
    (&s as &dyn std::any::Any).downcast_ref().copied()
}

/// The sums across the lanes of sixteen vectors, each as `reduce_sum_f32s` gives it.
#[inline(always)]
pub(super) fn sums_across<S: Simd>(s: S, vectors: [S::f32s; 16]) -> [f32; 16] {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = known::<V4>(s) {
        return bytemuck::cast(sums_of_sixteen(v4, bytemuck::cast(vectors)));
    }
    let mut sums = [0.0; 16];
    for (sum, vector) in sums.iter_mut().zip(vectors) {
        *sum = s.reduce_sum_f32s(vector);
    }
    sums
}

/// Halves, quarters, pairs and lanes are added, those of several vectors at a time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sums_of_sixteen(v4: V4, vectors: [__m512; 16]) -> __m512 {
    let f = v4.avx512f;
    let mut quarters = [f._mm512_setzero_ps(); 4];
    for (at, sums) in quarters.iter_mut().enumerate() {
        let (a, b) = (vectors[at], vectors[at + 4]);
        let (c, d) = (vectors[at + 8], vectors[at + 12]);
        let ab = f._mm512_add_ps(
            f._mm512_shuffle_f32x4::<0x44>(a, b),
            f._mm512_shuffle_f32x4::<0xee>(a, b),
        );
        let cd = f._mm512_add_ps(
            f._mm512_shuffle_f32x4::<0x44>(c, d),
            f._mm512_shuffle_f32x4::<0xee>(c, d),
        );
        *sums = f._mm512_add_ps(
            f._mm512_shuffle_f32x4::<0x88>(ab, cd),
            f._mm512_shuffle_f32x4::<0xdd>(ab, cd),
        );
    }
    let mut pairs = [f._mm512_setzero_ps(); 2];
    for (sums, quarters) in pairs.iter_mut().zip(quarters.as_chunks::<2>().0) {
        let [a, b]: [__m512d; 2] = bytemuck::cast(*quarters);
        let low = f._mm512_unpacklo_pd(a, b);
        let high = f._mm512_unpackhi_pd(a, b);
        *sums = f._mm512_add_ps(bytemuck::cast(low), bytemuck::cast(high));
    }
    let [a, b] = pairs;
    f._mm512_add_ps(
        f._mm512_shuffle_ps::<0x88>(a, b),
        f._mm512_shuffle_ps::<0xdd>(a, b),
    )
}

/// Runs vector code on one instruction set.
pub(super) trait Cpu: Copy + Send + Sync {
    fn run<W: WithSimd>(self, work: W) -> W::Output;

    /// Number of `f32` lanes of a vector and of vector registers.
    fn vector_shape(self) -> (usize, usize) {
        self.run(VectorShape)
    }
}

/// The best instruction set of this machine, found at run time.
impl Cpu for Arch {
    #[inline(always)]
    fn run<W: WithSimd>(self, work: W) -> W::Output {
        self.dispatch(work)
    }
}

struct VectorShape;

impl WithSimd for VectorShape {
    type Output = (usize, usize);
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        (S::F32_LANES, S::REGISTER_COUNT)
    }
}

/// A fixed instruction set, to test those this machine would not choose.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct Fixed<S>(pub(super) S);

#[cfg(test)]
impl<S: Simd> Cpu for Fixed<S> {
    fn run<W: WithSimd>(self, work: W) -> W::Output {
        self.0.vectorize(work)
    }
}

/// Calls a function of an `impl Cpu` with every instruction set that this machine has.
#[cfg(test)]
macro_rules! every_instruction_set {
    ($check:path) => {
        $check(pulp::Arch::new());
        $check($crate::ops::simd::Fixed(pulp::Scalar::new()));
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            $check($crate::ops::simd::Fixed(v3));
        }
    };
}

#[cfg(test)]
pub(super) use every_instruction_set;

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums of a set of vectors, all at once and one by one.
    struct Both;

    impl WithSimd for Both {
        type Output = [[f32; 16]; 2];

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) -> Self::Output {
            let mut vectors = [s.splat_f32s(0.0); 16];
            let numbers: [[f32; 16]; 16] = std::array::from_fn(|row| {
                // Sizes at which another order of the sums gives other bits.
                std::array::from_fn(|at| {
                    ((row * 16 + at) as f32 * 0.7).sin() * 10f32.powi(at as i32 % 5)
                })
            });
            let mut alone = [0.0; 16];
            for n in 0..16 {
                vectors[n] = S::as_simd_f32s(&numbers[n]).0[0];
                alone[n] = s.reduce_sum_f32s(vectors[n]);
            }
            [sums_across(s, vectors), alone]
        }
    }

    #[test]
    fn sums_of_sixteen_are_those_of_each() {
        fn check(cpu: impl Cpu) {
            let [together, alone] = cpu.run(Both);
            assert_eq!(together.map(f32::to_bits), alone.map(f32::to_bits));
        }
        every_instruction_set!(check);
    }
}
