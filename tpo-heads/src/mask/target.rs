//! Ground truth of one mask task token.

use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::geometry::{BoxXyxy, Mask, Rle};

use crate::HeadsError;

/// The object in one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameMask {
    /// Index of the frame in the sample's
    /// [`FrameSource`](tpo_core::head::FrameSource); 0 is the prompted frame.
    pub frame: usize,
    /// Its pixels, at any resolution of the frame's aspect; empty where the object is hidden.
    pub mask: Rle,
}

/// Ground truth of one mask task token: a box, masks, or both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskTarget {
    /// Box in the first frame, normalised. Without one it is taken from the mask of frame 0.
    pub area: Option<BoxXyxy>,
    /// Masks of some frames.
    #[serde(default)]
    pub masks: Vec<FrameMask>,
}

impl MaskTarget {
    /// A box in the first frame.
    pub fn from_box(area: BoxXyxy) -> Self {
        Self {
            area: Some(area),
            masks: Vec::new(),
        }
    }

    /// A mask of the first frame.
    pub fn from_mask(mask: &Mask) -> Self {
        Self::default().with_mask(0, mask)
    }

    /// Adds the mask of a frame.
    pub fn with_mask(mut self, frame: usize, mask: &Mask) -> Self {
        self.masks.push(FrameMask {
            frame,
            mask: Rle::encode(mask),
        });
        self
    }

    /// The box the adapter learns to express, normalised: the given one, or that of the mask of
    /// frame 0 ([`mask_box`]). `token` is the index of the task token, for errors.
    ///
    /// # Errors
    /// [`CoreError::InvalidBox`] for a given box that is reversed, outside the image or without
    /// area; [`CoreError::InvalidRle`]; [`HeadsError::MaskTarget`] when there is neither a box nor
    /// a mask of frame 0, or that mask is empty.
    pub fn first_box(&self, token: usize) -> Result<BoxXyxy, HeadsError> {
        if let Some(area) = self.area {
            return Ok(area.check(&format!("mask target {token}"))?);
        }
        let wrong = |why: &'static str| HeadsError::MaskTarget { token, why };
        let first = self.masks.iter().find(|m| m.frame == 0);
        let first = first.ok_or(wrong("it has neither a box nor a mask of frame 0"))?;
        mask_box(&first.mask.decode()?)
            .ok_or(wrong("it has no box and its mask of frame 0 is empty"))
    }
}

/// Box of a mask as the reference takes it, normalised: around the *outer boundary* pixels, see
/// [`Mask::outer_boundary_box`].
///
/// Where these have no area (a mask that fills the image, or spans it from edge to edge), the
/// tight box around the mask. `None` for an empty mask.
pub fn mask_box(mask: &Mask) -> Option<BoxXyxy> {
    let tight = mask.bounding_box()?;
    let (height, width) = mask.size();
    let outer = mask.outer_boundary_box().map(BoxXyxy::from);
    outer
        .filter(|b| b.x0 < b.x1 && b.y0 < b.y1)
        .or_else(|| Some(tight.to_normalised(width as f32, height as f32)))
}

/// Share of every cell of a `rows` x `columns` grid that a mask covers, row-major, 0–1: the mask
/// at another resolution, by area.
///
/// # Errors
/// [`CoreError::InvalidRle`] for a mask without pixels.
pub fn coverage(mask: &Mask, rows: usize, columns: usize) -> Result<Vec<f32>, CoreError> {
    let (height, width) = mask.size();
    if height == 0 || width == 0 {
        return Err(CoreError::InvalidRle {
            height,
            width,
            why: "it has no pixels".into(),
        });
    }
    let (down, across) = (overlaps(height, rows), overlaps(width, columns));
    // Columns first: [height, columns].
    let mut lines = vec![0f32; height * columns];
    for (y, line) in lines.chunks_exact_mut(columns).enumerate() {
        for (cell, parts) in line.iter_mut().zip(&across) {
            *cell = parts
                .iter()
                .map(|&(x, share)| if mask.0[[y, x]] { share } else { 0.0 })
                .sum();
        }
    }
    let mut out = vec![0f32; rows * columns];
    for (row, parts) in out.chunks_exact_mut(columns).zip(&down) {
        for &(y, share) in parts {
            let line = &lines[y * columns..(y + 1) * columns];
            for (cell, value) in row.iter_mut().zip(line) {
                *cell += share * value;
            }
        }
    }
    Ok(out)
}

