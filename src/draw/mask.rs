//! Masks on a picture.

use image::RgbImage;
use tpo_core::geometry::Mask;

use crate::error::{Error, Result};

/// Share of the colour within a mask.
const TINT: f32 = 0.45;

/// Tints the pixels of a mask on `picture` and draws its outline in full colour.
///
/// # Errors
/// [`Error::Picture`] when the mask has another size than the picture.
pub fn draw_mask(picture: &mut RgbImage, mask: &Mask, colour: [u8; 3]) -> Result<()> {
    let (height, width) = mask.size();
    if (picture.width() as usize, picture.height() as usize) != (width, height) {
        return Err(Error::Picture {
            what: "mask".into(),
            why: format!(
                "it is {width}x{height}, the picture {}x{}",
                picture.width(),
                picture.height()
            ),
        });
    }
    for ((y, x), _) in mask.0.indexed_iter().filter(|(_, inside)| **inside) {
        let outside = |at: Option<&bool>| !at.copied().unwrap_or(true);
        let edge = outside(mask.0.get([y.wrapping_sub(1), x]))
            || outside(mask.0.get([y + 1, x]))
            || outside(mask.0.get([y, x.wrapping_sub(1)]))
            || outside(mask.0.get([y, x + 1]));
        let share = if edge { 1.0 } else { TINT };
        let pixel = picture.get_pixel_mut(x as u32, y as u32);
        for (value, ink) in pixel.0.iter_mut().zip(colour) {
            let mixed = f32::from(*value) * (1.0 - share) + f32::from(ink) * share;
            *value = mixed.round() as u8;
        }
    }
    Ok(())
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
        draw_mask(&mut picture, &mask, [200, 0, 100]).unwrap();
        // The border of the picture is no edge.
        assert_eq!(picture.get_pixel(0, 0).0, [145, 55, 100]);
        assert_eq!(picture.get_pixel(1, 1).0, [145, 55, 100]);
        assert_eq!(picture.get_pixel(2, 1).0, [200, 0, 100]);
        assert_eq!(picture.get_pixel(1, 2).0, [200, 0, 100]);
        assert_eq!(picture.get_pixel(3, 1).0, [100; 3]);
        assert!(draw_mask(&mut RgbImage::new(4, 5), &mask, [0; 3]).is_err());
    }
}
