//! Filling polygons exactly as COCO does.

use super::{Mask, Rle};
use crate::error::{CoreError, Result};

/// COCO traces the outline on a grid five times as fine as the pixels.
const SCALE: f64 = 5.0;

/// Points of the traced outline beyond which a polygon is refused (a hostile coordinate would
/// otherwise cost memory without bound).
const MAX_OUTLINE: u64 = 1 << 24;

impl Rle {
    /// The union of filled polygons, each a list `[x0, y0, x1, y1, ..]` in pixels, in an image of
    /// `[height, width]`: COCO's `segmentation` field, filled by COCO's own rule.
    pub fn from_polygons(size: [usize; 2], polygons: &[Vec<f64>]) -> Result<Self> {
        let filled = polygons
            .iter()
            .map(|p| fill(size, p))
            .collect::<Result<Vec<_>>>()?;
        if filled.is_empty() {
            return Self::empty(size);
        }
        Self::merge(&filled, false)
    }
}

impl Mask {
    /// As [`Rle::from_polygons`], decoded.
    pub fn from_polygons(size: [usize; 2], polygons: &[Vec<f64>]) -> Result<Self> {
        Rle::from_polygons(size, polygons)?.decode()
    }
}

fn fill(size: [usize; 2], xy: &[f64]) -> Result<Rle> {
    let [h, w] = size;
    let invalid = |why: String| CoreError::InvalidRle {
        height: h,
        width: w,
        why,
    };
    if xy.len() < 6 || xy.len() % 2 == 1 {
        return Err(invalid(format!(
            "a polygon has {} numbers; it needs x and y of at least three corners",
            xy.len()
        )));
    }
    if let Some(bad) = xy.iter().find(|v| v.is_nan() || v.abs() >= 1e7) {
        return Err(invalid(format!("a polygon has the coordinate {bad}")));
    }
    let corner = |i: usize| {
        let at = |v: f64| (SCALE * v + 0.5) as i64;
        let i = i % (xy.len() / 2);
        (at(xy[2 * i]), at(xy[2 * i + 1]))
    };
    let corners = xy.len() / 2;
    let steps: u64 = (0..corners)
        .map(|i| {
            let ((xs, ys), (xe, ye)) = (corner(i), corner(i + 1));
            xs.abs_diff(xe).max(ys.abs_diff(ye)) + 1
        })
        .sum();
    if steps > MAX_OUTLINE {
        return Err(invalid("a polygon is far larger than any image".into()));
    }

    let mut outline: Vec<(i64, i64)> = Vec::with_capacity(steps as usize);
    for i in 0..corners {
        let ((mut xs, mut ys), (mut xe, mut ye)) = (corner(i), corner(i + 1));
        let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
        let flip = (dx >= dy && xs > xe) || (dx < dy && ys > ye);
        if flip {
            (xs, xe, ys, ye) = (xe, xs, ye, ys);
        }
        let long = dx.max(dy);
        let slope = match (long, dx >= dy) {
            (0, _) => 0.0,
            (_, true) => (ye - ys) as f64 / dx as f64,
            (_, false) => (xe - xs) as f64 / dy as f64,
        };
        for d in 0..=long {
            let t = if flip { long - d } else { d };
            let across = |from: i64| (from as f64 + slope * t as f64 + 0.5) as i64;
            outline.push(if dx >= dy {
                (t + xs, across(ys))
            } else {
                (across(xs), t + ys)
            });
        }
    }

    // Where the outline crosses the centre line of a pixel column, the column changes its value.
    let mut changes: Vec<u64> = Vec::new();
    for pair in outline.windows(2) {
        let ((u0, v0), (u1, v1)) = (pair[0], pair[1]);
        if u0 == u1 {
            continue;
        }
        let x = if u1 < u0 { u1 } else { u1 - 1 };
        let x = (x as f64 + 0.5) / SCALE - 0.5;
        if x.floor() != x || x < 0.0 || x > w as f64 - 1.0 {
            continue;
        }
        let y = (v0.min(v1) as f64 + 0.5) / SCALE - 0.5;
        let y = y.clamp(0.0, h as f64).ceil();
        changes.push(x as u64 * h as u64 + y as u64);
    }
    changes.push(h as u64 * w as u64);
    changes.sort_unstable();
    let mut runs: Vec<u64> = Vec::with_capacity(changes.len());
    let mut last = 0;
    // Two changes at one place cancel each other.
    let mut lengths = changes.iter().map(|at| {
        let length = at - last;
        last = *at;
        length
    });
    runs.extend(lengths.next());
    while let Some(length) = lengths.next() {
        if length > 0 {
            runs.push(length);
        } else if let (Some(next), Some(run)) = (lengths.next(), runs.last_mut()) {
            *run += next;
        }
    }
    Rle::from_runs(size, &runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rectangle_fills_its_pixels() {
        let r =
            Rle::from_polygons([4, 5], &[vec![1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]).unwrap();
        assert_eq!(r.coco_box().unwrap(), [1.0, 1.0, 3.0, 2.0]);
        assert_eq!(r.area().unwrap(), 6);
    }

    /// Codes of pycocotools 2.0.11 for the same polygons.
    #[test]
    fn slanted_and_outlying_polygons_are_those_of_coco() {
        for (size, polygon, expected) in POLYGONS {
            let r = Rle::from_polygons(*size, &[polygon.to_vec()]).unwrap();
            assert_eq!(r.counts, *expected, "{polygon:?}");
        }
    }
    const POLYGONS: &[([usize; 2], &[f64], &str)] = &[
        (
            [20, 30],
            &[2.5, 3.5, 25.2, 1.1, 14.0, 18.9],
            "o12b01O1O2N1O1O2N1O2N1N2O00O1N2N2O1N2O1N1O2O1NU3",
        ),
        (
            [20, 30],
            &[-5.0, -4.0, 40.0, 3.0, 12.5, 35.0],
            "08<2N2N3M2N2Ne:0[E000O1N2O1O0",
        ),
        ([7, 5], &[0.4, 0.4, 4.6, 0.4, 2.2, 6.7], "0163M2NM3N2"),
        ([9, 9], &[4.0, 4.0, 4.0, 4.0, 8.0, 8.0], "a2"),
        (
            [30, 20],
            &[3.0, 3.0, 17.0, 3.0, 3.0, 27.0, 17.0, 27.0],
            "m21f00@1=1C1:0F260J220N1O111L040L04NO11N20NN60JN:0FN=1CN`00W2",
        ),
        (
            [12, 12],
            &[6.0, 0.0, 12.0, 6.0, 6.0, 12.0, 0.0, 6.0],
            "51:2N2N2N2N2O01N2N2N2N2NL",
        ),
        (
            [20, 39],
            &[13.76, 24.99, 26.03, -0.85, -3.37, 36.2, 8.45, 7.25],
            "_21a02M3N2M3N24L3L4L03M1O1O1N10O1O001O1O1O001Nj8",
        ),
        (
            [35, 39],
            &[
                18.86, 26.68, 3.23, 26.47, 37.67, 21.11, 31.58, 28.23, -0.93, 32.4, 24.37, 10.46,
                -2.51, 37.55,
            ],
            "o01Q11QOOk02TOOl030MUO0j00WOOi01WO0h00YOOg01ZOOe025OROOn00SO11Of00ZO10Oe00\\O1N0e0O^O1MOe00_O1K0e0O@2KOd0OB5=KD5e00000O01000000000000O010000O1O1O1O0Oc1",
        ),
        (
            [35, 29],
            &[
                14.96, 34.44, 17.34, 40.91, 38.19, 0.68, 2.53, 6.42, 42.34, 16.94, 26.08, 10.45,
            ],
            "_31R10000001N1000001O000O2O0JL]O4a0N_O2?0A1<1DO94FM85HK65LL141LM45LI49KF5;LF1<ODO>1BM>",
        ),
        (
            [37, 29],
            &[
                12.84, 24.08, 24.04, 39.4, 28.74, 40.59, 37.11, 43.57, 28.22, 3.83, 37.31, 42.3,
                39.43, 23.32,
            ],
            "i?1T11O2N1O1O2N1O1O2N1O00000000000",
        ),
    ];

    #[test]
    fn hostile_polygons_are_errors() {
        for bad in [
            vec![],
            vec![0.0; 5],
            vec![0.0; 4],
            vec![0.0, 0.0, f64::NAN, 1.0, 1.0, 1.0],
            vec![0.0, 0.0, 1e300, 1.0, 1.0, 1.0],
            vec![0.0, 0.0, 9e6, 9e6, 1.0, 1.0],
        ] {
            assert!(Rle::from_polygons([4, 4], &[bad]).is_err());
        }
    }
}
