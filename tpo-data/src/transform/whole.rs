//! Bicubic resampling in whole numbers, equal to PyTorch's of `uint8` tensors with antialiasing: weights of
//! 16 bits, the horizontal pass first, its result rounded to 8 bits, then the vertical pass.
//!
//! No dependency does this: `image::imageops::resize` and [`super::resize`] add up in float, the
//! vertical pass first, and round once. A line of the picture is resampled and added to the output lines that
//! it reaches, so what is held is the output, however large the picture. The canvas around a
//! picture is never made: it is a constant in every sum.

use std::ops::Range;

use rayon::prelude::*;

use super::resize::antialiased;

/// Lanes of the horizontal sum; weights are padded to a multiple of it.
const LANES: usize = 16;
/// Output lines one task computes.
const BAND: usize = 32;
/// Most bits after the point of a weight (PyTorch).
const MOST_BITS: u32 = 22;

/// Weights of every output position along one axis of a canvas, part of which is the picture.
#[derive(Debug, Clone)]
pub(super) struct WholeAxis {
    /// Bits after the point.
    bits: u32,
    /// Length of the picture.
    picture: usize,
    /// Pixels of the picture that each output position reads.
    reach: Vec<Range<usize>>,
    /// Weights per output position, a multiple of [`LANES`]; unused ones are 0.
    stride: usize,
    /// `[output, stride]`, for pixels of the picture.
    weights: Vec<i16>,
    /// Sum of all weights of each output position, and of those beside the picture.
    sums: Vec<(i32, i32)>,
}

impl WholeAxis {
    /// From a canvas of `input` pixels, of which those in `picture` are the picture's, to `output` (all
    /// lengths > 0).
    pub(super) fn new(input: usize, picture: Range<usize>, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let exact = |i| antialiased(i, scale, input);
        let largest = (0..output)
            .flat_map(|i| exact(i).1)
            .fold(0.0, |most: f64, w| most.max(w));
        // The first number of bits after which one more would not fit into 16.
        let fits = |bits: u32| 0.5 + largest * f64::from(1u32 << (bits + 1)) < 32_768.0;
        let bits = (0..MOST_BITS).find(|b| !fits(*b)).unwrap_or(MOST_BITS);
        let one = f64::from(1u32 << bits);
        let sum = |weights: &[i16]| weights.iter().map(|w| i32::from(*w)).sum::<i32>();
        let (mut reach, mut inside, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..output {
            let (start, weights) = exact(i);
            // Half away from zero.
            let weights = weights
                .iter()
                .map(|w| (w * one + 0.5f64.copysign(*w)) as i16);
            let weights: Vec<i16> = weights.collect();
            let first = start.clamp(picture.start, picture.end);
            let end = (start + weights.len()).clamp(first, picture.end);
            let read = if first < end {
                weights[first - start..end - start].to_vec()
            } else {
                Vec::new()
            };
            let all = sum(&weights);
            sums.push((all, all - sum(&read)));
            reach.push(first - picture.start..end - picture.start);
            inside.push(read);
        }
        let longest = inside.iter().map(Vec::len).max().unwrap_or(0);
        let stride = longest.max(1).next_multiple_of(LANES);
        let mut weights = vec![0; output * stride];
        for (slot, read) in weights.chunks_exact_mut(stride).zip(&inside) {
            slot[..read.len()].copy_from_slice(read);
        }
        Self {
            bits,
            picture: picture.len(),
            reach,
            stride,
            weights,
            sums,
        }
    }

    /// Number of output positions.
    pub(super) fn output(&self) -> usize {
        self.reach.len()
    }

    /// The output of pixels whose weighted sum is `sum`.
    #[inline(always)]
    fn rounded(&self, sum: i32) -> u8 {
        ((sum + (1 << self.bits >> 1)) >> self.bits).clamp(0, 255) as u8
    }

    /// Along one line of a channel of the picture, with [`WholeAxis::stride`] more elements; beside the
    /// picture everything is `fill`.
    #[inline(always)]
    fn apply(&self, line: &[i16], fill: u8, out: &mut [u8]) {
        let weights = self.weights.chunks_exact(self.stride);
        let positions = self.reach.iter().zip(&self.sums).zip(weights);
        for (value, ((reach, (_, beside)), weights)) in out.iter_mut().zip(positions) {
            let source = &line[reach.start..][..self.stride];
            let mut lanes = [0i32; LANES];
            for (s, w) in source.chunks_exact(LANES).zip(weights.chunks_exact(LANES)) {
                for l in 0..LANES {
                    lanes[l] += i32::from(s[l]) * i32::from(w[l]);
                }
            }
            *value = self.rounded(lanes.iter().sum::<i32>() + beside * i32::from(fill));
        }
    }
}

/// Both axes of a resize.
#[derive(Debug, Clone)]
pub(super) struct WholeResampler {
    pub(super) rows: WholeAxis,
    pub(super) columns: WholeAxis,
    /// Colour of the canvas beside the picture.
    pub(super) fill: [u8; 3],
}

impl WholeResampler {
    /// Resizes `rgb` `[height, width, 3]`, the picture, into `out` `[out_h, 3, out_w]`.
    pub(super) fn run(&self, rgb: &[u8], out: &mut [u8]) {
        let line = 3 * self.columns.output();
        debug_assert_eq!(rgb.len(), self.rows.picture * self.columns.picture * 3);
        debug_assert_eq!(out.len(), self.rows.output() * line);
        let arch = pulp::Arch::new();
        out.par_chunks_mut(BAND * line)
            .enumerate()
            .for_each(|(band, out)| arch.dispatch(|| self.band(band * BAND, rgb, out)));
    }

