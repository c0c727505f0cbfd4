//! A decoded picture.

use crate::DataError;

/// One RGB picture: 8 bits per channel, interleaved, rows from the top, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Frame {
    /// A frame from interleaved RGB bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] when a side is 0 or the length is not
    /// `width * height * 3`.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, DataError> {
        let expected = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(3))
            .filter(|&n| n > 0);
        if expected != Some(rgb.len()) {
            return Err(DataError::transform(format!(
                "a {width}x{height} RGB frame needs {expected:?} bytes, got {}",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Returns the pixels, `[height, width, 3]`, and drops the rest.
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }

    /// The frame turned clockwise by `rotation`.
    pub fn rotated(self, rotation: Rotation) -> Self {
        if rotation == Rotation::None {
            return self;
        }
        let (w, h) = (self.width, self.height);
        let (width, height) = rotation.turned((w, h));
        let mut rgb = vec![0; self.rgb.len()];
        for (y, row) in self.rgb.chunks_exact(w * 3).enumerate() {
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                let (nx, ny) = match rotation {
                    Rotation::Clockwise => (h - 1 - y, x),
                    Rotation::Counterclockwise => (y, w - 1 - x),
                    _ => (w - 1 - x, h - 1 - y),
                };
                let at = (ny * width + nx) * 3;
                rgb[at..at + 3].copy_from_slice(pixel);
            }
        }
        Self { width, height, rgb }
    }
}

/// Rotation a player must apply to show the coded pictures upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rotation {
    /// As coded.
    #[default]
    None,
    /// 90 degrees clockwise.
    Clockwise,
    /// 180 degrees.
    Half,
    /// 90 degrees counterclockwise.
    Counterclockwise,
}

impl Rotation {
    /// From the signs of a, b, c, d of a display matrix (x' = a x + c y, y' = b x + d y);
    /// anything but a right angle is `None`.
    pub(crate) fn from_matrix_signs(signs: [i32; 4]) -> Self {
        match signs {
            [0, 1, -1, 0] => Self::Clockwise,
            [-1, 0, 0, -1] => Self::Half,
            [0, -1, 1, 0] => Self::Counterclockwise,
            _ => Self::None,
        }
    }

    /// Width and height after the rotation.
    pub(crate) fn turned<T>(self, (width, height): (T, T)) -> (T, T) {
        match self {
            Self::Clockwise | Self::Counterclockwise => (height, width),
            Self::None | Self::Half => (width, height),
        }
    }
}

/// A frame of a video with its place in it.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedFrame {
    /// Index in presentation order, 0-based.
    pub index: usize,
    /// Presentation time in seconds from the start of the video.
    pub timestamp: f64,
    /// The picture.
    pub frame: Frame,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 wide, 1 high: red, green.
    fn two() -> Frame {
        Frame::from_rgb(2, 1, vec![255, 0, 0, 0, 255, 0]).unwrap()
    }

    /// The pixel in column `x` and row `y`.
    fn pixel(frame: &Frame, x: usize, y: usize) -> [u8; 3] {
        let at = (y * frame.width() + x) * 3;
        frame.rgb()[at..at + 3].try_into().unwrap()
    }

    #[test]
    fn rotations_by_hand() {
        let red = [255, 0, 0];
        let green = [0, 255, 0];
        let cw = two().rotated(Rotation::Clockwise);
        assert_eq!((cw.width(), cw.height()), (1, 2));
        assert_eq!((pixel(&cw, 0, 0), pixel(&cw, 0, 1)), (red, green));
        let ccw = two().rotated(Rotation::Counterclockwise);
        assert_eq!((pixel(&ccw, 0, 0), pixel(&ccw, 0, 1)), (green, red));
        let half = two().rotated(Rotation::Half);
        assert_eq!((pixel(&half, 0, 0), pixel(&half, 1, 0)), (green, red));
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(Frame::from_rgb(2, 2, vec![0; 11]).is_err());
        assert!(Frame::from_rgb(0, 2, vec![]).is_err());
        assert!(Frame::from_rgb(usize::MAX, 2, vec![0]).is_err());
    }
}
