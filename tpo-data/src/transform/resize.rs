//! Separable bicubic resampling of interleaved 8-bit RGB to planar float32, equal to
//! PyTorch's `interpolate(mode = "bicubic", align_corners = False)` with and without
//! antialiasing.
//!
//! The vertical pass runs first: it is a weighted sum of whole rows and so vectorises
//! perfectly, and it shrinks the data for the horizontal pass. Sums are kept in float32 and
//! rounded by the caller at the very end, as PyTorch does. No fused multiply-add is used and
//! the order of additions is fixed, so every machine gives the same bits.

use rayon::prelude::*;

/// Lanes of the horizontal dot product; weights are padded to a multiple of it.
const LANES: usize = 8;
/// Output rows one task computes.
const BAND: usize = 16;

/// Source positions and weights of every output position along one axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    input: usize,
    output: usize,
    /// Weights per output position, a multiple of [`LANES`]; unused ones are 0.
    stride: usize,
    /// First source position of each output position.
    start: Vec<usize>,
    /// Number of weights that count for each output position.
    taps: Vec<usize>,
    /// `[output, stride]`.
    weights: Vec<f32>,
}

impl Axis {
    /// Weights that map `input` samples to `output` samples (both > 0).
    pub(super) fn new(input: usize, output: usize, antialias: bool) -> Self {
        let scale = input as f64 / output as f64;
        let rows: Vec<(usize, Vec<f64>)> = (0..output)
            .map(|i| {
                if input == output {
                    (i, vec![1.0])
                } else if antialias {
                    antialiased(i, scale, input)
                } else {
                    four_taps(i, scale, input)
                }
            })
            .collect();
        let longest = rows.iter().map(|(_, w)| w.len()).max().unwrap_or(1);
        let stride = longest.next_multiple_of(LANES);
        let mut weights = vec![0.0; output * stride];
        for (slot, (_, w)) in weights.chunks_exact_mut(stride).zip(&rows) {
            for (dst, src) in slot.iter_mut().zip(w) {
                *dst = *src as f32;
            }
        }
        Self {
            input,
            output,
            stride,
            start: rows.iter().map(|r| r.0).collect(),
            taps: rows.iter().map(|r| r.1.len()).collect(),
            weights,
        }
    }
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Pillow's kernel: a = -0.5, support stretched by the scale when shrinking, normalised.
pub(super) fn antialiased(i: usize, scale: f64, input: usize) -> (usize, Vec<f64>) {
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let centre = scale * (i as f64 + 0.5);
    // `as usize` truncates and saturates at 0.
    let start = (centre - support + 0.5) as usize;
    let end = ((centre + support + 0.5) as usize).clamp(start + 1, input);
    let mut weights: Vec<f64> = (start..end)
        .map(|j| cubic((j as f64 - centre + 0.5) / stretch, -0.5))
        .collect();
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    (start, weights)
}

/// PyTorch's kernel: a = -0.75, 4 taps whatever the scale, the border repeated.
fn four_taps(i: usize, scale: f64, input: usize) -> (usize, Vec<f64>) {
    let centre = scale * (i as f64 + 0.5) - 0.5;
    let floor = centre.floor();
    let t = centre - floor;
    let clamp = |k: i64| (floor as i64 + k).clamp(0, input as i64 - 1) as usize;
    let start = clamp(-1);
    let mut weights = vec![0.0; clamp(2) - start + 1];
    for k in -1..=2 {
        weights[clamp(k) - start] += cubic(k as f64 - t, -0.75);
    }
    (start, weights)
}

/// Both axes of a resize.
#[derive(Debug, Clone)]
pub(super) struct Resampler {
    pub(super) rows: Axis,
    pub(super) columns: Axis,
}

impl Resampler {
    /// Resizes `rgb` `[in_h, in_w, 3]` into `out` `[3, out_h, out_w]`; `finish(channel, row)`
    /// is applied to every finished row of a channel.
    pub(super) fn run(
        &self,
        rgb: &[u8],
        out: &mut [f32],
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (out_h, out_w) = (self.rows.output, self.columns.output);
        debug_assert_eq!(rgb.len(), self.rows.input * self.columns.input * 3);
        debug_assert_eq!(out.len(), 3 * out_h * out_w);
        let arch = pulp::Arch::new();
        let (red, rest) = out.split_at_mut(out_h * out_w);
        let (green, blue) = rest.split_at_mut(out_h * out_w);
        red.par_chunks_mut(BAND * out_w)
            .zip(green.par_chunks_mut(BAND * out_w))
            .zip(blue.par_chunks_mut(BAND * out_w))
            .enumerate()
            .for_each(|(band, ((red, green), blue))| {
                let mut scratch = Scratch::new(&self.columns);
                // pulp picks the widest instruction set at run time and compiles the closure
                // for it; everything below is inlined into it.
                arch.dispatch(|| {
                    let rows = red
                        .chunks_exact_mut(out_w)
                        .zip(green.chunks_exact_mut(out_w))
                        .zip(blue.chunks_exact_mut(out_w));
                    for (i, ((red, green), blue)) in rows.enumerate() {
                        vertical(&self.rows, band * BAND + i, rgb, &mut scratch.row);
                        scratch.deinterleave();
                        for (channel, row) in [red, green, blue].into_iter().enumerate() {
                            horizontal(&self.columns, &scratch.planes[channel], row);
                            finish(channel, row);
                        }
                    }
                });
            });
    }
}

/// Buffers of one task.
struct Scratch {
    /// One vertically resampled row, `[in_w, 3]`.
    row: Vec<f32>,
    /// The same row per channel, followed by zeros for the padded weights.
    planes: [Vec<f32>; 3],
}

impl Scratch {
    fn new(columns: &Axis) -> Self {
        let plane = vec![0.0; columns.input + columns.stride];
        Self {
            row: vec![0.0; columns.input * 3],
            planes: [plane.clone(), plane.clone(), plane],
        }
    }

