//! Run-length masks as COCO writes them, and the operations that need no pixels.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::{Mask, code};
use crate::error::{CoreError, Result};

/// Masks larger than this are refused when decoding, so that a hostile header costs nothing.
const MAX_PIXELS: u64 = 1 << 28;

/// A run-length encoded mask in COCO's compressed form: runs go down the columns and begin with
/// background.
///
/// Reads COCO's JSON in both forms: `counts` as a string (compressed) or as a list of run lengths
/// (uncompressed); writes the compressed form. Equal masks made by this library have equal codes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawRle")]
pub struct Rle {
    /// `[height, width]` in pixels.
    pub size: [usize; 2],
    /// COCO's printable encoding of the run lengths.
    pub counts: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRle {
    size: [usize; 2],
    counts: RawCounts,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`counts` must be COCO's string or a list of run lengths"
)]
enum RawCounts {
    Text(String),
    Runs(Vec<u64>),
}

impl TryFrom<RawRle> for Rle {
    type Error = CoreError;
    fn try_from(raw: RawRle) -> Result<Self> {
        match raw.counts {
            RawCounts::Text(counts) => Ok(Self {
                size: raw.size,
                counts,
            }),
            RawCounts::Runs(runs) => Self::from_runs(raw.size, &runs),
        }
    }
}

impl Rle {
    /// Encodes a dense mask.
    pub fn encode(mask: &Mask) -> Self {
        let (h, w) = mask.size();
        let mut runs = Runs::default();
        for x in 0..w {
            for y in 0..h {
                runs.add(mask.0[[y, x]], 1);
            }
        }
        runs.finish([h, w])
    }

    /// A mask from run lengths that go down the columns, background first (COCO's uncompressed
    /// form); they must cover `[height, width]` exactly.
    pub fn from_runs(size: [usize; 2], runs: &[u64]) -> Result<Self> {
        check_cover(size, runs).map_err(|why| invalid(size, why))?;
        Ok(Self {
            size,
            counts: code::pack(runs),
        })
    }

    /// A mask without foreground.
    pub fn empty(size: [usize; 2]) -> Result<Self> {
        let pixels = pixels(size).map_err(|why| invalid(size, why))?;
        Self::from_runs(size, &[pixels])
    }

    /// Run lengths, background first. They are checked to cover the image exactly.
    pub fn runs(&self) -> Result<Vec<u64>> {
        let runs = code::unpack(&self.counts).map_err(|why| invalid(self.size, why))?;
        check_cover(self.size, &runs).map_err(|why| invalid(self.size, why))?;
        Ok(runs)
    }

    /// Decodes to a dense mask.
    pub fn decode(&self) -> Result<Mask> {
        let [h, w] = self.size;
        // The sides too: an image without area may have an absurd one.
        let absurd = |n: u64| n > MAX_PIXELS;
        if absurd(h as u64) || absurd(w as u64) || pixels(self.size).is_ok_and(absurd) {
            return Err(invalid(
                self.size,
                format!("more than {MAX_PIXELS} pixels are not decoded"),
            ));
        }
        let runs = self.runs()?;
        let mut mask = Array2::from_elem((h, w), false);
        for (start, end) in foreground(&runs) {
            for p in start as usize..end as usize {
                mask[[p % h, p / h]] = true;
            }
        }
        Ok(Mask(mask))
    }

    /// Number of foreground pixels.
    pub fn area(&self) -> Result<u64> {
        Ok(area(&self.runs()?))
    }

    /// COCO's box `[x, y, width, height]` in pixels: tight around the foreground, zeros for an
    /// empty mask.
    pub fn coco_box(&self) -> Result<[f64; 4]> {
        let h = self.size[0] as u64;
        let mut bounds: Option<[u64; 4]> = None;
        for (start, end) in foreground(&self.runs()?) {
            let (x0, x1) = (start / h, (end - 1) / h);
            let (y0, y1) = if x0 == x1 {
                (start % h, (end - 1) % h)
            } else {
                (0, h - 1) // a run that goes on in the next column touches both edges
            };
            let b = bounds.get_or_insert([x0, y0, x1, y1]);
            *b = [b[0].min(x0), b[1].min(y0), b[2].max(x1), b[3].max(y1)];
        }
        Ok(bounds.map_or([0.0; 4], |[x0, y0, x1, y1]| {
            [
                x0 as f64,
                y0 as f64,
                (x1 - x0 + 1) as f64,
                (y1 - y0 + 1) as f64,
            ]
        }))
    }

