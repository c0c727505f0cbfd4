//! Images for a model that reads tiles (LLaVA-OneVision): one in tiles of a canvas, several on squares.

use rayon::prelude::*;
use tpo_core::geometry::Tiling;

use super::whole::{WholeAxis, WholeResampler};
use super::{Finish, ImageTransform, finish_lines};
use crate::transform::Rounding;
use crate::{DataError, Frame};

impl ImageTransform {
    /// The one image of a question in tiles: as a whole, its aspect ratio lost, then the tiles, row-major, of
    /// the canvas that [`Tiling::canvas`] chooses, which is black around the image.
    ///
    /// Returns the values and their shape `[1 + tiles, 3, tile, tile]`.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] for an invalid configuration or an output that is no tile, and those
    /// of [`Tiling::canvas`].
    pub fn tiles(
        &self,
        frame: &Frame,
        tiling: &Tiling,
    ) -> Result<(Vec<f32>, [usize; 4]), DataError> {
        let side = tiling.tile as usize;
        if self.size != Some([side, side]) {
            return Err(DataError::transform(format!(
                "tiles are {side}x{side} pixels, but pictures become {:?} ([height, width]); give the \
                 transform the size of a tile",
                self.size
            )));
        }
        let (height, width) = (frame.height(), frame.width());
        let pixels = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let canvas = tiling.canvas((pixels(width), pixels(height)))?;
        let plan = self.plan(height, width)?;
        let mut values = vec![0.0; canvas.pictures() * 3 * side * side];
        let (whole, tiles) = values.split_at_mut(3 * side * side);
        plan.apply_into(frame, whole)?;

        let [rows, columns] = canvas.picture.map(|n| n as usize);
        let [top, left] = canvas.margin.map(|n| n as usize);
        let mut picture = vec![0.0; 3 * rows * columns];
        self.clone()
            .with_size([rows, columns])
            .plan(height, width)?
            .apply_into(frame, &mut picture)?;
        let across = canvas.grid[1];
        // Line after line of every channel of every tile.
        tiles
            .par_chunks_exact_mut(side)
            .enumerate()
            .for_each(|(line, out)| {
                let (tile, channel, y) = (line / (3 * side), line / side % 3, line % side);
                out.fill(0.0);
                plan.finish.apply(channel, out);
                // Where the line lies on the canvas.
                let (y, x) = (tile / across * side + y, tile % across * side);
                let (from, to) = (x.max(left), (x + side).min(left + columns));
                if (top..top + rows).contains(&y) && from < to {
                    let start = (channel * rows + y - top) * columns;
                    out[from - x..to - x]
                        .copy_from_slice(&picture[start + from - left..start + to - left]);
                }
            });
        Ok((values, [canvas.pictures(), 3, side, side]))
    }

    /// The images of a question that has several, each as one picture: in the middle of a square canvas as
    /// long as its longer side, of the colour of the mean, whole values.
    ///
    /// Returns the values and their shape `[frames, 3, height, width]`. Frames may differ in size.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] for no frames, an invalid configuration, one without a size or with
    /// another rounding than [`Rounding::EachPass`].
    pub fn squares(&self, frames: &[Frame]) -> Result<(Vec<f32>, [usize; 4]), DataError> {
        self.validate()?;
        let (Some([height, width]), Rounding::EachPass) = (self.size, self.rounding) else {
            return Err(DataError::transform(format!(
                "square canvases need a size and rounding after each pass, found size {:?} and {:?}",
                self.size, self.rounding
            )));
        };
        if frames.is_empty() {
            return Err(DataError::transform("no frames to transform"));
        }
        let fill = self.mean.map(|mean| (mean * 255.0) as u8);
        let mut values = vec![0.0; frames.len() * 3 * height * width];
        let places = values.par_chunks_exact_mut(3 * height * width);
        frames.par_iter().zip(places).for_each(|(frame, out)| {
            let side = frame.width().max(frame.height());
            let axis = |length: usize, output: usize| {
                let margin = (side - length) / 2;
                WholeAxis::new(side, margin..margin + length, output)
            };
            let resampler = WholeResampler {
                rows: axis(frame.height(), height),
                columns: axis(frame.width(), width),
                fill,
            };
            finish_lines(&resampler, frame, Finish::new(self), out);
        });
        Ok((values, [frames.len(), 3, height, width]))
    }
}