/// For each of `to` cells the source pixels it overlaps and their share of the cell.
fn overlaps(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|cell| {
            let (start, end) = (cell as f64 * scale, (cell + 1) as f64 * scale);
            let last = (end.ceil() as usize).clamp(1, from);
            (start as usize..last)
                .map(|p| {
                    let common = end.min((p + 1) as f64) - start.max(p as f64);
                    (p, (common.max(0.0) / scale) as f32)
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let columns = rows[0].len();
        Mask(ndarray::Array2::from_shape_fn(
            (rows.len(), columns),
            |(y, x)| rows[y].as_bytes()[x] == b'#',
        ))
    }

    #[test]
    fn coverage_by_hand() {
        let m = mask(&["##..", "#...", "....", "...#"]);
        assert_eq!(coverage(&m, 2, 2).unwrap(), [0.75, 0.0, 0.0, 0.25]);
        assert_eq!(coverage(&m, 1, 1).unwrap(), [0.25]);
        // Three cells of 4/3 pixels: the first column is 1 + a third of the second pixel.
        let line = coverage(&mask(&["#..#"]), 1, 3).unwrap();
        for (found, expected) in line.iter().zip([0.75, 0.0, 0.75]) {
            assert!((found - expected).abs() < 1e-6, "{line:?}");
        }
        // Enlarging repeats.
        assert_eq!(
            coverage(&mask(&["#."]), 2, 4).unwrap(),
            [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
        );
        assert!(coverage(&Mask(ndarray::Array2::from_elem((0, 3), true)), 2, 2).is_err());
    }

    #[test]
    fn boxes_of_masks() {
        let inside = mask(&["....", ".#..", "....", "...."]);
        assert_eq!(mask_box(&inside).unwrap().to_array(), [0.0, 0.0, 0.5, 0.5]);
        // From edge to edge the outer boundary is one column: no area.
        let half = mask(&["##..", "##.."]);
        assert_eq!(mask_box(&half).unwrap().to_array(), [0.0, 0.0, 0.5, 1.0]);
        let full = mask(&["##", "##"]);
        assert_eq!(mask_box(&full).unwrap().to_array(), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(mask_box(&mask(&["..", ".."])), None);
    }

    #[test]
    fn a_target_says_what_is_wrong_with_it() {
        let whole = MaskTarget::from_mask(&mask(&["....", ".#..", "....", "...."]));
        assert_eq!(whole.first_box(0).unwrap().to_array(), [0.0, 0.0, 0.5, 0.5]);
        let flat = MaskTarget::from_box([0.2, 0.2, 0.2, 0.8].into());
        assert!(matches!(
            flat.first_box(3).unwrap_err(),
            HeadsError::Core(CoreError::InvalidBox { .. })
        ));
        for (target, part) in [
            (MaskTarget::from_mask(&mask(&["..", ".."])), "empty"),
            (MaskTarget::default().with_mask(2, &mask(&["#"])), "neither"),
            (MaskTarget::default(), "neither"),
        ] {
            let error = target.first_box(3).unwrap_err();
            assert!(matches!(error, HeadsError::MaskTarget { token: 3, .. }));
            assert!(error.to_string().contains(part), "{error}");
        }
        let broken = MaskTarget {
            area: None,
            masks: vec![FrameMask {
                frame: 0,
                mask: Rle {
                    size: [2, 2],
                    counts: "9".into(),
                },
            }],
        };
        assert!(broken.first_box(0).is_err());
    }
}