    /// Intersection over union of this *detection* with `truth`. Where the truth is a `crowd`
    /// region the denominator is the area of the detection alone, as in COCO. Two empty masks
    /// give 0.
    pub fn iou(&self, truth: &Self, crowd: bool) -> Result<f64> {
        self.same_size(truth)?;
        Ok(runs_iou(&self.runs()?, &truth.runs()?, crowd))
    }

    /// IoU of all `detections` (rows) with all `truths` (columns); `crowd` has one flag per truth.
    pub fn iou_matrix(
        detections: &[Self],
        truths: &[Self],
        crowd: &[bool],
    ) -> Result<Vec<Vec<f64>>> {
        if crowd.len() != truths.len() {
            return Err(CoreError::Shape {
                place: "Rle::iou_matrix",
                what: "crowd flags",
                expected: format!("[{}], one per truth", truths.len()),
                found: vec![crowd.len()],
            });
        }
        let truth_runs: Vec<_> = truths.iter().map(Self::runs).collect::<Result<_>>()?;
        detections
            .iter()
            .map(|detection| {
                let runs = detection.runs()?;
                truths
                    .iter()
                    .zip(&truth_runs)
                    .zip(crowd)
                    .map(|((truth, t), crowd)| {
                        detection.same_size(truth)?;
                        Ok(runs_iou(&runs, t, *crowd))
                    })
                    .collect()
            })
            .collect()
    }

    /// Union, or intersection, of masks of one size. No mask at all gives an error, because
    /// nothing says how large the result is.
    pub fn merge(masks: &[Self], intersect: bool) -> Result<Self> {
        let Some((first, rest)) = masks.split_first() else {
            return Err(invalid([0, 0], "a merge of no masks has no size".into()));
        };
        let mut merged = first.runs()?;
        for mask in rest {
            first.same_size(mask)?;
            let mut out = Runs::default();
            walk(&merged, &mask.runs()?, |a, b, n| {
                out.add(if intersect { a && b } else { a || b }, n)
            });
            merged = out.runs();
        }
        Self::from_runs(first.size, &merged)
    }

    fn same_size(&self, other: &Self) -> Result<()> {
        if self.size == other.size {
            return Ok(());
        }
        Err(CoreError::Shape {
            place: "Rle",
            what: "second mask",
            expected: format!("{:?}", self.size),
            found: other.size.to_vec(),
        })
    }
}

/// Joins neighbouring runs of the same value.
#[derive(Default)]
struct Runs {
    done: Vec<u64>,
    value: bool,
    length: u64,
}

impl Runs {
    fn add(&mut self, value: bool, length: u64) {
        if value != self.value {
            self.done.push(self.length);
            (self.value, self.length) = (value, 0);
        }
        self.length += length;
    }

    fn runs(mut self) -> Vec<u64> {
        self.done.push(self.length);
        self.done
    }

    fn finish(self, size: [usize; 2]) -> Rle {
        Rle {
            size,
            counts: code::pack(&self.runs()),
        }
    }
}

fn pixels([h, w]: [usize; 2]) -> Result<u64, String> {
    (h as u64)
        .checked_mul(w as u64)
        .filter(|p| *p <= i64::MAX as u64)
        .ok_or_else(|| "the size overflows".into())
}

fn check_cover(size: [usize; 2], runs: &[u64]) -> Result<(), String> {
    let pixels = pixels(size)?;
    let total = runs.iter().try_fold(0u64, |sum, r| sum.checked_add(*r));
    if total == Some(pixels) {
        return Ok(());
    }
    let total = total.map_or("too many".into(), |t| t.to_string());
    Err(format!(
        "the runs cover {total} pixels, the image has {pixels}; size is [height, width]"
    ))
}

