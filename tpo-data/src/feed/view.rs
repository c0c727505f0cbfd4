//! The view of a clip: which part of the time, which part of the picture, mirrored or not.
//! Pictures, boxes, masks and times are transformed by the same view, so they stay consistent.

use tpo_core::geometry::{BoxXyxy, Mask, Rle};

use crate::{ClipRange, DataError, Frame, VideoInfo};

/// The part of a clip that is used, and its changes. The default is all of it, unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct View {
    /// Part of the time in seconds of the file.
    pub range: Option<ClipRange>,
    /// Part of the picture `[x0, y0, x1, y1]` in pixels of the file, with the size
    /// `[width, height]` it was chosen for.
    pub crop: Option<([u32; 4], [u32; 2])>,
    /// Mirror left and right, after the crop.
    pub flip: bool,
}

impl View {
    /// Start and end in seconds of the file; the end is not past the last frame's end.
    pub fn seconds(&self, info: &VideoInfo) -> (f64, f64) {
        match self.range {
            Some(r) => (r.start.max(0.0), r.end.min(info.duration).max(r.start)),
            None => (0.0, info.duration),
        }
    }

    /// Whether pictures are changed.
    pub fn changes_pictures(&self) -> bool {
        self.crop.is_some() || self.flip
    }

    /// `[height, width]` of a picture of `height` × `width` after the crop.
    pub fn size(&self, height: usize, width: usize) -> [usize; 2] {
        match self.crop {
            Some(([x0, y0, x1, y1], _)) => [(y1 - y0) as usize, (x1 - x0) as usize],
            None => [height, width],
        }
    }

    /// A normalised box of the file in the view, cut to it.
    pub fn map_box(&self, b: BoxXyxy) -> BoxXyxy {
        let [mut x0, mut y0, mut x1, mut y1] = b.to_array();
        if let Some(([left, top, right, bottom], [w, h])) = self.crop {
            let across = |v: f32| (v * w as f32 - left as f32) / (right - left) as f32;
            let down = |v: f32| (v * h as f32 - top as f32) / (bottom - top) as f32;
            (x0, y0, x1, y1) = (across(x0), down(y0), across(x1), down(y1));
        }
        if self.flip {
            (x0, x1) = (1.0 - x1, 1.0 - x0);
        }
        // Clamping corners also reorders them, which would hide a mistake; rounding alone cannot reverse.
        BoxXyxy::from([x0, y0, x1, y1].map(|v| v.clamp(0.0, 1.0)))
    }

    /// A mask of a file of `size` `[width, height]` pixels in the view. A mask of another size
    /// is cropped at its own scale, rounded to its pixels.
    ///
    /// # Errors
    /// [`DataError::Core`] for run lengths that do not make a mask.
    pub fn map_mask(&self, rle: &Rle, size: [usize; 2]) -> Result<Rle, DataError> {
        if self.crop.is_none() && !self.flip {
            return Ok(rle.clone());
        }
        let mask = rle.decode()?;
        let (h, w) = mask.size();
        let [x0, y0, x1, y1] = match self.crop {
            Some((c, _)) => {
                let scale = |v: u32, from: usize, to: usize| {
                    ((f64::from(v) * to as f64 / from.max(1) as f64).round() as usize).min(to)
                };
                let (x0, y0) = (scale(c[0], size[0], w), scale(c[1], size[1], h));
                let (x1, y1) = (scale(c[2], size[0], w), scale(c[3], size[1], h));
                [
                    x0.min(w - 1),
                    y0.min(h - 1),
                    x1.max(x0 + 1).min(w),
                    y1.max(y0 + 1).min(h),
                ]
            }
            None => [0, 0, w, h],
        };
        let mapped = ndarray::Array2::from_shape_fn((y1 - y0, x1 - x0), |(y, x)| {
            let x = if self.flip { x1 - 1 - x } else { x0 + x };
            mask.0[[y0 + y, x]]
        });
        Ok(Rle::encode(&Mask(mapped)))
    }

    /// A picture of the file in the view.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] when the crop reaches outside the picture.
    pub fn map_frame(&self, frame: Frame) -> Result<Frame, DataError> {
        let mut frame = frame;
        if let Some(([x0, y0, x1, y1], _)) = self.crop {
            let (w, h) = (frame.width(), frame.height());
            let [x0, y0, x1, y1] = [x0, y0, x1, y1].map(|v| v as usize);
            if x0 >= x1 || y0 >= y1 || x1 > w || y1 > h {
                return Err(DataError::InvalidTransform {
                    reason: format!("crop [{x0}, {y0}, {x1}, {y1}] of a picture of {w}x{h}"),
                });
            }
            let rgb: Vec<u8> = frame
                .rgb()
                .chunks_exact(3 * w)
                .skip(y0)
                .take(y1 - y0)
                .flat_map(|row| &row[3 * x0..3 * x1])
                .copied()
                .collect();
            frame = Frame::from_rgb(x1 - x0, y1 - y0, rgb)?;
        }
        if !self.flip {
            return Ok(frame);
        }
        let (w, h) = (frame.width(), frame.height());
        let mut rgb = frame.into_rgb();
        for row in rgb.chunks_exact_mut(3 * w) {
            // Reversing bytes reverses the channels of every pixel too.
            row.reverse();
            row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
        Frame::from_rgb(w, h, rgb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crop_and_flip_by_hand() {
        // 4 x 2 pixels, value = 10 * y + x; crop columns 1..4.
        let rgb = (0..8u8).flat_map(|i| [10 * (i / 4) + i % 4; 3]).collect();
        let frame = Frame::from_rgb(4, 2, rgb).unwrap();
        let view = View {
            crop: Some(([1, 0, 4, 2], [4, 2])),
            flip: true,
            ..View::default()
        };
        let seen = view.map_frame(frame).unwrap();
        let values: Vec<u8> = seen.rgb().iter().step_by(3).copied().collect();
        assert_eq!(values, [3, 2, 1, 13, 12, 11]);
        // The box of pixel x = 1 is at the right after the flip.
        let b = view
            .map_box(BoxXyxy::from([0.25, 0.0, 0.5, 0.5]))
            .to_array();
        let expected = [2.0 / 3.0, 0.0, 1.0, 0.5];
        assert!(
            b.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-6),
            "{b:?}"
        );
    }
}
