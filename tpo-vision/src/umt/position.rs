//! Constant sine position tables of the video encoder.
//!
//! The tables are not parameters. Angles are taken in f64 and the table is rounded to f32 before
//! any interpolation, as in the reference implementation.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::{NATIVE_GRID, NATIVE_IMG_SIZE};

/// Base of the geometric progression of wavelengths ("Attention Is All You Need", section 3.5).
const BASE: f64 = 10_000.0;
/// Cubic convolution coefficient of PyTorch's bicubic interpolation.
const BICUBIC_A: f64 = -0.75;
/// Tables kept per encoder. A run uses one clip size, sometimes an image size beside it.
const KEPT_TABLES: usize = 4;

/// What a table depends on besides the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipGrid {
    /// Steps in time (frames / tubelet). One step means an image.
    pub steps: usize,
    /// Patches per column.
    pub rows: usize,
    /// Patches per row.
    pub columns: usize,
    /// Whether the frames are 224x224 pixels, for which the reference builds the table on the
    /// clip's own grid. For other sizes it resizes the table of a 14x14 grid.
    pub native: bool,
}

impl ClipGrid {
    /// The grid of a clip of whole patches and tubelets.
    pub fn new(frames: usize, height: usize, width: usize, tubelet: usize, patch: usize) -> Self {
        Self {
            steps: frames / tubelet,
            rows: height / patch,
            columns: width / patch,
            native: height == NATIVE_IMG_SIZE && width == NATIVE_IMG_SIZE,
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.steps * self.rows * self.columns
    }
}

/// The sine table: row `p`, column `j` holds the sine (even `j`) or cosine (odd `j`) of
/// `p / 10000^(2·⌊j/2⌋/dim)`. Row-major `[positions, dim]`.
pub fn sine_table(positions: usize, dim: usize) -> Vec<f32> {
    sines((0..positions).map(|p| p as f64), dim)
}

/// Sines and cosines of every position, alternating, with wavelengths in pairs from 2π on.
pub(crate) fn sines(positions: impl IntoIterator<Item = f64>, dim: usize) -> Vec<f32> {
    let wavelengths: Vec<f64> = (0..dim)
        .map(|j| BASE.powf(2.0 * (j / 2) as f64 / dim as f64))
        .collect();
    let row = |position: f64| {
        wavelengths.iter().enumerate().map(move |(j, wavelength)| {
            let angle = position / wavelength;
            let value = if j.is_multiple_of(2) {
                angle.sin()
            } else {
                angle.cos()
            };
            value as f32
        })
    };
    positions.into_iter().flat_map(row).collect()
}

/// The table of a clip, `[tokens, dim]` row-major with time slowest, then patch rows.
///
/// `pretrained_steps` is the number of steps of the pretrained table (4 in the reference), from
/// which other numbers of steps are interpolated linearly. An image has its own table, which is
/// not interpolated in time. Grids that are not square are an extension: the reference builds
/// square ones only.
pub fn clip_table(grid: ClipGrid, dim: usize, pretrained_steps: usize) -> Vec<f32> {
    let steps = if grid.steps == 1 { 1 } else { pretrained_steps };
    let to = [grid.rows, grid.columns];
    let from = if grid.native {
        to
    } else {
        [NATIVE_GRID, NATIVE_GRID]
    };
    let mut table = sine_table(steps * from[0] * from[1], dim);
    if from != to {
        table = table
            .chunks(from[0] * from[1] * dim)
            .flat_map(|frame| resize_bicubic(frame, from, to, dim))
            .collect();
    }
    if steps != grid.steps {
        table = interpolate_linear(&table, steps, grid.steps);
    }
    table
}

/// A table that distinguishes time, row and column, `[tokens, dim]` row-major with time slowest.
///
/// A quarter of the columns is for time, the rest in equal parts for rows and columns of the grid.
/// Along each axis they hold sine and cosine of the position as a share of the axis, from half a
/// period per axis to half a period per step, in geometric progression. Our own, for models trained
/// from scratch on small grids; the reference's table counts all tokens in one line.
pub fn axes_table(grid: ClipGrid, dim: usize) -> Vec<f32> {
    let time = dim / 8 * 2;
    let rows = (dim - time) / 4 * 2;
    let axis = |length: usize, width: usize| -> Vec<Vec<f64>> {
        let pairs = width.div_ceil(2);
        let top = (length as f64).log2();
        let wave = |at: usize, j: usize| {
            let octave = top * (j / 2) as f64 / (pairs.max(2) - 1) as f64;
            let share = (at as f64 + 0.5) / length as f64;
            let angle = std::f64::consts::PI * share * octave.exp2();
            if j.is_multiple_of(2) {
                angle.sin()
            } else {
                angle.cos()
            }
        };
        (0..length)
            .map(|at| (0..width).map(|j| wave(at, j)).collect())
            .collect()
    };
    let (t, y, x) = (
        axis(grid.steps, time),
        axis(grid.rows, rows),
        axis(grid.columns, dim - time - rows),
    );
    let mut table = Vec::with_capacity(grid.tokens() * dim);
    for t in &t {
        for y in &y {
            for x in &x {
                table.extend(t.iter().chain(y).chain(x).map(|v| *v as f32));
            }
        }
    }
    table
}

/// Bicubic resize of `[height, width, dim]` without antialiasing, pixel centres aligned
/// (`align_corners = false`), edges repeated.
pub(crate) fn resize_bicubic(
    image: &[f32],
    from: [usize; 2],
    to: [usize; 2],
    dim: usize,
) -> Vec<f32> {
    let taps_y = cubic_taps(from[0], to[0]);
    let taps_x = cubic_taps(from[1], to[1]);
    let mut out = Vec::with_capacity(to[0] * to[1] * dim);
    let mut pixel = vec![0.0f64; dim];
    for ty in &taps_y {
        for tx in &taps_x {
            pixel.fill(0.0);
            for (y, wy) in ty {
                for (x, wx) in tx {
                    let start = (y * from[1] + x) * dim;
                    for (sum, value) in pixel.iter_mut().zip(&image[start..start + dim]) {
                        *sum += wy * wx * f64::from(*value);
                    }
                }
            }
            out.extend(pixel.iter().map(|v| *v as f32));
        }
    }
    out
}

/// The four source indices and weights of every target index.
pub(crate) fn cubic_taps(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let near = |t: f64| ((BICUBIC_A + 2.0) * t - (BICUBIC_A + 3.0)) * t * t + 1.0;
    let far =
        |t: f64| ((BICUBIC_A * t - 5.0 * BICUBIC_A) * t + 8.0 * BICUBIC_A) * t - 4.0 * BICUBIC_A;
    let last = from as i64 - 1;
    (0..to)
        .map(|i| {
            let source = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
            let floor = source.floor();
            let t = source - floor;
            let at = |offset: i64| (floor as i64 + offset).clamp(0, last) as usize;
            [
                (at(-1), far(t + 1.0)),
                (at(0), near(t)),
                (at(1), near(1.0 - t)),
                (at(2), far(2.0 - t)),
            ]
        })
        .collect()
}

/// Linear interpolation of `from` equal blocks to `to` blocks, centres aligned
/// (`align_corners = false`), ends repeated.
pub(crate) fn interpolate_linear(table: &[f32], from: usize, to: usize) -> Vec<f32> {
    let block = table.len() / from;
    let mut out = Vec::with_capacity(block * to);
    for i in 0..to {
        let source = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let low = (source as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let t = source - low as f64;
        let (a, b) = (&table[low * block..], &table[high * block..]);
        out.extend(
            a[..block]
                .iter()
                .zip(&b[..block])
                .map(|(a, b)| (f64::from(*a) * (1.0 - t) + f64::from(*b) * t) as f32),
        );
    }
    out
}

/// Tables of one encoder on the devices and in the dtypes it has been used with.
///
/// A memo of a pure function, shared by clones of the module and looked up by the device of the
/// input, so it follows moves of the module and is no state: a table is computed on first use
/// (tens of milliseconds for UMT-L's 3136x1024) and the last few are kept. Tables are stored without
/// autodiff and enter a training graph as constants.
#[derive(Debug, Clone, Default)]
pub(crate) struct PositionTables {
    tables: Arc<Mutex<Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    grid: ClipGrid,
    device: Device,
    dtype: DType,
    table: Tensor<3>,
}

impl PositionTables {
    /// The table `[1, tokens, dim]` on `device` in `dtype`.
    pub(crate) fn get(
        &self,
        grid: ClipGrid,
        dim: usize,
        device: &Device,
        dtype: DType,
        values: impl FnOnce() -> Vec<f32>,
    ) -> Tensor<3> {
        let device = device.clone().inner();
        // A poisoned lock only says that another thread panicked; entries are pushed whole.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = tables
            .iter()
            .find(|e| e.grid == grid && e.dtype == dtype && e.device == device)
        {
            return entry.table.clone();
        }
        let data = TensorData::new(values(), [1, grid.tokens(), dim]).convert_dtype(dtype);
        let table = Tensor::<3>::from_data(data, (&device, dtype));
        if tables.len() == KEPT_TABLES {
            tables.remove(0);
        }
        tables.push(Entry {
            grid,
            device,
            dtype,
            table: table.clone(),
        });
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_told_apart_on_every_grid() {
        let grid = ClipGrid::new(8, 32, 48, 2, 8);
        let dim = 32;
        let table = axes_table(grid, dim);
        assert_eq!(table.len(), 4 * 4 * 6 * dim);
        let row = |t: usize, y: usize, x: usize| {
            let at = ((t * 4 + y) * 6 + x) * dim;
            &table[at..at + dim]
        };
        // Time moves the first quarter alone, rows the next columns, columns the last.
        assert_eq!(row(0, 1, 2)[8..], row(3, 1, 2)[8..]);
        assert_eq!(row(1, 0, 2)[..8], row(1, 3, 2)[..8]);
        assert_eq!(row(1, 0, 2)[20..], row(1, 3, 2)[20..]);
        assert_eq!(row(1, 2, 0)[..20], row(1, 2, 5)[..20]);
        // The slowest wave: half a period per axis, at (0.5 + 1) / 4 of the clip.
        let expected = (std::f64::consts::PI * 1.5 / 4.0).sin() as f32;
        assert_eq!(row(1, 0, 0)[0], expected);
        for a in 0..grid.tokens() {
            for b in 0..a {
                let (a, b) = (&table[a * dim..][..dim], &table[b * dim..][..dim]);
                let apart: f32 = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum();
                assert!(apart > 0.1, "{apart}");
            }
        }
        // An image has one step.
        let image = axes_table(ClipGrid::new(1, 8, 8, 1, 8), dim);
        assert!(image.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn first_row_alternates_zero_and_one() {
        assert_eq!(sine_table(1, 4), vec![0.0, 1.0, 0.0, 1.0]);
        let table = sine_table(3, 4);
        // Row 2, second pair: 2 / 10000^(2/4) = 0.02.
        assert_eq!(table[10], 0.02f64.sin() as f32);
        assert_eq!(table[11], 0.02f64.cos() as f32);
    }

    #[test]
    fn linear_interpolation_repeats_the_ends() {
        // Two blocks to four: centres at -0.25, 0.25, 0.75, 1.25 of the source.
        let out = interpolate_linear(&[0.0, 10.0, 4.0, 20.0], 2, 4);
        assert_eq!(out, vec![0.0, 10.0, 1.0, 12.5, 3.0, 17.5, 4.0, 20.0]);
        // Fewer blocks: four to two reads the middle of each pair.
        assert_eq!(
            interpolate_linear(&[0.0, 1.0, 2.0, 3.0], 4, 2),
            vec![0.5, 2.5]
        );
    }

    #[test]
    fn cubic_weights_sum_to_one_and_halving_is_symmetric() {
        for (from, to) in [(14, 4), (14, 16), (4, 14), (1, 3)] {
            for taps in cubic_taps(from, to) {
                let sum: f64 = taps.iter().map(|(_, w)| w).sum();
                assert!((sum - 1.0).abs() < 1e-12);
            }
        }
        // Half-way between two samples: (-3, 19, 19, -3) / 32 for a = -0.75.
        let weights = cubic_taps(4, 2)[0].map(|(_, w)| w);
        for (w, expected) in weights.iter().zip([-3.0, 19.0, 19.0, -3.0]) {
            assert!((w - expected / 32.0).abs() < 1e-12, "{weights:?}");
        }
    }

    #[test]
    fn clips_longer_than_the_pretrained_table_are_interpolated() {
        let image = ClipGrid::new(1, 224, 224, 1, 16);
        let clip = ClipGrid::new(4, 224, 224, 1, 16);
        let image = clip_table(image, 8, 4);
        let clip = clip_table(clip, 8, 4);
        assert_eq!(image[..], clip[..196 * 8]);
        // Frame 0 of eight lies before the first source frame and repeats it; frame 1 lies a
        // quarter of the way to the second.
        let eight = clip_table(ClipGrid::new(8, 224, 224, 1, 16), 8, 4);
        assert_eq!(eight[..196 * 8], clip[..196 * 8]);
        assert_ne!(eight[196 * 8..392 * 8], clip[..196 * 8]);
    }

    #[test]
    fn tables_are_memoised_per_grid_and_dtype() {
        let tables = PositionTables::default();
        let device = Device::flex();
        for frames in 1..=6 {
            let grid = ClipGrid::new(frames, 32, 48, 1, 16);
            let a = tables.get(grid, 8, &device, DType::F32, || clip_table(grid, 8, 4));
            let b = tables
                .clone()
                .get(grid, 8, &device.clone().autodiff(), DType::F32, || {
                    unreachable!("the table is kept")
                });
            assert_eq!(a.dims(), [1, frames * 6, 8]);
            assert!(!b.is_autodiff());
            a.into_data().assert_eq(&b.into_data(), true);
        }
        assert_eq!(tables.tables.lock().unwrap().len(), KEPT_TABLES);
        let grid = ClipGrid::new(2, 32, 48, 1, 16);
        let half = tables.get(grid, 8, &device, DType::F16, || clip_table(grid, 8, 4));
        assert_eq!(half.dtype(), DType::F16);
    }
}
