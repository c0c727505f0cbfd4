//! Pictures of predictions.

use ab_glyph::{FontRef, PxScale};
use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_hollow_rect_mut, draw_text_mut, text_size};
use imageproc::rect::Rect;
use tpo_core::geometry::BoxXyxy;

use crate::error::{Error, Result};

/// DejaVu Sans, Latin subset.
const FONT: &[u8] = include_bytes!("../assets/fonts/DejaVuSans-latin.ttf");

/// Colours that stay apart on photographs and for colour-blind eyes (Okabe and Ito).
pub const COLOURS: [[u8; 3]; 6] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [213, 94, 0],
    [204, 121, 167],
    [240, 228, 66],
];

/// A box with a caption.
#[derive(Debug, Clone)]
pub struct LabelledBox {
    /// Normalised corners; parts outside the image are not drawn.
    pub area: BoxXyxy,
    /// Caption at its top-left corner.
    pub label: String,
}

/// Draws boxes on a copy of `frame`. Line width and letters grow with the picture.
///
/// # Errors
/// [`Error::Picture`] when the built-in font cannot be read.
pub fn draw_boxes(frame: &RgbImage, boxes: &[LabelledBox]) -> Result<RgbImage> {
    let font = FontRef::try_from_slice(FONT).map_err(|e| Error::Picture {
        what: "the label font".into(),
        why: e.to_string(),
    })?;
    let mut picture = frame.clone();
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Ok(picture);
    }
    let short = width.min(height);
    let line = (short / 160).clamp(2, 8) as i32;
    let scale = PxScale::from((short as f32 / 20.0).clamp(12.0, 40.0));
    for (i, b) in boxes.iter().enumerate() {
        let colour = Rgb(COLOURS[i % COLOURS.len()]);
        let px = b.area.clamped().to_pixels(width as f32, height as f32);
        let (x0, y0) = (px.x0.round() as i32, px.y0.round() as i32);
        let (x1, y1) = (px.x1.round() as i32, px.y1.round() as i32);
        for inset in 0..line {
            let (w, h) = (x1 - x0 - 2 * inset, y1 - y0 - 2 * inset);
            if w < 1 || h < 1 {
                break;
            }
            let rect = Rect::at(x0 + inset, y0 + inset).of_size(w as u32, h as u32);
            draw_hollow_rect_mut(&mut picture, rect, colour);
        }
        if b.label.is_empty() {
            continue;
        }
        let (tw, th) = text_size(scale, &font, &b.label);
        let (bw, bh) = (tw as i32 + 8, th as i32 + 8);
        let bx = x0.clamp(0, (width as i32 - bw).max(0));
        let by = if y0 >= bh { y0 - bh } else { y0 };
        let by = by.clamp(0, (height as i32 - bh).max(0));
        draw_filled_rect_mut(
            &mut picture,
            Rect::at(bx, by).of_size(bw.max(1) as u32, bh.max(1) as u32),
            colour,
        );
        draw_text_mut(
            &mut picture,
            Rgb([0; 3]),
            bx + 4,
            by + 3,
            scale,
            &font,
            &b.label,
        );
    }
    Ok(picture)
}
