//! Following what a question is about: the mask head of a video language model.

use std::time::Instant;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_data::{MediaLimits, open_video};
use tpo_heads::mask::MaskPrediction;

use super::args::Args;
use super::output::{self, Found, Tracks};
use crate::cli::shared::{End, MINI, Outcome, head_progress, open_model};
use crate::session::{Question, SessionOptions};

pub fn run<H: HeadSet>(args: &Args, question: &str, device: &Device) -> Outcome {
    let start = Instant::now();
    if args.model.is_none() {
        eprintln!("{MINI}");
    }
    let options = SessionOptions {
        progress: Some(head_progress(None)),
        dtype: args.dtype.float(),
        quantize: args.quantize.format().map(Into::into).unwrap_or_default(),
        ..SessionOptions::default()
    };
    let mut session = open_model::<H>(args.model.as_deref(), device, options)?;
    session.load_video(&args.video, None)?;
    // What is asked here is to follow something, whatever the model says.
    let reply = session
        .ask(Question::new(question).with_task("mask"))?
        .collect_reply()?;
    if args.model.is_some() {
        eprintln!("> {question}\n{}", reply.text);
    }
    let objects: Vec<&MaskPrediction> = reply.tasks.iter().filter_map(|t| t.get()).collect();
    if objects.is_empty() {
        return Err("the model has no mask head, so there is nothing to follow".into());
    }

    let video = open_video(&args.video, &MediaLimits::default())?;
    let mut tracks = Tracks::new();
    for (object, prediction) in (1..).zip(&objects) {
        let frames = args.frames.unwrap_or(usize::MAX);
        for frame in prediction.frames.iter().take(frames) {
            tracks.entry(frame.frame).or_default().push(Found {
                object,
                score: frame.score,
                mask: frame.mask.clone(),
            });
        }
    }
    eprintln!(
        "{} object(s) followed in {:.1} s",
        objects.len(),
        start.elapsed().as_secs_f64()
    );
    output::write(args, video.as_ref(), &tracks)?;
    Ok(End::Fine)
}
