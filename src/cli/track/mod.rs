//! Follow objects through a video: a box, points or a mask on one frame, masks on all.

mod args;
mod ask;
mod model;
mod output;
mod video;

use std::time::Instant;

use tpo_core::geometry::Rle;
use tpo_core::head::HeadSet;
use tpo_data::{MediaLimits, open_video};
use tpo_heads::mask::sam2::Sam2;
use tpo_heads::mask::track::{
    Click, FrameMasks, FrameReader, Keep, ObjectId, Propagation, TrackOptions, TrackState,
};

use super::shared::{End, Outcome, bar};
use crate::training::measure::process_memory;
use args::Prompt;
use output::{Found, Tracks};

pub(super) use args::Args;

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    let device = args.device.open()?;
    if let Some(question) = &args.ask {
        return ask::run::<H>(&args, question, &device);
    }
    // Before anything is loaded or written.
    let prompts = args.prompts()?;
    // clap does not ask for what --box and --point exclude.
    if args.model.is_some() || args.quantize.format().is_some() {
        let why = "--model and --quantize are about the language model, which --ask alone takes; give --ask, \
                   or leave them out (--weights names SAM 2 for boxes and points)";
        return Err(why.into());
    }
    let start = Instant::now();
    let model = model::open(&args, &device)?;
    eprintln!("model ready in {:.1} s", start.elapsed().as_secs_f64());
    let video = open_video(&args.video, &MediaLimits::default())?;
    let info = video.info().clone();
    let frames = args
        .frames
        .map_or(info.frame_count, |n| n.min(info.frame_count));
    eprintln!(
        "{}: {}x{}, {} of {} frames, {:.2} frames per second",
        args.video.display(),
        info.width,
        info.height,
        frames,
        info.frame_count,
        info.fps
    );

    let side = model.config().image_size;
    let mut tracks = Tracks::new();
    std::thread::scope(|scope| -> Outcome<()> {
        let kind = (&device, model::dtype(&args));
        let reader = video::reader(scope, video.as_ref(), frames, side, kind);
        let options = TrackOptions {
            keep: if args.keep_everything {
                Keep::Everything
            } else {
                Keep::Window
            },
            non_overlapping_masks: args.non_overlapping,
            ..TrackOptions::default()
        };
        let mut state = TrackState::init(&model, reader, options)?;
        for prompt in prompts {
            add(&mut state, &model, &prompt, [info.height, info.width])?;
        }
        let bar = bar("{bar:30} {pos}/{len} frames, {msg}");
        bar.set_length(frames as u64);
        let (start, mut done) = (Instant::now(), 0usize);
        let mut runs = vec![Propagation::forward()];
        if args.backward {
            runs.push(Propagation::backward());
        }
        for run in runs {
            for masks in state.propagate(&model, run)? {
                let masks = masks?;
                done += 1;
                let rate = done as f64 / start.elapsed().as_secs_f64();
                bar.inc(1);
                bar.set_message(format!("{rate:.2} per second"));
                let found = masks.masks().into_iter().zip(&masks.objects);
                let found = found.map(|(mask, object)| Found {
                    object: object.object.0,
                    score: object.score,
                    mask: Rle::encode(&mask),
                });
                tracks.insert(masks.frame, found.collect());
            }
        }
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{done} frames in {seconds:.1} s, {:.2} per second; {:.1} MiB of memories and features{}",
            done as f64 / seconds,
            state.bytes() as f64 / f64::from(1 << 20),
            process_memory("VmHWM:").map_or(String::new(), |bytes| format!(
                ", peak of the process {} MiB",
                bytes >> 20
            ))
        );
        Ok(())
    })?;
    output::write(&args, video.as_ref(), &tracks)?;
    Ok(End::Fine)
}

/// Gives a prompt to the tracker. Coordinates are 0–1.
fn add<R: FrameReader>(
    state: &mut TrackState<R>,
    model: &Sam2,
    prompt: &Prompt,
    [height, width]: [usize; 2],
) -> Outcome<FrameMasks> {
    let (w, h) = (width as f32, height as f32);
    let area = prompt.area.map(|b| b.to_pixels(w, h));
    let clicks: Vec<Click> = prompt
        .points
        .iter()
        .map(|&(x, y, positive)| Click {
            x: x * w,
            y: y * h,
            positive,
        })
        .collect();
    let object = ObjectId(prompt.object);
    Ok(state.add_box_and_points(model, prompt.frame, object, area, &clicks)?)
}