fn invalid(size: [usize; 2], why: String) -> CoreError {
    CoreError::InvalidRle {
        height: size[0],
        width: size[1],
        why,
    }
}

/// Start and end of each foreground run that is not empty.
fn foreground(runs: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut end = 0;
    runs.iter().enumerate().filter_map(move |(i, run)| {
        let start = end;
        end += run;
        (i % 2 == 1 && *run > 0).then_some((start, end))
    })
}

fn area(runs: &[u64]) -> u64 {
    runs.iter().skip(1).step_by(2).sum()
}

/// Calls `each` with both values and a length, over the two run lists cut at every change.
fn walk(a: &[u64], b: &[u64], mut each: impl FnMut(bool, bool, u64)) {
    let (mut ia, mut ib) = (0, 0);
    let (mut left_a, mut left_b) = (
        a.first().copied().unwrap_or(0),
        b.first().copied().unwrap_or(0),
    );
    loop {
        while left_a == 0 && ia + 1 < a.len() {
            ia += 1;
            left_a = a[ia];
        }
        while left_b == 0 && ib + 1 < b.len() {
            ib += 1;
            left_b = b[ib];
        }
        let n = left_a.min(left_b);
        if n == 0 {
            return;
        }
        each(ia % 2 == 1, ib % 2 == 1, n);
        left_a -= n;
        left_b -= n;
    }
}

fn runs_iou(detection: &[u64], truth: &[u64], crowd: bool) -> f64 {
    let (mut inter, mut union) = (0u64, 0u64);
    walk(detection, truth, |d, t, n| {
        inter += if d && t { n } else { 0 };
        union += if d || t { n } else { 0 };
    });
    if inter == 0 {
        return 0.0;
    }
    let over = if crowd { area(detection) } else { union };
    inter as f64 / over as f64
}

