//! Segmentation masks: dense and run-length encoded as COCO does.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::BoxPixels;
use crate::error::{CoreError, Result};

/// Masks larger than this are refused when decoding, so that a hostile header costs nothing.
const MAX_PIXELS: usize = 1 << 28;

/// A dense binary mask `[height, width]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Rle", try_from = "Rle")]
pub struct Mask(pub Array2<bool>);

/// A run-length encoded mask in COCO's compressed form: runs go down the columns and begin with
/// background.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rle {
    /// `[height, width]` in pixels.
    pub size: [usize; 2],
    /// COCO's printable encoding of the run lengths.
    pub counts: String,
}

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

impl Rle {
    /// Encodes a dense mask.
    pub fn encode(mask: &Mask) -> Self {
        let (h, w) = mask.size();
        let mut counts = Vec::new();
        let (mut current, mut run) = (false, 0u64);
        for x in 0..w {
            for y in 0..h {
                if mask.0[[y, x]] != current {
                    counts.push(run);
                    current = !current;
                    run = 0;
                }
                run += 1;
            }
        }
        counts.push(run);
        Self {
            size: [h, w],
            counts: pack(&counts),
        }
    }

    /// Run lengths, background first.
    pub fn runs(&self) -> Result<Vec<u64>> {
        unpack(&self.counts).map_err(|why| self.invalid(why))
    }

    /// Decodes to a dense mask.
    pub fn decode(&self) -> Result<Mask> {
        let [h, w] = self.size;
        let pixels = h
            .checked_mul(w)
            .filter(|p| *p <= MAX_PIXELS)
            .ok_or_else(|| self.invalid(format!("more than {MAX_PIXELS} pixels")))?;
        let runs = self.runs()?;
        let total = runs.iter().try_fold(0u64, |sum, r| sum.checked_add(*r));
        if total != Some(pixels as u64) {
            return Err(self.invalid(format!(
                "the runs cover {} pixels, the image has {pixels}",
                total.map_or("too many".into(), |t| t.to_string())
            )));
        }
        let mut mask = Array2::from_elem((h, w), false);
        let mut at = 0usize;
        for (i, run) in runs.iter().enumerate() {
            let end = at + *run as usize;
            if i % 2 == 1 {
                for p in at..end {
                    mask[[p % h, p / h]] = true;
                }
            }
            at = end;
        }
        Ok(Mask(mask))
    }

    fn invalid(&self, why: String) -> CoreError {
        CoreError::InvalidRle {
            height: self.size[0],
            width: self.size[1],
            why,
        }
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

/// COCO's packing: each run (from the third on, its difference to the run before last) in groups
/// of five bits, least significant first, offset by ASCII 48.
fn pack(runs: &[u64]) -> String {
    let mut text = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut x = *run as i64;
        if i > 2 {
            x -= runs[i - 2] as i64;
        }
        loop {
            let group = (x & 0x1f) as u8;
            x >>= 5;
            let more = if group & 0x10 != 0 { x != -1 } else { x != 0 };
            text.push((group + if more { 0x20 } else { 0 } + 48) as char);
            if !more {
                break;
            }
        }
    }
    text
}

fn unpack(text: &str) -> Result<Vec<u64>, String> {
    let mut runs: Vec<u64> = Vec::new();
    let mut bytes = text.bytes();
    while let Some(first) = bytes.next() {
        let (mut x, mut shift, mut byte) = (0i64, 0u32, first);
        loop {
            let group = byte
                .checked_sub(48)
                .filter(|g| *g < 64)
                .ok_or_else(|| format!("character {:?} is not part of the code", byte as char))?;
            if shift >= 60 {
                return Err("a run length has too many digits".into());
            }
            x |= ((group & 0x1f) as i64) << shift;
            shift += 5;
            if group & 0x20 == 0 {
                if group & 0x10 != 0 {
                    x |= -1i64 << shift;
                }
                break;
            }
            byte = bytes.next().ok_or("the code ends inside a number")?;
        }
        if runs.len() > 2 {
            x = x
                .checked_add(runs[runs.len() - 2] as i64)
                .ok_or("a run length overflows")?;
        }
        runs.push(u64::try_from(x).map_err(|_| format!("run {} is negative", runs.len()))?);
    }
    Ok(runs)
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
