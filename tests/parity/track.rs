//! SAM 2 on a video, and the mask head of the assembled model.

use burn::tensor::{Device, Tensor};
use ndarray::Array2;
use tpo::core::geometry::BoxPixels;
use tpo::heads::mask::sam2::{Sam2Config, sam2_hugging_face_keys};
use tpo::heads::mask::track::{
    Click, FrameMasks, Keep, ObjectId, Propagation, TrackOptions, TrackState, VideoFrame,
};

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::sam2;
use super::weights::{Stored, load};

const OBJECT: ObjectId = ObjectId(1);

/// `sam2_video_*`: an embedding on frame 0, followed through the video; bounded and unbounded.
pub fn video(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let model = sam2::model(fixture, device)?;
    let images = sam2::frames(fixture, device)?;
    let frames = frames_of(fixture, images)?;
    let area = fixture.json["fill_hole_area"].as_u64().map(|n| n as usize);
    let tokens = fixture.tensor::<3>("in.box_embed", device)?;
    if fixture.has("in.box_norm") {
        // The stored embedding is the prompt encoder's, for this box.
        let side = model.config().image_size as f32;
        let corners: Vec<f32> = fixture.floats("in.box_norm")?;
        let [x0, y0, x1, y1] = corners[..] else {
            return Err("in.box_norm must have four numbers".into());
        };
        let area = tpo::core::geometry::BoxXyxy { x0, y0, x1, y1 }.to_pixels(side, side);
        let corners = tpo::heads::mask::sam2::PointPrompt::corners(&area).to_vec();
        let embedded = model.sam_prompt_encoder.embed_points(&[corners])?;
        let expected = fixture.floats("in.box_embed")?;
        let got = super::check::floats(embedded)?;
        let error = got
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs() as f64)
            .fold(0.0, f64::max);
        report.measure("in.box_embed", error, fixture.tolerance("out")?);
    }
    for keep in [Keep::Everything, Keep::Window] {
        let options = TrackOptions {
            keep,
            fill_hole_area: area,
            ..TrackOptions::default()
        };
        let mut state = TrackState::init(&model, frames.clone(), options)?;
        let added = state.add_embedding(&model, 0, OBJECT, tokens.clone())?;
        logits(&mut report, fixture, "out.add.mask_logits_video", &added)?;
        for masks in state.propagate(&model, Propagation::forward())? {
            let masks = masks?;
            let key = |what: &str| format!("out.prop.{}.{what}", masks.frame);
            bits(&mut report, fixture, &key("mask_bits"), &masks)?;
            if fixture.has(&key("mask_logits_video")) {
                logits(&mut report, fixture, &key("mask_logits_video"), &masks)?;
            }
        }
        if keep == Keep::Everything {
            kept(&mut report, fixture, &state, frames.len())?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// Frames of the size the fixture gives the video, from images at the model's size.
fn frames_of(fixture: &Fixture, images: Tensor<4>) -> Result<Vec<VideoFrame>, Failure> {
    let size: [usize; 2] = serde_json::from_value(fixture.json["video_hw"].clone())
        .map_err(|e| format!("`video_hw` must have two numbers: {e}"))?;
    Ok((0..images.dims()[0])
        .map(|i| VideoFrame {
            image: images.clone().narrow(0, i, 1),
            size,
        })
        .collect())
}

/// `sam2_hf_video`: points, boxes, several objects and prompts, both directions, SAM 2.1 under the
/// names of Hugging Face. Holes are not filled there.
pub fn hugging_face(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut config = Sam2Config::from_hf_json(fixture.config())?;
    config.memory_attention.dropout = 0.0;
    let rules = sam2_hugging_face_keys()?;
    let model = load(config.init(device)?, fixture, &Stored(&rules))?;
    let side = config.image_size;
    let low = fixture.tensor::<4>("in.frames_lowres", device)?;
    let factor = side / low.dims()[3].max(1);
    let images = sam2::enlarge(low, factor);
    let frames = frames_of(fixture, images)?;
    let runs: Vec<HfRun> = serde_json::from_value(fixture.json["runs"].clone())?;
    for keep in [Keep::Everything, Keep::Window] {
        for run in &runs {
            let options = TrackOptions {
                keep,
                fill_hole_area: Some(0),
                ..TrackOptions::default()
            };
            let mut state = TrackState::init(&model, frames.clone(), options)?;
            for p in &run.prompts {
                let clicks: Vec<Click> = p
                    .points
                    .iter()
                    .map(|&[x, y, label]| Click {
                        x,
                        y,
                        positive: label > 0.5,
                    })
                    .collect();
                let area = p.area.map(BoxPixels::from);
                let object = ObjectId(p.object);
                let masks = state.add_box_and_points(&model, p.frame, object, area, &clicks)?;
                // The reference answers when all prompts of a frame are in.
                let of = |q: &&HfPrompt| q.frame == p.frame;
                if run.prompts.iter().rfind(of) == Some(p) {
                    let key = format!("out.{}.prompt.{}", run.name, p.frame);
                    low_res(&mut report, fixture, &key, &masks)?;
                }
            }
            let way = if run.reverse {
                Propagation::backward()
            } else {
                Propagation::forward()
            };
            let way = Propagation {
                start: run.start,
                ..way
            };
            let mut scores = Vec::new();
            let mut seen = 0;
            for masks in state.propagate(&model, way)? {
                let masks = masks?;
                let key = format!("out.{}.{}.masks", run.name, masks.frame);
                low_res(&mut report, fixture, &key, &masks)?;
                scores.extend(masks.objects.iter().map(|o| o.score));
                seen += 1;
            }
            let key = format!("mid.{}.scores", run.name);
            let objects = scores.len() / seen.max(1);
            report.close_values(fixture, &key, &[seen, objects], &scores, |_| true)?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

#[derive(serde::Deserialize)]
struct HfRun {
    name: String,
    reverse: bool,
    start: Option<usize>,
    prompts: Vec<HfPrompt>,
}

#[derive(serde::Deserialize, PartialEq)]
struct HfPrompt {
    frame: usize,
    object: u32,
    #[serde(rename = "box")]
    area: Option<[f32; 4]>,
    /// Column, row, and 1 on the object or 0 beside it.
    points: Vec<[f32; 3]>,
}

/// Compares low-resolution logits `[objects, height, width]`.
fn low_res(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    masks: &FrameMasks,
) -> Result<(), Failure> {
    let (h, w) = masks.objects.first().map_or((0, 0), |o| o.low_res.dim());
    let values: Vec<f32> = masks
        .objects
        .iter()
        .flat_map(|o| o.low_res.iter().copied())
        .collect();
    let shape = [masks.objects.len(), h, w];
    report.close_values(fixture, key, &shape, &values, |_| true)
}

/// What is remembered of every frame.
fn kept(
    report: &mut Report,
    fixture: &Fixture,
    state: &TrackState<Vec<VideoFrame>>,
    frames: usize,
) -> Result<(), Failure> {
    let mut hidden = Vec::new();
    for frame in 0..frames {
        let kept = state
            .inspect(OBJECT, frame)
            .ok_or_else(|| format!("nothing is kept of frame {frame}"))?;
        let key = |what: &str| format!("out.state.{frame}.{what}");
        report.close(fixture, &key("obj_ptr"), kept.pointer.clone())?;
        let (h, w) = kept.low_res.dim();
        let values: Vec<f32> = kept.low_res.iter().copied().collect();
        report.close_values(fixture, &key("pred_masks"), &[1, 1, h, w], &values, |_| {
            true
        })?;
        let memory = kept.memory.clone().ok_or("a frame has no memory")?;
        let shape = fixture.stored(&key("maskmem"))?.shape.clone();
        let [_, channels, rows, columns] = shape[..] else {
            return Err("maskmem must have four axes".into());
        };
        let memory = memory
            .reshape([1, rows, columns, channels])
            .permute([0, 3, 1, 2]);
        report.close(fixture, &key("maskmem"), memory)?;
        hidden.push(i64::from(kept.score <= 0.0));
    }
    // Either a flag per frame or the list of hidden frames.
    report.equal(fixture, "out.state.occluded", &hidden)
}

/// The logits of one object at the size of the video, without axes of one.
fn map(masks: &FrameMasks) -> Result<Array2<f32>, Failure> {
    let mut maps = masks.logits();
    match maps.len() {
        1 => Ok(maps.remove(0)),
        n => Err(format!("{n} objects, expected one").into()),
    }
}

/// Compares logits `[.., height, width]`.
pub fn logits(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    masks: &FrameMasks,
) -> Result<(), Failure> {
    let map = map(masks)?;
    let shape = fixture.stored(key)?.shape.clone();
    let (h, w) = map.dim();
    let values: Vec<f32> = map.iter().copied().collect();
    let same = shape.ends_with(&[h, w]) && shape.iter().product::<usize>() == h * w;
    report.expect(&format!("{key} shape"), same, || {
        format!("{h}x{w}, expected {shape:?}")
    });
    report.close_values(fixture, key, &shape, &values, |_| true)
}

/// Compares binary masks: the share of different pixels has its own tolerance.
pub fn bits(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    masks: &FrameMasks,
) -> Result<(), Failure> {
    let flags: Vec<bool> = map(masks)?.iter().map(|v| *v > 0.0).collect();
    bits_of(report, fixture, key, &flags)
}

/// As [`bits`], of flags.
pub fn bits_of(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    flags: &[bool],
) -> Result<(), Failure> {
    let tolerance = fixture.json["tolerance"]["mask_bits_mismatch_fraction"]
        .as_f64()
        .ok_or("no tolerance for mask bits")?;
    let expected = fixture.ints(key)?;
    if expected.len() != flags.len() {
        report.fail(
            key,
            format!("{} pixels, expected {}", flags.len(), expected.len()),
        );
        return Ok(());
    }
    let different = expected
        .iter()
        .zip(flags)
        .filter(|(e, g)| (**e != 0) != **g)
        .count();
    report.measure(key, different as f64 / flags.len().max(1) as f64, tolerance);
    Ok(())
}

/// Frames as a head finds them in its context, from normalised ones.
pub struct Frames(pub Tensor<4>);

impl tpo::core::head::FrameSource for Frames {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn frames(&self, size: usize) -> tpo::core::Result<Tensor<4>> {
        let [_, _, h, w] = self.0.dims();
        if [h, w] != [size, size] {
            return Err(tpo::core::CoreError::Shape {
                place: "check_parity frames",
                what: "size",
                expected: format!("{h}"),
                found: vec![size],
            });
        }
        let device = self.0.device();
        let statistic = |values: [f32; 3]| {
            Tensor::<1>::from_floats(values.as_slice(), &device).reshape([1, 3, 1, 1])
        };
        let (mean, std) = (
            statistic(tpo::heads::mask::track::IMAGENET_MEAN),
            statistic(tpo::heads::mask::track::IMAGENET_STD),
        );
        Ok(self.0.clone() * std + mean)
    }
}
