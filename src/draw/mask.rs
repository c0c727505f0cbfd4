//! Masks on a picture.

use image::RgbImage;
use tpo_core::geometry::Mask;

/// Share of the colour within a mask.
const TINT: f32 = 0.45;

/// Tints the pixels of a mask on `picture` and draws its outline in full colour. The mask is
/// stretched to the picture.
pub fn draw_mask(picture: &mut RgbImage, mask: &Mask, colour: [u8; 3]) {
    let (rows, columns) = mask.size();
    let (width, height) = (picture.width() as i64, picture.height() as i64);
    if rows == 0 || columns == 0 {
        return;
    }
    let inside = |x: i64, y: i64| {
        let row = (y * rows as i64 / height) as usize;
        mask.0[[row, (x * columns as i64 / width) as usize]]
    };
    // The border of the picture is no edge.
    let outside =
        |x: i64, y: i64| (0..width).contains(&x) && (0..height).contains(&y) && !inside(x, y);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (x, y) = (i64::from(x), i64::from(y));
        if !inside(x, y) {
            continue;
        }
        let around = [(x, y - 1), (x, y + 1), (x - 1, y), (x + 1, y)];
        let edge = around.into_iter().any(|(x, y)| outside(x, y));
        let share = if edge { 1.0 } else { TINT };
        for (value, ink) in pixel.0.iter_mut().zip(colour) {
            let mixed = f32::from(*value) * (1.0 - share) + f32::from(ink) * share;
            *value = mixed.round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_is_tinted_and_the_edge_is_full() {
        let mut picture = RgbImage::from_pixel(5, 4, image::Rgb([100; 3]));
        let mut mask = Mask(ndarray::Array2::from_elem((4, 5), false));
        for y in 0..3 {
            for x in 0..3 {
                mask.0[[y, x]] = true;
            }
        }
        draw_mask(&mut picture, &mask, [200, 0, 100]);
        // The border of the picture is no edge.
        assert_eq!(picture.get_pixel(0, 0).0, [145, 55, 100]);
        assert_eq!(picture.get_pixel(1, 1).0, [145, 55, 100]);
        assert_eq!(picture.get_pixel(2, 1).0, [200, 0, 100]);
        assert_eq!(picture.get_pixel(1, 2).0, [200, 0, 100]);
        assert_eq!(picture.get_pixel(3, 1).0, [100; 3]);
        // A picture of twice the size shows the same.
        let mut large = RgbImage::from_pixel(10, 8, image::Rgb([100; 3]));
        draw_mask(&mut large, &mask, [200, 0, 100]);
        assert_eq!(large.get_pixel(5, 0).0, [200, 0, 100]);
        assert_eq!(large.get_pixel(4, 4).0, [145, 55, 100]);
        assert_eq!(large.get_pixel(6, 0).0, [100; 3]);
        draw_mask(&mut RgbImage::new(0, 0), &mask, [0; 3]);
    }
}
