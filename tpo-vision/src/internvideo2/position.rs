//! The stored position table: its initial values, and resizing it to other clips.
//!
//! A table is row-major `[1 + steps · grid · grid, dim]`: the class token's row, then the patches
//! with time slowest, then rows.

use crate::error::{Result, VisionError};
use crate::umt::position::{interpolate_linear, resize_bicubic};

/// Base of the wavelengths ("Attention Is All You Need", section 3.5).
const BASE: f64 = 10_000.0;

/// What a table is laid out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableGrid {
    /// Steps in time.
    pub steps: usize,
    /// Patches along one side of the square frame.
    pub side: usize,
}

impl TableGrid {
    /// Rows of the table, the class token's included.
    pub fn rows(&self) -> usize {
        1 + self.steps * self.side * self.side
    }

    /// The grid of a stored table of `rows` rows for `steps` steps. The reference takes the side
    /// as `floor(sqrt((rows − 1) div steps))`.
    ///
    /// # Errors
    /// [`VisionError::PositionTable`] when the rows are not one class token and a square grid per
    /// step, which the reference would cut wrongly.
    pub fn of_table(rows: usize, steps: usize) -> Result<Self> {
        let patches = rows.saturating_sub(1).checked_div(steps).unwrap_or(0);
        let grid = Self {
            steps,
            side: patches.isqrt(),
        };
        if grid.side == 0 || grid.rows() != rows {
            return Err(VisionError::PositionTable {
                rows,
                steps,
                problem: "that is not one class token and a square grid of patches per step",
            });
        }
        Ok(grid)
    }
}

/// Resizes a table as the reference does when it loads a checkpoint: the class row is kept, then
/// time linearly, then space with the bicubic kernel (a = −0.75), both with aligned centres
/// (`align_corners = false`) and without antialiasing.
///
/// # Errors
/// [`VisionError::PositionTable`] when `table` is not `from.rows()` rows of `dim` values.
pub fn interpolate(table: &[f32], dim: usize, from: TableGrid, to: TableGrid) -> Result<Vec<f32>> {
    if dim == 0 || table.len() != from.rows() * dim || from.steps * from.side * to.side == 0 {
        return Err(VisionError::PositionTable {
            rows: table.len() / dim.max(1),
            steps: from.steps,
            problem: "the table does not have the rows of its grid",
        });
    }
    let (class, patches) = table.split_at(dim);
    let mut patches = patches.to_vec();
    if from.steps != to.steps {
        patches = interpolate_linear(&patches, from.steps, to.steps);
    }
    if from.side != to.side {
        patches = patches
            .chunks(from.side * from.side * dim)
            .flat_map(|step| resize_bicubic(step, [from.side; 2], [to.side; 2], dim))
            .collect();
    }
    Ok([class, &patches].concat())
}

/// The initial table, `[rows, dim]`: a quarter of the channels encodes time, the rest space, half
/// of it the column and then half the row. Each part is `[sine | cosine]` with frequencies
/// `10000^(−i / (d / 2))`; the class row is zero.
///
/// `dim` is a multiple of 16, which [`InternVideo2Config::validate`] checks.
///
/// [`InternVideo2Config::validate`]: super::InternVideo2Config::validate
pub fn sincos_3d(grid: TableGrid, dim: usize) -> Vec<f32> {
    let (time, half_space) = (dim / 4, dim / 8 * 3);
    let mut table = vec![0.0; dim];
    table.reserve(dim * (grid.rows() - 1));
    for step in 0..grid.steps {
        for row in 0..grid.side {
            for column in 0..grid.side {
                sincos_1d(step, time, &mut table);
                sincos_1d(column, half_space, &mut table);
                sincos_1d(row, half_space, &mut table);
            }
        }
    }
    table
}

fn sincos_1d(position: usize, dim: usize, out: &mut Vec<f32>) {
    let half = dim / 2;
    let angle = |i: usize| position as f64 / BASE.powf(i as f64 / half as f64);
    out.extend((0..half).map(|i| angle(i).sin() as f32));
    out.extend((0..half).map(|i| angle(i).cos() as f32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_grid_is_the_identity_and_time_comes_before_space() {
        let grid = TableGrid { steps: 2, side: 2 };
        let table: Vec<f32> = (0..9).map(|v| v as f32).collect();
        assert_eq!(interpolate(&table, 1, grid, grid).unwrap(), table);
        // Four steps from two: weights 0, 1/4, 3/4, 1 towards the second.
        let four = TableGrid { steps: 4, side: 2 };
        let out = interpolate(&table, 1, grid, four).unwrap();
        assert_eq!(out[0], 0.0);
        assert_eq!(out[1..5], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(out[5..9], [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(out[13..17], [5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn tables_that_are_no_grid_are_refused() {
        assert_eq!(TableGrid::of_table(1025, 4).unwrap().side, 16);
        for (rows, steps) in [(1026, 4), (1, 4), (0, 0), (1025, 0), (2049, 4)] {
            assert!(TableGrid::of_table(rows, steps).is_err(), "{rows} {steps}");
        }
        let grid = TableGrid { steps: 1, side: 2 };
        assert!(interpolate(&[0.0; 4], 1, grid, grid).is_err());
    }

    #[test]
    fn the_first_patch_has_zero_sines_and_one_cosines() {
        let table = sincos_3d(TableGrid { steps: 1, side: 1 }, 16);
        assert_eq!(table[..16], [0.0; 16]);
        assert_eq!(table[16..20], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(table[20..26], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    }
}