    /// Output lines from `first` on.
    #[inline(always)]
    fn band(&self, first: usize, rgb: &[u8], out: &mut [u8]) {
        let (rows, columns) = (&self.rows, &self.columns);
        let (width, out_w) = (columns.picture, columns.output());
        let line = 3 * out_w;
        let last = first + out.len() / line;
        let reach = &rows.reach[first..last];
        // A line of the canvas above or below the picture.
        let mut row = Vec::with_capacity(line);
        for fill in self.fill {
            let of = |(all, _): &(i32, i32)| columns.rounded(all * i32::from(fill));
            row.extend(columns.sums.iter().map(of));
        }
        let mut sums = vec![0i32; out.len()];
        for (sums, (_, beside)) in sums.chunks_exact_mut(line).zip(&rows.sums[first..last]) {
            for (sum, value) in sums.iter_mut().zip(&row) {
                *sum = beside * i32::from(*value);
            }
        }
        let mut planes = [(); 3].map(|()| vec![0i16; width + columns.stride]);
        let read = reach.iter().filter(|r| !r.is_empty());
        let from = read.clone().map(|r| r.start).min().unwrap_or(0);
        let to = read.map(|r| r.end).max().unwrap_or(0);
        for y in from..to {
            deinterleave(&rgb[y * width * 3..][..width * 3], &mut planes);
            let channels = planes.iter().zip(self.fill);
            for ((plane, fill), row) in channels.zip(row.chunks_exact_mut(out_w)) {
                columns.apply(plane, fill, row);
            }
            for (i, sums) in sums.chunks_exact_mut(line).enumerate() {
                if reach[i].contains(&y) {
                    let weight = rows.weights[(first + i) * rows.stride + y - reach[i].start];
                    for (sum, value) in sums.iter_mut().zip(&row) {
                        *sum += i32::from(weight) * i32::from(*value);
                    }
                }
            }
        }
        for (value, sum) in out.iter_mut().zip(sums) {
            *value = rows.rounded(sum);
        }
    }
}

#[inline(always)]
fn deinterleave(rgb: &[u8], [red, green, blue]: &mut [Vec<i16>; 3]) {
    let planes = red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut());
    for (pixel, ((r, g), b)) in rgb.chunks_exact(3).zip(planes) {
        *r = i16::from(pixel[0]);
        *g = i16::from(pixel[1]);
        *b = i16::from(pixel[2]);
    }
}
