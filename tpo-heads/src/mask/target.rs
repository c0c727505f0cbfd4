//! Ground truth of one mask task token.

use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::geometry::{BoxXyxy, Mask, Rle};
use tpo_core::truth::{Truth, TruthFrame, TruthPlace, TruthTarget};

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

/// The target of the mask head: the object's masks on the sampled frames, and its box on the first
/// of them. A track of boxes (LaSOT) gives the box alone. Where nothing is said of the first sampled
/// frame the box of the question stands for it.
///
/// # Errors
/// [`CoreError::Truth`] for an annotation that is not a track, and an object that does not show
/// on the first sampled frame: that is where it is prompted.
pub fn mask_target(truth: &Truth) -> Result<MaskTarget, CoreError> {
    let TruthTarget::Track(frames) = &truth.target else {
        return Err(truth.unusable("it is no track"));
    };
    let size = frames.iter().find_map(|f| match &f.place {
        TruthPlace::Mask(rle) => Some(rle.size),
        _ => None,
    });
    let mut target = MaskTarget::default();
    let mut last = None;
    for TruthFrame { sampled, place, .. } in frames {
        // Of several annotations of one sampled frame the first.
        if last == Some(*sampled) {
            continue;
        }
        last = Some(*sampled);
        let mask = match (place, size) {
            (TruthPlace::Mask(rle), _) => rle.clone(),
            (TruthPlace::Absent, Some(size)) => Rle::empty(size)?,
            (TruthPlace::Box(area), _) => {
                if *sampled == 0 {
                    target.area = Some(*area);
                }
                continue;
            }
            (TruthPlace::Absent, None) => continue,
        };
        target.masks.push(FrameMask {
            frame: *sampled,
            mask,
        });
    }
    if !frames.iter().any(|f| f.sampled == 0) {
        target.area = truth.prompt_box;
    }
    target
        .first_box(0)
        .map_err(|e| truth.unusable(format!("the first sampled frame: {e}")))?;
    Ok(target)
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

    fn truth(target: TruthTarget) -> Truth {
        Truth {
            task: "mask".into(),
            query: None,
            prompt_box: None,
            target,
            seed: 3,
        }
    }

    fn frame(sampled: usize, place: TruthPlace) -> TruthFrame {
        TruthFrame {
            time: sampled as f64,
            sampled,
            place,
        }
    }

    #[test]
    fn tracks_of_masks_and_of_boxes() {
        let mut pixels = ndarray::Array2::from_elem((4, 6), false);
        pixels[[1, 2]] = true;
        pixels[[2, 3]] = true;
        let rle = Rle::encode(&Mask(pixels.clone()));
        let track = |frames| truth(TruthTarget::Track(frames));
        let found = mask_target(&track(vec![
            frame(0, TruthPlace::Mask(rle.clone())),
            frame(1, TruthPlace::Absent),
            // Two annotations of one sampled frame.
            frame(3, TruthPlace::Mask(rle.clone())),
            frame(3, TruthPlace::Absent),
        ]))
        .unwrap();
        let at: Vec<usize> = found.masks.iter().map(|m| m.frame).collect();
        assert_eq!((at, found.area), (vec![0, 1, 3], None));
        let hidden = found.masks[1].mask.decode().unwrap();
        assert_eq!(hidden.size(), (4, 6));
        assert!(hidden.0.iter().all(|v| !v));
        assert_eq!(found.masks[2].mask.decode().unwrap().0, pixels);

        // As LaSOT has them: boxes, of which the first is what the head learns.
        let area = BoxXyxy::from([0.1, 0.2, 0.3, 0.4]);
        let later = BoxXyxy::from([0.5, 0.5, 0.6, 0.6]);
        let found = mask_target(&track(vec![
            frame(0, TruthPlace::Box(area)),
            frame(1, TruthPlace::Box(later)),
            frame(2, TruthPlace::Absent),
        ]))
        .unwrap();
        assert_eq!(found, MaskTarget::from_box(area));

        // Not there when it is prompted.
        for bad in [
            vec![frame(1, TruthPlace::Mask(rle.clone()))],
            vec![
                frame(0, TruthPlace::Absent),
                frame(1, TruthPlace::Mask(rle)),
            ],
            vec![frame(1, TruthPlace::Box(area))],
        ] {
            let error = mask_target(&track(bad)).unwrap_err();
            assert!(matches!(error, CoreError::Truth { .. }), "{error}");
        }
        let asked = Truth {
            prompt_box: Some(area),
            ..track(vec![frame(1, TruthPlace::Box(later))])
        };
        assert_eq!(mask_target(&asked).unwrap(), MaskTarget::from_box(area));
        assert!(mask_target(&truth(TruthTarget::Box(area))).is_err());
    }
}
