//! Segmentation masks: dense and run-length encoded as COCO does.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

mod code;
mod polygon;
mod rle;

pub use rle::{Rle, coco_box_iou};

use super::BoxPixels;
use crate::error::{CoreError, Result};

/// A dense binary mask `[height, width]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Rle", try_from = "Rle")]
pub struct Mask(pub Array2<bool>);

impl Mask {
    /// `(height, width)` in pixels.
    pub fn size(&self) -> (usize, usize) {
        self.0.dim()
    }

    /// Number of foreground pixels.
    pub fn area(&self) -> usize {
        self.0.iter().filter(|p| **p).count()
    }

    /// Tight box around the foreground; `None` when the mask is empty.
    pub fn bounding_box(&self) -> Option<BoxPixels> {
        let mut bounds: Option<[usize; 4]> = None;
        for ((y, x), _) in self.0.indexed_iter().filter(|(_, p)| **p) {
            let b = bounds.get_or_insert([x, y, x, y]);
            *b = [b[0].min(x), b[1].min(y), b[2].max(x), b[3].max(y)];
        }
        bounds.map(|[x0, y0, x1, y1]| {
            BoxPixels::from([x0 as f32, y0 as f32, (x1 + 1) as f32, (y1 + 1) as f32])
        })
    }

    /// Box `[x0, y0, x1, y1]` of the *outer boundary pixels*, divided by the image size: what the
    /// reference calls the box of a mask.
    ///
    /// Outer boundary pixels are background pixels that touch the foreground (4-neighbourhood),
    /// so the box reaches one pixel further than the mask where the image allows; coordinates
    /// are pixel indices. `None` for an empty or a full mask, where no boundary exists.
    pub fn outer_boundary_box(&self) -> Option<[f32; 4]> {
        let (h, w) = self.size();
        let mut bounds: Option<[usize; 4]> = None;
        for ((y, x), _) in self.0.indexed_iter().filter(|(_, p)| !**p) {
            let touches = (y > 0 && self.0[[y - 1, x]])
                || (y + 1 < h && self.0[[y + 1, x]])
                || (x > 0 && self.0[[y, x - 1]])
                || (x + 1 < w && self.0[[y, x + 1]]);
            if touches {
                let b = bounds.get_or_insert([x, y, x, y]);
                *b = [b[0].min(x), b[1].min(y), b[2].max(x), b[3].max(y)];
            }
        }
        bounds.map(|[x0, y0, x1, y1]| {
            [
                x0 as f32 / w as f32,
                y0 as f32 / h as f32,
                x1 as f32 / w as f32,
                y1 as f32 / h as f32,
            ]
        })
    }

    /// Intersection over union with a mask of the same size; two empty masks give 0.
    pub fn iou(&self, other: &Self) -> Result<f64> {
        if self.size() != other.size() {
            return Err(CoreError::Shape {
                place: "Mask::iou",
                what: "second mask",
                expected: format!("{:?}", self.size()),
                found: vec![other.size().0, other.size().1],
            });
        }
        let (mut inter, mut union) = (0usize, 0usize);
        for (a, b) in self.0.iter().zip(&other.0) {
            inter += (*a && *b) as usize;
            union += (*a || *b) as usize;
        }
        Ok(if union == 0 {
            0.0
        } else {
            inter as f64 / union as f64
        })
    }
}

impl From<Mask> for Rle {
    fn from(mask: Mask) -> Self {
        Self::encode(&mask)
    }
}

impl TryFrom<Rle> for Mask {
    type Error = CoreError;
    fn try_from(rle: Rle) -> Result<Self> {
        rle.decode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(rows: &[&str]) -> Mask {
        let w = rows[0].len();
        Mask(Array2::from_shape_fn((rows.len(), w), |(y, x)| {
            rows[y].as_bytes()[x] == b'#'
        }))
    }

    #[test]
    fn runs_go_down_the_columns_and_begin_with_background() {
        let rle = Rle::encode(&mask(&["#.", "#."]));
        assert_eq!(rle.runs().unwrap(), [0, 2, 2]);
        assert_eq!(rle.counts, "022");
    }

    #[test]
    fn boxes_by_hand() {
        let m = mask(&["....", ".##.", "....", "...."]);
        assert_eq!(m.bounding_box().unwrap().to_array(), [1.0, 1.0, 3.0, 2.0]);
        assert_eq!(
            m.outer_boundary_box().unwrap(),
            [0.0, 0.0, 3.0 / 4.0, 2.0 / 4.0]
        );
        assert!(mask(&["..", ".."]).bounding_box().is_none());
        assert!(mask(&["##", "##"]).outer_boundary_box().is_none());
    }

    #[test]
    fn hostile_codes_are_errors() {
        for (size, counts) in [
            ([2, 2], "0"),
            ([2, 2], "\u{1}"),
            ([2, 2], "oooooooooooooooooooooo"),
            ([2, 2], "P"),
            ([usize::MAX, 2], "0"),
            ([100_000, 100_000], "0"),
        ] {
            let counts = counts.to_string();
            assert!(Rle { size, counts }.decode().is_err());
        }
    }

    proptest! {
        #[test]
        fn dense_and_encoded_are_the_same(h in 1usize..40, w in 1usize..40, bits in proptest::collection::vec(any::<bool>(), 1600)) {
            let m = Mask(Array2::from_shape_fn((h, w), |(y, x)| bits[y * w + x]));
            prop_assert_eq!(Rle::encode(&m).decode().unwrap(), m);
        }

        #[test]
        fn any_text_decodes_or_fails(text in ".{0,40}", h in 0usize..50, w in 0usize..50) {
            let _ = Rle { size: [h, w], counts: text }.decode();
        }
    }
}
