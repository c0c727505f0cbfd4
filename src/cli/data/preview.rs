//! Rows of a data set as pictures.

use std::path::{Path, PathBuf};

use image::RgbImage;
use tpo_core::geometry::BoxXyxy;
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};
use tpo_data::feed::{Draw, ItemSeed, View, place_truth};
use tpo_data::prompts::{AnswerStyle, PromptWriter};
use tpo_data::schema::{FramePosition, RowLimits, Sample, SampleReader, Target, open_media};
use tpo_data::{ClipConfig, MediaLimits, VideoInfo, VideoReader, select_frames};

use super::Input;
use crate::cli::shared::{End, Outcome};
use crate::draw::{
    Axis, AxisRow, COLOURS, LabelledBox, Strip, contact_sheet, draw_boxes, draw_mask, picture,
    save_picture,
};
use crate::model::videochat_tasks;

/// Draw the first rows with their annotations on one picture.
///
/// For each row: sampled frames with boxes, masks and, below videos, the time axis with the
/// annotated spans (black lines: the sampled frames). The caption is what the model will be
/// asked and what it should say.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: Input,
    /// Where the picture goes.
    #[arg(long, default_value = "preview.png")]
    out: PathBuf,
    /// Number of rows.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Begin at this line.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Frames of a video.
    #[arg(long, default_value_t = 4)]
    frames: usize,
    /// Width of the picture in pixels.
    #[arg(long, default_value_t = 1200)]
    width: u32,
    /// Seed of the question templates.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

pub fn run(args: Args) -> Outcome {
    let root = args.input.root();
    let writer = PromptWriter {
        tasks: &videochat_tasks(32_000),
        // What the model says is shown in words: tokens would hide the answer.
        style: AnswerStyle::Text,
    };
    let mut reader = SampleReader::open(&args.input.file, RowLimits::default())?;
    let mut strips = Vec::new();
    let mut fine = true;
    while let Some(row) = reader.next_row() {
        if strips.len() >= args.rows {
            break;
        }
        let (line, _, row) = row?;
        if line < args.from {
            continue;
        }
        let strip = row.map_err(|e| e.to_string()).and_then(|sample| {
            strip(&sample, line, &root, &writer, &args).map_err(|e| e.to_string())
        });
        strips.push(strip.unwrap_or_else(|why| {
            fine = false;
            eprintln!("line {line}: {why}");
            Strip {
                caption: vec![format!("line {line}: {why}")],
                ..Strip::default()
            }
        }));
    }
    if strips.is_empty() {
        return Err(format!("no row at or after line {}", args.from).into());
    }
    save_picture(&contact_sheet(&strips, args.width)?, &args.out)?;
    println!("{}: {} rows", args.out.display(), strips.len());
    Ok(End::fine_if(fine))
}

fn strip(
    sample: &Sample,
    line: u64,
    root: &Path,
    writer: &PromptWriter<'_>,
    args: &Args,
) -> Outcome<Strip> {
    let mut truths = Vec::new();
    let mut turn_boxes = Vec::new();
    let (mut pictures, mut axis) = (Vec::new(), None);
    let mut what = String::from("text");
    if let Some(media) = &sample.media {
        let reader = open_media(media, root, &MediaLimits::default())?;
        let info = reader.info();
        let view = View {
            range: media.range,
            ..View::default()
        };
        let clip = ClipConfig {
            num_frames: if media.is_video() {
                args.frames.max(1)
            } else {
                1
            },
            range: media.range,
            ..ClipConfig::default()
        };
        let indices = match annotated_frames(sample, info, &view, args.frames) {
            // Between annotated frames an object moves; show it where the annotation was made.
            Some(indices) if media.is_video() => indices,
            _ => select_frames(info, &clip)?,
        };
        let times: Vec<f64> = indices
            .iter()
            .map(|i| info.timestamps.get(*i).copied().unwrap_or(0.0))
            .collect();
        for a in &sample.annotations {
            truths.push(place_truth(a, info, &view, &times, 0)?);
        }
        let (w, h) = (info.width as u32, info.height as u32);
        for turn in &sample.turns {
            turn_boxes.push(turn.boxes.iter().map(|b| b.normalised(w, h)).collect());
        }
        pictures = draw(&*reader, &indices, &truths, &turn_boxes)?;
        let (start, end) = view.seconds(info);
        what = format!("{} {w}x{h}", media.path);
        if media.is_video() {
            what.push_str(&format!(", {:.1} s at {:.1} fps", end - start, info.fps));
            axis = Some(Axis {
                duration: end - start,
                frames: times.iter().map(|t| t - start).collect(),
                rows: rows(&truths),
                ..Axis::default()
            });
        }
    }
    let seed = ItemSeed {
        seed: args.seed,
        epoch: 0,
        index: line,
    };
    let dialogue = writer.write(
        &sample.turns,
        &turn_boxes,
        &truths,
        &mut Draw::new(seed, "prompt"),
    )?;
    let name = sample
        .id
        .as_ref()
        .map_or(String::new(), |id| format!(" ({id})"));
    let mut caption = vec![format!("line {line}{name}: {what}")];
    for (question, answer) in dialogue.turns.iter().take(3) {
        caption.push(format!("Q: {question}"));
        caption.push(format!("A: {answer}"));
    }
    Ok(Strip {
        caption,
        pictures,
        axis,
    })
}

