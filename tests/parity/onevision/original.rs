//! The original's files and code.

use burn::tensor::{Int, Tensor, TensorData};
use tpo::core::geometry::{Merge, Packing, Pooling, VideoNewline};
use tpo::core::traits::{Connector as _, VisionEncoder, VisualInput};

use super::super::llm::cross_entropy;
use super::super::weights::compare_gradients;
use super::*;

/// `ov_original`: lmms-lab's names and code, one mark in the place of a visual.
pub fn original(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::Original, &device.clone().autodiff())?;
    let sizes = sizes(fixture, "in.image_sizes")?;
    let mut visuals = base.images(fixture, "in.tiles_0", &sizes[..1])?;
    visuals.extend(base.videos(fixture, "in.frames_1")?);
    visuals.extend(base.images(fixture, "in.tiles_2", &sizes[2..3])?);
    visuals.extend(base.images(fixture, "in.tiles_3", &sizes[3..4])?);
    variants(&mut report, fixture, &base, &visuals)?;
    let rows = base.model.encode_visuals(visuals, None)?.ok_or("no rows")?;

    // The mark becomes as many slots as the visual has rows; labels there are none.
    let (ids, labels) = (
        fixture.int_rows("in.input_ids")?,
        fixture.int_rows("in.labels")?,
    );
    let real = mask_rows(fixture, "in.attention_mask")?;
    let mut counts = rows.counts.iter();
    let mut prompts: Vec<Vec<(Slot, i64)>> = Vec::new();
    for row in 0..ids.len() {
        let mut prompt = Vec::new();
        for at in (0..ids[row].len()).filter(|at| real[row][*at]) {
            match ids[row][at] {
                -200 => {
                    let count = counts.next().ok_or("more marks than visuals")?;
                    prompt.extend(vec![(Slot::Visual, -100); *count]);
                }
                id => prompt.push((Slot::Text(id), labels[row][at])),
            }
        }
        prompts.push(prompt);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let cut = fixture.json["max_length_cut"]
        .as_u64()
        .ok_or("no max_length_cut")? as usize;
    for (part, length, left) in [
        ("right", longest, false),
        ("left", longest, true),
        ("cut", cut, false),
    ] {
        let whole = prompts.iter().map(|prompt| {
            let mut row = prompt.clone();
            row.truncate(length);
            let padding = vec![(Slot::Padding, -100); length - row.len()];
            if left {
                [padding, row].concat()
            } else {
                [row, padding].concat()
            }
        });
        let whole: Vec<Vec<(Slot, i64)>> = whole.collect();
        let mask: Vec<Vec<bool>> = whole
            .iter()
            .map(|row| {
                row.iter()
                    .map(|(slot, _)| !matches!(slot, Slot::Padding))
                    .collect()
            })
            .collect();
        let mut labels: Vec<Vec<i64>> = whole
            .iter()
            .map(|row| row.iter().map(|(_, label)| *label).collect())
            .collect();
        let flags: Vec<i64> = mask.iter().flatten().map(|real| i64::from(*real)).collect();
        report.equal(fixture, &format!("out.{part}.attention_mask"), &flags)?;
        report.equal(fixture, &format!("out.{part}.labels"), &labels.concat())?;
        let slots = whole
            .iter()
            .map(|row| row.iter().map(|(slot, _)| *slot).collect());
        let slots: Vec<Vec<Slot>> = slots.collect();
        // A cut row leaves visual rows over.
        let kept = kept_rows(&prompts, length, rows.rows.clone());
        let embeds = base.embeds(&slots, Some(kept));
        report.close(fixture, &format!("out.{part}.embeds"), embeds.clone())?;
        let logits = base.compare(&mut report, fixture, part, embeds, &mask)?;
        // The published code predicts a row's first label from the padding before it, whose logits the fixture has as
        // zeros. Without these labels the side of the padding makes no difference.
        let mut from_padding = false;
        for (labels, mask) in labels.iter_mut().zip(&mask) {
            let first = mask.iter().position(|real| *real).unwrap_or(0);
            if first > 0 && labels[first] != -100 {
                labels[first] = -100;
                from_padding = true;
            }
        }
        let loss = cross_entropy(logits, &labels);
        let key = format!("out.{part}.loss");
        if from_padding {
            report.leave(&key);
            report.close(fixture, "out.right.loss", loss.clone())?;
        } else {
            report.close(fixture, &key, loss.clone())?;
        }
        if part == "right" {
            let grads = loss.backward();
            compare_gradients(
                &mut report,
                fixture,
                "grad.",
                &base.model,
                &base.keys,
                &grads,
            )?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// The visual rows of prompts that are cut after so many positions.
fn kept_rows(prompts: &[Vec<(Slot, i64)>], length: usize, rows: Tensor<2>) -> Tensor<2> {
    let all = prompts.iter().flat_map(|p| p.iter().enumerate());
    let visual = all.filter(|(_, (slot, _))| matches!(slot, Slot::Visual));
    let kept = visual.zip(0_i64..).filter(|((at, _), _)| *at < length);
    let kept: Vec<i64> = kept.map(|(_, row)| row).collect();
    let index = TensorData::new(kept.clone(), [kept.len()]);
    let index = Tensor::<1, Int>::from_data(index, &rows.device());
    rows.select(0, index)
}

/// Other ways to make rows of the first image and the video.
fn variants(
    report: &mut Report,
    fixture: &Fixture,
    base: &Base,
    visuals: &[VisualInput],
) -> Result<(), Failure> {
    let ours = &base.packing;
    let images = [
        ("spatial_unpad.anyres", Merge::SpatialUnpad, None),
        ("spatial.anyres", Merge::Spatial, None),
        ("spatial_unpad.anyres_max_4", Merge::SpatialUnpad, Some(4)),
        (
            "spatial_unpad_nobase.anyres_max_9",
            Merge::SpatialUnpadNobase,
            Some(9),
        ),
        ("flat.anyres_max_9", Merge::Flat, Some(9)),
    ];
    let images = images.map(|(name, merge, max_tiles)| {
        let packing = Packing {
            merge,
            max_tiles,
            ..ours.clone()
        };
        (format!("out.image.{name}"), packing, 0)
    });
    let videos = [
        (
            "bilinear.one_token",
            Pooling::Bilinear,
            VideoNewline::OneToken,
        ),
        ("bilinear.grid", Pooling::Bilinear, VideoNewline::Grid),
        ("bilinear.frame", Pooling::Bilinear, VideoNewline::Frame),
        (
            "bilinear.no_token",
            Pooling::Bilinear,
            VideoNewline::NoToken,
        ),
        (
            "average.one_token",
            Pooling::Average,
            VideoNewline::OneToken,
        ),
        ("max.one_token", Pooling::Max, VideoNewline::OneToken),
    ];
    let videos = videos.map(|(name, pooling, newline)| {
        let packing = Packing {
            pooling,
            newline,
            ..ours.clone()
        };
        (format!("out.video.{name}"), packing, 1)
    });
    for (key, packing, visual) in images.into_iter().chain(videos) {
        let VisualInput { pixels, shape } = visuals[visual].clone();
        let features = base.model.vision.encode(pixels.unsqueeze())?;
        let connector = base.connector(packing)?;
        let rows = connector.connect(features, &[shape], None)?;
        report.close(fixture, &key, rows.rows)?;
    }
    Ok(())
}
