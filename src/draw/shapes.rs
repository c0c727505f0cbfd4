//! What heads say of their answers, drawn on a frame: boxes, points and masks.

use image::{Rgb, RgbImage};
use imageproc::drawing::draw_line_segment_mut;
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{Drawing, Shape};

use super::{COLOURS, LabelledBox, draw_boxes, draw_mask};
use crate::error::Result;

/// Draws what of the answers lies on the picture of frame `frame`: one colour each, with its words.
/// `None` when nothing does.
///
/// # Errors
/// [`Error::Picture`](crate::Error::Picture) for the built-in font and a mask of no size; a mask that
/// cannot be decoded.
pub fn draw_shapes(
    picture: &RgbImage,
    answers: &[(&Drawing, String)],
    frame: usize,
) -> Result<Option<RgbImage>> {
    let (mut boxes, mut any) = (Vec::new(), false);
    let mut base = picture.clone();
    for (i, (drawing, label)) in answers.iter().enumerate() {
        for shape in &drawing.shapes {
            let labelled = match shape {
                Shape::Box(area) => *area,
                // No area, above the cross: the label alone is drawn.
                Shape::Point([x, y]) => {
                    let y = y - arm(picture) / picture.height() as f32;
                    BoxXyxy::from([*x, y, *x, y])
                }
                Shape::Mask { frame: at, mask } => {
                    if *at == frame {
                        draw_mask(&mut base, &mask.decode()?, COLOURS[i % COLOURS.len()]);
                    }
                    any = true;
                    continue;
                }
                _ => continue,
            };
            boxes.push(LabelledBox::new(labelled, label.clone(), i));
        }
    }
    any |= !boxes.is_empty();
    let mut drawn = draw_boxes(&base, &boxes)?;
    for (i, (drawing, _)) in answers.iter().enumerate() {
        for shape in &drawing.shapes {
            if let Shape::Point(point) = shape {
                draw_cross(&mut drawn, *point, i);
            }
        }
    }
    Ok(any.then_some(drawn))
}

/// Half the size of a cross in pixels.
fn arm(picture: &RgbImage) -> f32 {
    let (width, height) = picture.dimensions();
    (width.min(height) as f32 / 16.0).clamp(4.0, 32.0)
}

/// A cross at a normalised point, with a dark edge so that it shows on anything.
fn draw_cross(picture: &mut RgbImage, [x, y]: [f32; 2], colour: usize) {
    let (width, height) = picture.dimensions();
    let (x, y) = ((x * width as f32).round(), (y * height as f32).round());
    let arm = arm(picture);
    let thick = (arm / 6.0).clamp(1.0, 4.0) as i32;
    for (color, wide) in [
        (Rgb([0; 3]), thick + 1),
        (Rgb(COLOURS[colour % COLOURS.len()]), thick),
    ] {
        for d in -wide..=wide {
            let d = d as f32;
            draw_line_segment_mut(picture, (x - arm, y + d), (x + arm, y + d), color);
            draw_line_segment_mut(picture, (x + d, y - arm), (x + d, y + arm), color);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_cross_of_its_colour() {
        let plain = RgbImage::from_pixel(64, 64, Rgb([128; 3]));
        let drawing = Drawing::text("here").with(Shape::Point([0.5, 0.25]));
        let drawn = draw_shapes(&plain, &[(&drawing, String::new())], 0)
            .unwrap()
            .unwrap();
        assert_eq!(drawn.get_pixel(32, 16).0, COLOURS[0]);
        assert_eq!(drawn.get_pixel(28, 16).0, COLOURS[0]);
        assert_eq!(drawn.get_pixel(5, 60).0, [128; 3]);
        let words = Drawing::text("nothing to see");
        assert!(
            draw_shapes(&plain, &[(&words, String::new())], 0)
                .unwrap()
                .is_none()
        );
    }
}