/// Up to `count` frames of the clip that a track annotates, evenly spread; `None` without tracks.
fn annotated_frames(
    sample: &Sample,
    info: &VideoInfo,
    view: &View,
    count: usize,
) -> Option<Vec<usize>> {
    let (start, end) = view.seconds(info);
    let mut frames = Vec::new();
    for a in &sample.annotations {
        if let Target::Track(track) = &a.target {
            frames.extend(track.iter().map(|f| {
                match f.at {
                    FramePosition::Frame(n) => n as usize,
                    FramePosition::Time(t) => info
                        .timestamps
                        .partition_point(|s| *s < t)
                        .min(info.frame_count - 1),
                }
            }));
        }
    }
    frames.retain(|i| {
        info.timestamps
            .get(*i)
            .is_some_and(|t| (start..=end).contains(t))
    });
    frames.sort_unstable();
    frames.dedup();
    let count = count.clamp(1, frames.len().max(1));
    let last = frames.len().checked_sub(1)?;
    let place = |k: usize| frames[k * last / (count - 1).max(1)];
    Some((0..count).map(place).collect())
}

/// The frames with boxes and masks, one colour per annotation.
fn draw(
    reader: &dyn VideoReader,
    indices: &[usize],
    truths: &[Truth],
    turn_boxes: &[Vec<BoxXyxy>],
) -> Outcome<Vec<RgbImage>> {
    let mut pictures = Vec::new();
    for (i, frame) in reader.read_frames(indices)?.into_iter().enumerate() {
        let mut drawn = picture(frame)?;
        let mut boxes = Vec::new();
        let mut add = |area: BoxXyxy, label: &str, colour: usize| {
            boxes.push(LabelledBox::new(area, label, colour));
        };
        for (k, truth) in truths.iter().enumerate() {
            let label = label(truth);
            if let (0, Some(b)) = (i, truth.prompt_box) {
                add(b, &format!("asked: {label}"), k);
            }
            match &truth.target {
                TruthTarget::Box(b) => add(*b, &label, k),
                TruthTarget::Track(frames) => {
                    for f in frames.iter().filter(|f| f.sampled == i) {
                        match &f.place {
                            TruthPlace::Absent => {}
                            TruthPlace::Box(b) => add(*b, &label, k),
                            TruthPlace::Mask(rle) => {
                                let colour = COLOURS[k % COLOURS.len()];
                                draw_mask(&mut drawn, &rle.decode()?, colour);
                            }
                        }
                    }
                }
                TruthTarget::Moments { .. } | TruthTarget::Value(_) => {}
            }
        }
        for b in turn_boxes.iter().flatten() {
            add(*b, "asked", truths.len());
        }
        pictures.push(draw_boxes(&drawn, &boxes)?);
    }
    Ok(pictures)
}

/// A row of the time axis for every annotation with spans.
fn rows(truths: &[Truth]) -> Vec<AxisRow> {
    let mut rows = Vec::new();
    for (colour, truth) in truths.iter().enumerate() {
        if let TruthTarget::Moments { spans, .. } = &truth.target {
            rows.push(AxisRow {
                name: label(truth),
                spans: spans.clone(),
                note: String::new(),
                colour,
            });
        }
    }
    rows
}

/// What an annotation is about, or its task.
fn label(truth: &Truth) -> String {
    let label = truth.query.as_ref().unwrap_or(&truth.task);
    label.chars().take(28).collect()
}
