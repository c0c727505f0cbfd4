//! Metric fixtures of masks: DAVIS J and F, COCO run lengths.

use ndarray::Array2;
use serde_json::Value;
use tpo::core::geometry::{Mask, Rle, coco_box_iou};
use tpo::evaluation::files::vos::VosScores;
use tpo::heads::mask::metric::vos::{ObjectScores, VosOptions};
use tpo::heads::mask::metric::{
    BitMask, BoundaryTolerance, DecayBins, MetricStatistics, contour_accuracy, region_similarity,
};

use super::check::Report;
use super::fixture::{Failure, Fixture};

/// A list of the JSON.
pub fn list<'a>(value: &'a Value, what: &str) -> Result<&'a Vec<Value>, Failure> {
    value
        .as_array()
        .ok_or_else(|| format!("the fixture has no list `{what}`").into())
}

/// Numbers of a list; `null` is not a number.
pub fn numbers(value: &Value, what: &str) -> Result<Vec<f64>, Failure> {
    list(value, what)?
        .iter()
        .map(|v| match v {
            Value::Null => Ok(f64::NAN),
            v => v
                .as_f64()
                .ok_or_else(|| format!("`{what}` holds {v}").into()),
        })
        .collect()
}

fn strings(value: &Value, what: &str) -> Result<Vec<String>, Failure> {
    let all = list(value, what)?
        .iter()
        .map(|v| v.as_str().map(str::to_string));
    all.collect::<Option<_>>()
        .ok_or_else(|| format!("`{what}` holds something that is no string").into())
}

/// Largest distance of two lists; not-a-number only equals itself.
pub fn compare(report: &mut Report, name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    if got.len() != expected.len() {
        let (g, e) = (got.len(), expected.len());
        return report.expect(name, false, || format!("{g} values, expected {e}"));
    }
    let distance = |(g, e): (&f64, &f64)| match (g.is_nan(), e.is_nan()) {
        (true, true) => 0.0,
        (false, false) => (g - e).abs(),
        _ => f64::INFINITY,
    };
    let worst = got.iter().zip(expected).map(distance).fold(0.0, f64::max);
    report.measure(name, worst, tolerance);
}