    #[inline(always)]
    fn deinterleave(&mut self) {
        let [red, green, blue] = &mut self.planes;
        let planes = red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut());
        for (pixel, ((r, g), b)) in self.row.chunks_exact(3).zip(planes) {
            *r = pixel[0];
            *g = pixel[1];
            *b = pixel[2];
        }
    }
}

/// Weighted sum of source rows for output row `y`, into `row` `[in_w, 3]`.
#[inline(always)]
fn vertical(axis: &Axis, y: usize, rgb: &[u8], row: &mut [f32]) {
    let (start, taps) = (axis.start[y], axis.taps[y]);
    let weights = &axis.weights[y * axis.stride..][..taps];
    let len = row.len();
    let source = |k: usize| &rgb[(start + k) * len..(start + k + 1) * len];
    row.fill(0.0);
    let mut k = 0;
    // Four rows at a time: the sum stays in registers between them.
    while k + 4 <= taps {
        let w: [f32; 4] = [weights[k], weights[k + 1], weights[k + 2], weights[k + 3]];
        let (a, b, c, d) = (source(k), source(k + 1), source(k + 2), source(k + 3));
        for i in 0..len {
            let mut v = row[i];
            v += w[0] * f32::from(a[i]);
            v += w[1] * f32::from(b[i]);
            v += w[2] * f32::from(c[i]);
            v += w[3] * f32::from(d[i]);
            row[i] = v;
        }
        k += 4;
    }
    for (j, &w) in weights.iter().enumerate().skip(k) {
        for (v, &s) in row.iter_mut().zip(source(j)) {
            *v += w * f32::from(s);
        }
    }
}

/// Dot products of `plane` (padded) with the weights of every output column.
#[inline(always)]
fn horizontal(axis: &Axis, plane: &[f32], out: &mut [f32]) {
    let weights = axis.weights.chunks_exact(axis.stride);
    for ((v, &start), weights) in out.iter_mut().zip(&axis.start).zip(weights) {
        let source = &plane[start..start + axis.stride];
        let mut acc = [0.0f32; LANES];
        for (s, w) in source.chunks_exact(LANES).zip(weights.chunks_exact(LANES)) {
            for l in 0..LANES {
                acc[l] += s[l] * w[l];
            }
        }
        let half = [
            acc[0] + acc[4],
            acc[1] + acc[5],
            acc[2] + acc[6],
            acc[3] + acc[7],
        ];
        *v = (half[0] + half[2]) + (half[1] + half[3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_stay_inside() {
        for (input, output) in [
            (1, 1),
            (1, 7),
            (7, 1),
            (45, 224),
            (720, 224),
            (480, 224),
            (2, 3),
        ] {
            for antialias in [false, true] {
                let axis = Axis::new(input, output, antialias);
                for i in 0..output {
                    let w = &axis.weights[i * axis.stride..][..axis.stride];
                    let sum: f32 = w.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{input}->{output} row {i}: {sum}");
                    assert!(axis.start[i] + axis.taps[i] <= input);
                }
            }
        }
    }

    #[test]
    fn constant_image_stays_constant() {
        let resampler = Resampler {
            rows: Axis::new(37, 16, true),
            columns: Axis::new(53, 90, true),
        };
        let rgb: Vec<u8> = (0..37 * 53).flat_map(|_| [10, 100, 200]).collect();
        let mut out = vec![0.0; 3 * 16 * 90];
        resampler.run(&rgb, &mut out, |_, _| {});
        for (plane, expected) in out.chunks_exact(16 * 90).zip([10.0, 100.0, 200.0]) {
            assert!(plane.iter().all(|v| (v - expected).abs() < 1e-3));
        }
    }
}