/// COCO's IoU of boxes `[x, y, width, height]`; where the truth is a `crowd` region the
/// denominator is the area of the detection alone. 0 where a number is not finite.
pub fn coco_box_iou(detection: [f64; 4], truth: [f64; 4], crowd: bool) -> f64 {
    if detection.iter().chain(&truth).any(|v| !v.is_finite()) {
        return 0.0;
    }
    let [dx, dy, dw, dh] = detection;
    let [tx, ty, tw, th] = truth;
    let w = (dx + dw).min(tx + tw) - dx.max(tx);
    let h = (dy + dh).min(ty + th) - dy.max(ty);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let inter = w * h;
    let over = if crowd {
        dw * dh
    } else {
        dw * dh + tw * th - inter
    };
    inter / over
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rle(rows: &[&str]) -> Rle {
        let w = rows[0].len();
        Rle::encode(&Mask(Array2::from_shape_fn((rows.len(), w), |(y, x)| {
            rows[y].as_bytes()[x] == b'#'
        })))
    }

    #[test]
    fn numbers_by_hand() {
        let a = rle(&["##..", "##.."]);
        let b = rle(&[".#..", ".##."]);
        assert_eq!(
            (a.area().unwrap(), a.coco_box().unwrap()),
            (4, [0.0, 0.0, 2.0, 2.0])
        );
        assert_eq!(b.coco_box().unwrap(), [1.0, 0.0, 2.0, 2.0]);
        assert_eq!(a.iou(&b, false).unwrap(), 2.0 / 5.0);
        assert_eq!(b.iou(&a, true).unwrap(), 2.0 / 3.0);
        let both = Rle::merge(&[a.clone(), b.clone()], true).unwrap();
        assert_eq!(both, rle(&[".#..", ".#.."]));
        assert_eq!(Rle::merge(&[a, b], false).unwrap(), rle(&["##..", "###."]));
        let empty = Rle::empty([2, 4]).unwrap();
        assert_eq!(empty.coco_box().unwrap(), [0.0; 4]);
        assert_eq!(empty.iou(&empty, false).unwrap(), 0.0);
    }

    #[test]
    fn both_json_forms_are_read_and_hostile_ones_refused() {
        let a: Rle = serde_json::from_str(r#"{"size":[2,2],"counts":[0,2,2]}"#).unwrap();
        let b: Rle = serde_json::from_str(r#"{"size":[2,2],"counts":"022"}"#).unwrap();
        assert_eq!(a, b);
        for bad in [
            r#"{"size":[2,2],"counts":[1,2]}"#,
            r#"{"size":[2,2],"counts":[18446744073709551615,5]}"#,
            r#"{"size":[2,2],"counts":[-1,5]}"#,
            r#"{"size":[2],"counts":"022"}"#,
            r#"{"size":[2,2],"counts":null}"#,
            r#"{"size":[2,2],"counts":"022","extra":1}"#,
        ] {
            assert!(serde_json::from_str::<Rle>(bad).is_err(), "{bad}");
        }
        let huge = Rle {
            size: [usize::MAX, usize::MAX],
            counts: "0".into(),
        };
        assert!(huge.area().is_err() && huge.coco_box().is_err());
        assert!(Rle::merge(&[], false).is_err());
        assert!(
            Rle::merge(
                &[Rle::empty([1, 2]).unwrap(), Rle::empty([2, 1]).unwrap()],
                false
            )
            .is_err()
        );
        for size in [[0, usize::MAX], [usize::MAX, 0], [0, 1 << 40]] {
            let flat = Rle {
                size,
                counts: String::new(),
            };
            assert!(flat.decode().is_err(), "{size:?}");
        }
        // A width of zero has no columns to walk.
        let thin = Rle::empty([0, 7]).unwrap();
        assert_eq!(
            (thin.area().unwrap(), thin.decode().unwrap().size()),
            (0, (0, 7))
        );
    }

    #[test]
    fn box_iou_by_hand() {
        let (d, t) = ([0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(coco_box_iou(d, t, false), 1.0 / 7.0);
        assert_eq!(coco_box_iou(d, t, true), 0.25);
        assert_eq!(coco_box_iou(d, [5.0, 5.0, 1.0, 1.0], false), 0.0);
        assert_eq!(coco_box_iou(d, [f64::NAN; 4], false), 0.0);
    }

    proptest! {
        #[test]
        fn runs_and_pixels_agree(
            h in 1usize..12,
            w in 1usize..12,
            a in proptest::collection::vec(any::<bool>(), 144),
            b in proptest::collection::vec(any::<bool>(), 144),
            crowd in any::<bool>(),
        ) {
            let mask = |bits: &[bool]| Mask(Array2::from_shape_fn((h, w), |(y, x)| bits[y * w + x]));
            let (ma, mb) = (mask(&a), mask(&b));
            let (ra, rb) = (Rle::encode(&ma), Rle::encode(&mb));
            prop_assert_eq!(ra.area().unwrap(), ma.area() as u64);
            let tight = ma.bounding_box().map_or([0.0; 4], |b| {
                [b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0].map(f64::from)
            });
            prop_assert_eq!(ra.coco_box().unwrap(), tight);
            let inter = ma.0.iter().zip(&mb.0).filter(|(a, b)| **a && **b).count() as f64;
            let union = ma.0.iter().zip(&mb.0).filter(|(a, b)| **a || **b).count() as f64;
            let over = if crowd { ma.area() as f64 } else { union };
            let iou = if inter == 0.0 { 0.0 } else { inter / over };
            prop_assert_eq!(ra.iou(&rb, crowd).unwrap(), iou);
            for intersect in [false, true] {
                let dense = Mask(Array2::from_shape_fn((h, w), |p| {
                    if intersect { ma.0[p] && mb.0[p] } else { ma.0[p] || mb.0[p] }
                }));
                let merged = Rle::merge(&[ra.clone(), rb.clone()], intersect).unwrap();
                prop_assert_eq!(merged, Rle::encode(&dense));
            }
        }

        #[test]
        fn any_text_gives_a_value_or_an_error(text in "[0-o]{0,24}", h in 0usize..50, w in 0usize..50) {
            let rle = Rle { size: [h, w], counts: text };
            let _ = (rle.area(), rle.coco_box(), rle.iou(&rle, true), Rle::merge(&[rle.clone(), rle.clone()], false));
        }
    }
}
