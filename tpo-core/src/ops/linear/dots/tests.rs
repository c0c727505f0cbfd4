use super::super::decode::{Bf16, F16};
use super::*;
use burn::tensor::{bf16, f16};

fn weight<T>(data: &[T], d_in: usize, d_out: usize, per_unit: usize) -> Weight<'_, T> {
    Weight {
        data,
        d_in,
        d_out,
        stride: d_in / per_unit,
        by_output: true,
    }
}

/// One to many rows, whole and broken blocks, tiles and panels; with a bias.
fn check(cpu: impl Cpu) {
    for (d_in, d_out, rows) in [
        (70, 46, 1),
        (64, 64, 3),
        (1030, 13, 2),
        (130, 1026, 7),
        (66, 70, 29),
        // Stretches, and more rows than have sums at a time.
        (4100, 5, 520),
    ] {
        let number = |i: usize| ((i * 7919) % 257) as f32 / 64.0 - 2.0;
        let x: Vec<f32> = (0..rows * d_in).map(number).collect();
        let bias: Vec<f32> = (0..d_out).map(|o| number(o + 5)).collect();
        // These numbers are exact in every dtype.
        let narrow: Vec<bf16> = (0..d_in * d_out)
            .map(|i| bf16::from_f32(number(i + 13)))
            .collect();
        let half: Vec<f16> = narrow.iter().map(|w| f16::from_f32(w.to_f32())).collect();
        let wide: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
        let f32s = weight(bytemuck::cast_slice(&wide), d_in, d_out, 1);
        let bf16s = weight(bytemuck::cast_slice(&narrow), d_in, d_out, 2);
        let f16s = weight(bytemuck::cast_slice(&half), d_in, d_out, 2);
        let (f32s, bf16s) = (Direct::<F32, 2>::new(&f32s), Direct::<Bf16, 1>::new(&bf16s));
        let f16s = Direct::<F16, 1>::new(&f16s);
        let natural = weight(&narrow, d_in, d_out, 1);
        let b = Some(&bias[..]);
        let results = [
            apply(&x, rows, &f32s, b, cpu),
            apply(&x, rows, &Widened(&f32s), b, cpu),
            apply(&x, rows, &Widened(&natural), b, cpu),
            apply(&x, rows, &bf16s, b, cpu),
            apply(&x, rows, &Widened(&bf16s), b, cpu),
            apply(&x, rows, &f16s, b, cpu),
            apply(&x, rows, &Widened(&f16s), b, cpu),
        ];
        // Elements in order, and in that of units.
        for (n, (y, z)) in results[0].iter().zip(&results[3]).enumerate() {
            let (row, o) = (n / d_out, n % d_out);
            let term = |i| f64::from(x[row * d_in + i]) * f64::from(wide[o * d_in + i]);
            let sum = (0..d_in).map(term).sum::<f64>() + f64::from(bias[o]);
            let sizes: f64 = (0..d_in).map(|i| term(i).abs()).sum();
            // What rounding each sum may add up to.
            let limit = f64::from(f32::EPSILON) * d_in as f64 * sizes.max(1.0);
            for y in [*y, *z] {
                assert!((f64::from(y) - sum).abs() < limit, "{y} vs {sum}");
            }
        }
        // A row alone, whose line is taken as a whole.
        let last = (rows - 1) * d_in;
        let alone = apply(&x[last..], 1, &f32s, b, cpu);
        assert!(alone == results[0][(rows - 1) * d_out..]);
        assert!(results[1] == results[0] && results[2] == results[0]);
        assert!(results[4..].iter().all(|result| *result == results[3]));
    }
}

#[test]
fn every_instruction_set() {
    crate::ops::simd::every_instruction_set!(check);
}

#[test]
fn tasks_are_even() {
    let tasks = |threads, rows, d_in, d_out: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let width = pool
            .build()
            .unwrap()
            .install(|| task_width(rows, d_in, d_out));
        let all: Vec<usize> = (0..d_out)
            .step_by(width)
            .map(|first| width.min(d_out - first))
            .collect();
        all
    };
    assert_eq!(tasks(2, 1, 576, 576), [144; 4]);
    assert_eq!(tasks(2, 1, 576, 1536), [384; 4]);
    assert_eq!(tasks(1, 1, 576, 576), [288; 2]);
    assert_eq!(tasks(2, 1, 64, 64), [64]);
    // Large weights go in pieces of a million elements.
    assert_eq!(tasks(2, 1, 4096, 4096), [256; 16]);
    for (threads, d_out) in [(2, 49_152), (3, 49_152), (5, 1000), (7, 32_000)] {
        let all = tasks(threads, 4, 576, d_out);
        let short = all[0] - all[all.len() - 1];
        assert!(short <= 4 * all.len(), "{threads} threads: {all:?}");
    }
}
