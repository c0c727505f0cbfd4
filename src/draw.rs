//! Pictures of predictions.

mod mask;
mod picture;
mod shapes;
mod sheet;
mod text;

use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_hollow_rect_mut};
use imageproc::rect::Rect;
use tpo_core::geometry::BoxXyxy;

use crate::error::Result;

pub use mask::draw_mask;
pub use picture::{Animation, enlarged, picture, save_picture};
pub use shapes::draw_shapes;
pub use sheet::{Axis, AxisRow, Strip, contact_sheet};
pub(crate) use text::{Letters, draw_curve, tick_step};

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
    /// Index into [`COLOURS`], taken modulo their number.
    pub colour: usize,
}

impl LabelledBox {
    /// A box with a caption.
    pub fn new(area: BoxXyxy, label: impl Into<String>, colour: usize) -> Self {
        Self {
            area,
            label: label.into(),
            colour,
        }
    }
}

/// Draws boxes on a copy of `frame`. Line width and letters grow with the picture.
///
/// # Errors
/// [`Error::Picture`](crate::Error::Picture) when the built-in font cannot be read.
pub fn draw_boxes(frame: &RgbImage, boxes: &[LabelledBox]) -> Result<RgbImage> {
    let mut picture = frame.clone();
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Ok(picture);
    }
    let short = width.min(height);
    let line = (short / 160).clamp(2, 8) as i32;
    let letters = Letters::new((short as f32 / 20.0).clamp(12.0, 40.0))?;
    let mut labels: Vec<[i32; 4]> = Vec::new();
    for b in boxes {
        let colour = Rgb(COLOURS[b.colour % COLOURS.len()]);
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
        let (tw, th) = letters.size(&b.label);
        let (bw, bh) = (tw + 8, th + 8);
        let bx = x0.clamp(0, (width as i32 - bw).max(0));
        let by = if y0 >= bh { y0 - bh } else { y0 };
        let by = free_row(by, bh, height as i32, (bx, bx + bw), &labels);
        labels.push([bx, by, bx + bw, by + bh]);
        draw_filled_rect_mut(
            &mut picture,
            Rect::at(bx, by).of_size(bw.max(1) as u32, bh.max(1) as u32),
            colour,
        );
        letters.write(&mut picture, (bx + 4, by + 3), Rgb([0; 3]), &b.label);
    }
    Ok(picture)
}

/// The row nearest to `wanted` where a label of height `size` covers none of those `placed`
/// (`[x0, y0, x1, y1]`); `wanted` itself, confined to the picture, when every row is taken.
fn free_row(
    wanted: i32,
    size: i32,
    height: i32,
    (left, right): (i32, i32),
    placed: &[[i32; 4]],
) -> i32 {
    let last = (height - size).max(0);
    let wanted = wanted.clamp(0, last);
    let free = |y: &i32| {
        placed
            .iter()
            .all(|p| p[2] <= left || p[0] >= right || p[3] <= *y || p[1] >= y + size)
    };
    (0..=last)
        .filter(free)
        .min_by_key(|y| (y - wanted).abs())
        .unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_do_not_cover_each_other() {
        let first = [0, 90, 50, 110];
        assert_eq!(free_row(95, 20, 200, (10, 60), &[first]), 110);
        assert_eq!(free_row(85, 20, 200, (10, 60), &[first]), 70);
        assert_eq!(free_row(95, 20, 200, (50, 60), &[first]), 95);
        assert_eq!(free_row(500, 20, 200, (0, 60), &[]), 180);
        assert_eq!(free_row(5, 20, 15, (0, 60), &[[0, 0, 60, 15]]), 0);
    }

    #[test]
    fn any_box_on_any_picture_is_drawn() {
        for (w, h) in [(0, 0), (1, 1), (64, 48), (7, 300)] {
            let frame = RgbImage::from_pixel(w, h, Rgb([9; 3]));
            let boxes: Vec<LabelledBox> = [[0.0, 0.0, 1.0, 1.0], [9.0, -3.0, f32::NAN, 0.5]]
                .into_iter()
                .map(|b| LabelledBox::new(b.into(), "a long label", 7))
                .collect();
            let picture = draw_boxes(&frame, &boxes).unwrap();
            assert_eq!(picture.dimensions(), (w, h));
            assert_eq!(picture != frame, w > 0, "{w}x{h}");
        }
    }
}
