//! Following what a question is about: the mask head of a video language model.

use std::time::Instant;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_data::{MediaLimits, open_video};
use tpo_heads::mask::MaskPrediction;

use super::args::Args;
use super::output::{Found, Output};
use crate::cli::shared::{End, MINI, Outcome, head_progress, open_model};
use crate::session::{Question, SessionOptions};

pub fn run<H: HeadSet>(args: &Args, question: &str, device: &Device) -> Outcome {
    let start = Instant::now();
    if args.model.is_none() {
        eprintln!("{MINI}");
    }
    let options = SessionOptions {
        progress: Some(head_progress()),
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
    let mut out = Output::create(args, video.info())?;
    for (index, picture) in video.stream(0)?.enumerate() {
        if args.frames.is_some_and(|n| index >= n) {
            break;
        }
        let mut found = Vec::new();
        for (object, prediction) in (1..).zip(&objects) {
            if let Some(frame) = prediction.frames.get(index) {
                let (score, mask) = (frame.score, frame.mask.decode()?);
                found.push(Found {
                    object,
                    score,
                    mask,
                });
            }
        }
        out.frame(index, &found, Some(picture?.frame))?;
    }
    eprintln!(
        "{} object(s) followed in {:.1} s",
        objects.len(),
        start.elapsed().as_secs_f64()
    );
    out.finish()?;
    Ok(End::Fine)
}
