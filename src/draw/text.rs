//! Letters, lines and axes, as all pictures have them.

use ab_glyph::{FontRef, PxScale};
use image::{Rgb, RgbImage};
use imageproc::drawing::{
    draw_antialiased_line_segment_mut, draw_filled_rect_mut, draw_text_mut, text_size,
};
use imageproc::pixelops::interpolate;
use imageproc::rect::Rect;

use crate::error::{Error, Result};

/// DejaVu Sans, Latin subset.
const FONT: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans-latin.ttf");
/// Curves of fewer points than this have a dot at each.
const DOTS: usize = 40;

/// Letters of one size.
pub(crate) struct Letters {
    font: FontRef<'static>,
    scale: PxScale,
}

impl Letters {
    /// # Errors
    /// [`Error::Picture`] when the built-in font cannot be read.
    pub fn new(size: f32) -> Result<Self> {
        let font = FontRef::try_from_slice(FONT).map_err(|e| Error::Picture {
            what: "the label font".into(),
            why: e.to_string(),
        })?;
        let scale = PxScale::from(size);
        Ok(Self { font, scale })
    }

    /// Width and height of a text in pixels.
    pub fn size(&self, text: &str) -> (i32, i32) {
        let (width, height) = text_size(self.scale, &self.font, text);
        (width as i32, height as i32)
    }

    /// Writes a text whose top-left corner is at `(x, y)`.
    pub fn write(&self, picture: &mut RgbImage, (x, y): (i32, i32), colour: Rgb<u8>, text: &str) {
        draw_text_mut(picture, colour, x, y, self.scale, &self.font, text);
    }

    /// Breaks a text at spaces into at most `most` lines of `width` pixels; the last one ends in "…"
    /// when it does not hold the rest.
    pub fn wrap(&self, text: &str, width: i32, most: usize) -> Vec<String> {
        let fits = |line: &str| self.size(line).0 <= width;
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let word: String = word.chars().take(80).collect();
            let full = lines.len() == most;
            match lines.last_mut() {
                Some(last) if fits(&format!("{last} {word}")) => {
                    last.push(' ');
                    last.push_str(&word);
                }
                Some(last) if full => {
                    while !fits(&format!("{last}…")) && last.pop().is_some() {}
                    last.push('…');
                    break;
                }
                _ => lines.push(word),
            }
        }
        lines
    }
}

/// A line two pixels thick through points, with dots where they are few.
pub(crate) fn draw_curve(picture: &mut RgbImage, points: &[(i32, i32)], colour: Rgb<u8>) {
    for pair in points.windows(2) {
        for down in 0..2 {
            let at = |(x, y): (i32, i32)| (x, y + down);
            draw_antialiased_line_segment_mut(
                picture,
                at(pair[0]),
                at(pair[1]),
                colour,
                interpolate,
            );
        }
    }
    if points.len() < DOTS {
        for (x, y) in points {
            draw_filled_rect_mut(picture, Rect::at(x - 2, y - 2).of_size(5, 5), colour);
        }
    }
}

/// A step for ticks that reads well, 1, 2 or 5 times a power of ten, with at most `most` in `span`.
pub(crate) fn tick_step(span: f64, most: f64) -> f64 {
    let rough = (span / most).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_read_well() {
        assert_eq!(tick_step(10.0, 5.0), 2.0);
        assert_eq!(tick_step(4.2, 5.0), 1.0);
        assert!((tick_step(0.013, 5.0) - 0.005).abs() < 1e-12);
        assert_eq!(tick_step(100.0, 10.0), 10.0);
        assert!((tick_step(0.4, 10.0) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn long_texts_are_broken_and_cut() {
        let letters = Letters::new(15.0).unwrap();
        let lines = letters.wrap(&"word ".repeat(300), 200, 3);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| letters.size(l).0 <= 200));
        assert!(lines[2].ends_with('…'), "{lines:?}");
        assert_eq!(letters.wrap("a word", 200, 3), ["a word"]);
        assert!(letters.wrap(" ", 200, 3).is_empty());
    }
}