pub fn optional(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

/// Images of a tensor `[.., h, w]`.
fn masks(fixture: &Fixture, key: &str) -> Result<Vec<BitMask>, Failure> {
    let shape = &fixture.stored(key)?.shape;
    let [.., h, w] = shape[..] else {
        return Err(format!("`{key}` has no image axes").into());
    };
    let values = fixture.ints(key)?;
    let images = values.chunks_exact((h * w).max(1));
    Ok(images
        .map(|v| BitMask::from_fn(h, w, |y, x| v[y * w + x] != 0))
        .collect())
}

pub fn davis_jf(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let json = &fixture.json;
    let [j_tol, f_tol, stats_tol, f32_tol] = [
        fixture.tolerance("J")?,
        fixture.tolerance("F")?,
        fixture.tolerance("stats")?,
        fixture.tolerance("f32_tensors")?,
    ];
    let wide = |v: Vec<f32>| -> Vec<f64> { v.into_iter().map(f64::from).collect() };
    for (s, size) in list(&json["per_size"], "per_size")?.iter().enumerate() {
        let images = masks(fixture, &format!("in.masks.{s}"))?;
        if let Some(radius) = size["dilation_radius"].as_u64() {
            let (h, w) = images.first().map_or((0, 0), BitMask::size);
            let found = BoundaryTolerance::default().radius(h, w);
            report.expect(&format!("radius {s}"), found as u64 == radius, || {
                format!("{found}, expected {radius}")
            });
        }
        let mut contours = Vec::new();
        for image in &images {
            let (b, (h, w)) = (image.boundary(), image.size());
            contours.extend((0..h * w).map(|i| b.get(i / w, i % w) as i64));
        }
        report.equal(fixture, &format!("out.bmap.{s}"), &contours)?;
        let (mut j, mut f) = (Vec::new(), Vec::new());
        for pair in fixture.int_rows(&format!("in.pairs.{s}"))? {
            let (truth, result) = (&images[pair[0] as usize], &images[pair[1] as usize]);
            j.push(region_similarity(truth, result)?);
            f.push(contour_accuracy(truth, result, Default::default())?.f);
        }
        compare(
            &mut report,
            &format!("J {s}"),
            &j,
            &numbers(&size["J"], "J")?,
            j_tol,
        );
        compare(
            &mut report,
            &format!("F {s}"),
            &f,
            &numbers(&size["F"], "F")?,
            f_tol,
        );
        for (class, got) in [("J", &j), ("F", &f)] {
            let key = format!("out.{class}.{s}");
            compare(
                &mut report,
                &key,
                got,
                &wide(fixture.floats(&key)?),
                f32_tol,
            );
        }
    }

    let big = &json["big"];
    let size = numbers(&big["size"], "big.size")?;
    let (h, w) = (size[0] as usize, size[1] as usize);
    let bits = fixture.ints("in.big_bits")?;
    let per_mask = *fixture
        .stored("in.big_bits")?
        .shape
        .last()
        .ok_or("no bits")?;
    let images: Vec<BitMask> = bits
        .chunks_exact(per_mask)
        .map(|bytes| {
            BitMask::from_fn(h, w, |y, x| {
                let i = y * w + x;
                bytes[i / 8] >> (7 - i % 8) & 1 == 1
            })
        })
        .collect();
    let (mut j, mut f, mut f5) = (Vec::new(), Vec::new(), Vec::new());
    for pair in images.chunks_exact(2) {
        j.push(region_similarity(&pair[0], &pair[1])?);
        f.push(contour_accuracy(&pair[0], &pair[1], Default::default())?.f);
        f5.push(contour_accuracy(&pair[0], &pair[1], BoundaryTolerance::Pixels(5))?.f);
    }
    let radius = BoundaryTolerance::default().radius(h, w);
    report.expect(
        "big radius",
        Some(radius as u64) == big["radius"].as_u64(),
        || format!("{radius}, expected {}", big["radius"]),
    );
    for (key, got, tol) in [
        ("J", &j, j_tol),
        ("F", &f, f_tol),
        ("F_bound_th_5", &f5, f_tol),
    ] {
        compare(
            &mut report,
            &format!("big {key}"),
            got,
            &numbers(&big[key], key)?,
            tol,
        );
    }

    let statistics = |report: &mut Report, name: &str, got: MetricStatistics, expected: &Value| {
        for (key, got) in [
            ("mean", got.mean),
            ("recall", got.recall),
            ("decay", got.decay),
        ] {
            let expected = expected[key].as_f64();
            compare(
                report,
                &format!("{name} {key}"),
                &[optional(got)],
                &[optional(expected)],
                stats_tol,
            );
        }
    };
    let options = VosOptions::default();
    let mut all = Vec::new();
    for (s, sequence) in list(&json["sequences"], "sequences")?.iter().enumerate() {
        let truth = masks(fixture, &format!("in.seq.{s}.gt"))?;
        let result = masks(fixture, &format!("in.seq.{s}.res"))?;
        let frames = fixture.stored(&format!("in.seq.{s}.gt"))?.shape[1];
        let objects = list(&sequence["objects"], "objects")?;
        for (o, expected) in objects.iter().enumerate() {
            let scored = options.protocol.scored(frames);
            let at = o * frames + scored.start..o * frames + scored.end;
            let pairs = truth[at.clone()]
                .iter()
                .cloned()
                .zip(result[at].iter().cloned());
            let name = format!("sequence {s} object {o}");
            let got = ObjectScores::new(name.clone(), pairs, &options)?;
            let j = numbers(&expected["J_per_frame"], "J_per_frame")?;
            compare(&mut report, &format!("{name} J"), &got.j_frames, &j, j_tol);
            let f = numbers(&expected["F_per_frame"], "F_per_frame")?;
            compare(&mut report, &format!("{name} F"), &got.f_frames, &f, f_tol);
            statistics(&mut report, &format!("{name} J"), got.j, &expected["J"]);
            statistics(&mut report, &format!("{name} F"), got.f, &expected["F"]);
            all.push(got);
        }
    }
    let got = VosScores::new(all, Default::default());
    for score in &got.scores {
        let expected = json["global_results"][&score.name].as_f64();
        compare(
            &mut report,
            &score.name,
            &[optional(score.value)],
            &[optional(expected)],
            stats_tol,
        );
    }

    for (c, curve) in list(&json["curves"], "curves")?.iter().enumerate() {
        let values = numbers(&curve["values"], "values")?;
        for (bins, key) in [
            (DecayBins::Official, "decay"),
            (DecayBins::OfficialNumpy1, "decay_numpy1"),
            (DecayBins::Exact, "decay_without_wrap"),
        ] {
            let got = MetricStatistics::new(&values, bins);
            let name = format!("curve {c} of {}", values.len());
            let expected = [optional(curve[key].as_f64())];
            compare(
                &mut report,
                &format!("{name} {key}"),
                &[optional(got.decay)],
                &expected,
                stats_tol,
            );
            if bins == DecayBins::Official {
                statistics(&mut report, &name, got, curve);
            }
        }
    }

    if json["void"].is_object() {
        let get = |name: &str| -> Result<BitMask, Failure> {
            let mut images = masks(fixture, &format!("in.void.{name}"))?;
            images.pop().ok_or_else(|| "no void image".into())
        };
        let void = get("void")?;
        let (truth, result) = (get("gt")?.without(&void), get("res")?.without(&void));
        let j = region_similarity(&truth, &result)?;
        let f = contour_accuracy(&truth, &result, Default::default())?.f;
        compare(
            &mut report,
            "void J",
            &[j],
            &[optional(json["void"]["J"].as_f64())],
            j_tol,
        );
        compare(
            &mut report,
            "void F",
            &[f],
            &[optional(json["void"]["F"].as_f64())],
            f_tol,
        );
    }
    report.nothing_left(fixture);
    Ok(report)
}

pub fn coco_rle(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let tolerance = fixture.tolerance("iou")?;
    for (s, size) in list(&fixture.json["per_size"], "per_size")?
        .iter()
        .enumerate()
    {
        let key = format!("in.masks.{s}");
        let [_, h, w] = fixture.stored(&key)?.shape[..] else {
            return Err(format!("`{key}` must have three axes").into());
        };
        let values = fixture.ints(&key)?;
        let dense: Vec<Mask> = values
            .chunks_exact((h * w).max(1))
            .map(|v| Mask(Array2::from_shape_fn((h, w), |(y, x)| v[y * w + x] != 0)))
            .collect();
        let codes: Vec<Rle> = dense.iter().map(Rle::encode).collect();
        let name = |what: &str| format!("{what} {s}");

        let counts = strings(&size["counts"], "counts")?;
        let got: Vec<String> = codes.iter().map(|c| c.counts.clone()).collect();
        report.expect(&name("counts"), got == counts, || "other strings".into());
        let runs: Vec<Vec<u64>> = serde_json::from_value(size["uncompressed"].clone())?;
        let got = codes.iter().map(Rle::runs).collect::<Result<Vec<_>, _>>()?;
        report.expect(&name("uncompressed"), got == runs, || "other runs".into());
        // Decoding the expected strings and building from the expected runs.
        let mut back = true;
        for ((counts, runs), mask) in counts.iter().zip(&runs).zip(&dense) {
            let rle = Rle {
                size: [h, w],
                counts: counts.clone(),
            };
            back &= rle.decode()? == *mask && Rle::from_runs([h, w], runs)? == rle;
        }
        report.expect(&name("decode"), back, || "another mask".into());
        let areas: Vec<u64> = serde_json::from_value(size["area"].clone())?;
        let got = codes.iter().map(Rle::area).collect::<Result<Vec<_>, _>>()?;
        report.expect(&name("area"), got == areas, || {
            format!("{got:?}, expected {areas:?}")
        });

        let boxes: Vec<[f64; 4]> = serde_json::from_value(size["bbox"].clone())?;
        let got = codes
            .iter()
            .map(Rle::coco_box)
            .collect::<Result<Vec<_>, _>>()?;
        report.expect(&name("bbox"), got == boxes, || {
            format!("{got:?}, expected {boxes:?}")
        });
        let flat: Vec<f64> = got.concat();
        exact_f32(&mut report, fixture, &format!("out.bbox.{s}"), &flat, 0.0)?;

        let at = |key: &str| -> Result<Vec<usize>, Failure> {
            Ok(serde_json::from_value(size[key].clone())?)
        };
        let pick = |key: &str| -> Result<Vec<Rle>, Failure> {
            Ok(at(key)?.into_iter().map(|i| codes[i].clone()).collect())
        };
        let (det, gt) = (pick("det")?, pick("gt")?);
        let flags = |key: &str| -> Result<Vec<bool>, Failure> {
            Ok(numbers(&size[key], key)?
                .iter()
                .map(|v| *v != 0.0)
                .collect())
        };
        for (key, crowd) in [
            ("iou", vec![false; gt.len()]),
            ("iou_crowd", flags("iscrowd")?),
            ("iou_all_crowd", vec![true; gt.len()]),
        ] {
            let got = Rle::iou_matrix(&det, &gt, &crowd)?.concat();
            let expected: Vec<Vec<f64>> = serde_json::from_value(size[key].clone())?;
            compare(&mut report, &name(key), &got, &expected.concat(), tolerance);
            exact_f32(&mut report, fixture, &format!("out.{key}.{s}"), &got, 1e-6)?;
        }
        let crowd = flags("bbox_iscrowd")?;
        let (det, gt) = (at("det")?, at("gt")?);
        let got: Vec<f64> = det
            .iter()
            .flat_map(|d| {
                gt.iter()
                    .zip(&crowd)
                    .map(|(g, c)| coco_box_iou(boxes[*d], boxes[*g], *c))
            })
            .collect();
        let expected: Vec<Vec<f64>> = serde_json::from_value(size["bbox_iou"].clone())?;
        compare(
            &mut report,
            &name("bbox_iou"),
            &got,
            &expected.concat(),
            tolerance,
        );

        let merge = &size["merge"];
        let of: Vec<usize> = serde_json::from_value(merge["of"].clone())?;
        let of: Vec<Rle> = of.into_iter().map(|i| codes[i].clone()).collect();
        for (key, intersect) in [("union", false), ("intersection", true)] {
            let got = Rle::merge(&of, intersect)?;
            let right = merge[key].as_str() == Some(&got.counts)
                && merge[format!("{key}_area")].as_u64() == Some(got.area()?);
            report.expect(&name(key), right, || {
                format!("{got:?}, expected {}", merge[key])
            });
        }
    }
    for (i, long) in list(&fixture.json["long_runs"], "long_runs")?
        .iter()
        .enumerate()
    {
        let size: [usize; 2] = serde_json::from_value(long["size"].clone())?;
        let runs: Vec<u64> = serde_json::from_value(long["uncompressed"].clone())?;
        let rle = Rle::from_runs(size, &runs)?;
        let bbox: [f64; 4] = serde_json::from_value(long["bbox"].clone())?;
        let right = long["counts"].as_str() == Some(&rle.counts)
            && rle.runs()? == runs
            && long["area"].as_u64() == Some(rle.area()?)
            && rle.coco_box()? == bbox;
        report.expect(&format!("long runs {i}"), right, || {
            format!("{rle:?}, expected {long}")
        });
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// Compares with a stored f32 tensor, value by value.
fn exact_f32(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    got: &[f64],
    tolerance: f64,
) -> Result<(), Failure> {
    let expected: Vec<f64> = fixture.floats(key)?.into_iter().map(f64::from).collect();
    let worst = got
        .iter()
        .zip(&expected)
        .map(|(g, e)| (g - e).abs())
        .fold(0.0, f64::max);
    report.expect(
        key,
        got.len() == expected.len() && worst <= tolerance,
        || {
            format!(
                "differs by {worst:.1e} in {} of {} values",
                got.len(),
                expected.len()
            )
        },
    );
    Ok(())
}
