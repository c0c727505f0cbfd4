//! The view of a clip: which part of the time, which part of the picture, mirrored or not.
//! Pictures, boxes, masks and times are transformed by the same view, so they stay consistent.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::{BoxXyxy, Mask, Rle};

use crate::{ClipRange, DataError, Frame, VideoInfo};

/// Factors on a picture's colours; 1 changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Colour {
    /// Multiplies every value.
    pub brightness: f32,
    /// Multiplies the distance from the mean grey of the picture.
    pub contrast: f32,
    /// Multiplies the distance from the pixel's own grey.
    pub saturation: f32,
}

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
    /// Change colours.
    pub colour: Option<Colour>,
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
        self.crop.is_some() || self.flip || self.colour.is_some()
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
        let mut b = b;
        if let Some(([x0, y0, x1, y1], [w, h])) = self.crop {
            let across = |v: f32| (v * w as f32 - x0 as f32) / (x1 - x0) as f32;
            let down = |v: f32| (v * h as f32 - y0 as f32) / (y1 - y0) as f32;
            b = BoxXyxy {
                x0: across(b.x0),
                y0: down(b.y0),
                x1: across(b.x1),
                y1: down(b.y1),
            };
        }
        if self.flip {
            b = BoxXyxy {
                x0: 1.0 - b.x1,
                x1: 1.0 - b.x0,
                ..b
            };
        }
        // Clamping also reorders, which would hide a mistake; rounding alone cannot reverse.
        let cut = |v: f32| v.clamp(0.0, 1.0);
        BoxXyxy {
            x0: cut(b.x0),
            y0: cut(b.y0),
            x1: cut(b.x1),
            y1: cut(b.y1),
        }
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
        if !self.flip && self.colour.is_none() {
            return Ok(frame);
        }
        let (w, h) = (frame.width(), frame.height());
        let mut rgb = frame.into_rgb();
        if self.flip {
            for row in rgb.chunks_exact_mut(3 * w) {
                // Reversing bytes reverses the channels of every pixel too.
                row.reverse();
                row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
            }
        }
        if let Some(colour) = self.colour {
            colour.apply(&mut rgb);
        }
        Frame::from_rgb(w, h, rgb)
    }
}

/// Weights of the channels in grey (ITU-R BT.601, as Pillow and torchvision have them).
const GREY: [f32; 3] = [0.299, 0.587, 0.114];

fn grey(p: &[u8]) -> f32 {
    p.iter().zip(GREY).map(|(v, g)| f32::from(*v) * g).sum()
}

impl Colour {
    /// Changes RGB bytes; brightness, then contrast, then saturation, each clamped to 0–255
    /// as torchvision does.
    fn apply(self, rgb: &mut [u8]) {
        let bright = |v: u8| (f32::from(v) * self.brightness).clamp(0.0, 255.0);
        let table: [u8; 256] = std::array::from_fn(|v| bright(v as u8) as u8);
        let pixels = (rgb.len() / 3).max(1) as f64;
        let mut sum = 0.0;
        for p in rgb.chunks_exact_mut(3) {
            p.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
            sum += f64::from(grey(p));
        }
        let mean = (sum / pixels).round() as f32;
        for p in rgb.chunks_exact_mut(3) {
            for v in &mut *p {
                *v = (mean + (f32::from(*v) - mean) * self.contrast).clamp(0.0, 255.0) as u8;
            }
            let own = grey(p);
            for v in p {
                *v = (own + (f32::from(*v) - own) * self.saturation).clamp(0.0, 255.0) as u8;
            }
        }
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

    #[test]
    fn neutral_colour_changes_nothing() {
        let mut rgb: Vec<u8> = (0..=254).collect();
        let before = rgb.clone();
        let one = Colour {
            brightness: 1.0,
            contrast: 1.0,
            saturation: 1.0,
        };
        one.apply(&mut rgb);
        // Truncation may lose one step where grey is not exact.
        assert!(rgb.iter().zip(&before).all(|(a, b)| a.abs_diff(*b) <= 1));
        let mut dark = vec![200, 100, 50];
        Colour {
            brightness: 0.5,
            ..one
        }
        .apply(&mut dark);
        assert!(
            dark.iter()
                .zip([100u8, 50, 25])
                .all(|(a, b)| a.abs_diff(b) <= 1),
            "{dark:?}"
        );
    }
}
