//! Metric fixtures of tracking: LaSOT and GOT-10k.

use tpo::heads::mask::metric::track::{
    Got10kScores, Got10kSequence, LasotScores, LasotSequence, centre_error, got10k,
};

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::metrics::{compare, list, numbers, optional};

pub fn tracking(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let curves = fixture.tolerance("curves")?;
    let overlaps = fixture.tolerance("overlaps")?;
    let boxes = |key: String| -> Result<Vec<[f64; 4]>, Failure> {
        let values = fixture.floats(&key)?;
        let rows = values.chunks_exact(4);
        Ok(rows
            .map(|b| [b[0], b[1], b[2], b[3]].map(f64::from))
            .collect())
    };
    let (lasot, got10k) = (&fixture.json["lasot"], &fixture.json["got10k"]);

    let mut all = Vec::new();
    for (q, expected) in list(&lasot["per_sequence"], "per_sequence")?
        .iter()
        .enumerate()
    {
        let absent = fixture.ints(&format!("in.{q}.absent"))?;
        let sequence = LasotSequence {
            name: q.to_string(),
            truth: boxes(format!("in.{q}.gt"))?,
            predicted: boxes(format!("in.{q}.pred"))?,
            absent: absent.iter().map(|a| *a == 1).collect(),
        };
        let got = sequence.score()?;
        for (key, got, tol) in [
            ("overlap", &got.overlap, overlaps),
            ("center_error", &got.centre_error, overlaps),
            ("norm_center_error", &got.normalised_error, overlaps),
            ("success_curve", &got.success_curve, curves),
            ("precision_curve", &got.precision_curve, curves),
            ("norm_precision_curve", &got.normalised_curve, curves),
        ] {
            let expected = numbers(&expected[key], key)?;
            compare(
                &mut report,
                &format!("LaSOT {q} {key}"),
                got,
                &expected,
                tol,
            );
        }
        for (key, got) in [
            ("frames", got.frames as f64),
            ("success_auc", got.success_auc),
            ("precision_20px", got.precision),
            ("norm_precision_0_2", got.normalised_precision),
            ("norm_precision_auc_0_0_5", got.normalised_precision_auc),
        ] {
            let expected = [optional(expected[key].as_f64())];
            compare(
                &mut report,
                &format!("LaSOT {q} {key}"),
                &[got],
                &expected,
                curves,
            );
        }
        all.push(got);
    }
    let got = LasotScores::new(all)?;
    for (key, got) in [
        ("success_auc", got.success_auc),
        ("precision_20px", got.precision),
        ("norm_precision_0_2", got.normalised_precision),
        ("norm_precision_auc_0_0_5", got.normalised_precision_auc),
    ] {
        let expected = [optional(lasot["overall"][key].as_f64())];
        compare(
            &mut report,
            &format!("LaSOT {key}"),
            &[got],
            &expected,
            curves,
        );
    }

    let mut all = Vec::new();
    for (q, expected) in list(&got10k["per_sequence"], "per_sequence")?
        .iter()
        .enumerate()
    {
        let cover = fixture.ints(&format!("in.{q}.cover"))?;
        // Nothing is stored of a sequence of which no frame counts.
        let scored = !expected.is_null();
        let resolution = if scored {
            numbers(&expected["resolution"], "resolution")?
        } else {
            vec![f64::MAX; 2]
        };
        let sequence = Got10kSequence {
            name: q.to_string(),
            truth: boxes(format!("in.{q}.gt"))?,
            predicted: boxes(format!("in.{q}.pred_got10k"))?,
            cover: cover.iter().map(|c| *c as f64).collect(),
            resolution: Some([resolution[0], resolution[1]]),
        };
        let got = sequence.score()?;
        if !scored {
            let right = got.ao.is_none() && got.overlap.is_empty();
            report.expect(&format!("GOT-10k {q}"), right, || "a frame counts".into());
            all.push(got);
            continue;
        }
        let pairs = || sequence.predicted.iter().zip(&sequence.truth);
        let unbounded: Vec<f64> = pairs()
            .skip(1)
            .map(|(p, t)| got10k::rect_iou(*p, *t, None))
            .collect();
        let errors: Vec<f64> = pairs().map(|(p, t)| centre_error(*p, *t)).collect();
        for (key, got, tol) in [
            ("iou", &got.overlap, overlaps),
            ("iou_unbounded_all", &unbounded, overlaps),
            ("center_error", &errors, overlaps),
            ("success_curve_101", &got.success_curve(), curves),
        ] {
            let expected = numbers(&expected[key], key)?;
            compare(
                &mut report,
                &format!("GOT-10k {q} {key}"),
                got,
                &expected,
                tol,
            );
        }
        for (key, got) in [
            ("ao", got.ao),
            ("sr_0_50", got.sr_50),
            ("sr_0_75", got.sr_75),
        ] {
            let expected = [optional(expected[key].as_f64())];
            compare(
                &mut report,
                &format!("GOT-10k {q} {key}"),
                &[optional(got)],
                &expected,
                curves,
            );
        }
        all.push(got);
    }
    let got = Got10kScores::new(all);
    let frames = &got10k["overall"]["toolkit_frame_average"];
    let sequences = &got10k["overall"]["mean_of_sequences"];
    for (i, (key, value)) in [
        ("ao", got.ao),
        ("sr_0_50", got.sr_50),
        ("sr_0_75", got.sr_75),
    ]
    .into_iter()
    .enumerate()
    {
        let expected = [optional(frames[key].as_f64())];
        compare(
            &mut report,
            &format!("GOT-10k {key}"),
            &[optional(value)],
            &expected,
            curves,
        );
        let mean = [optional(got.mean_of_sequences[i])];
        let expected = [optional(sequences[key].as_f64())];
        compare(
            &mut report,
            &format!("GOT-10k sequences {key}"),
            &mean,
            &expected,
            curves,
        );
    }
    let expected = numbers(&frames["success_curve_101"], "success_curve_101")?;
    compare(
        &mut report,
        "GOT-10k success_curve_101",
        &got.success_curve,
        &expected,
        curves,
    );
    report.nothing_left(fixture);
    Ok(report)
}
