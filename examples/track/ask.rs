//! Following what a question is about: the mask head of a video language model.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use tpo::data::{MediaLimits, open_video};
use tpo::heads::mask::MaskPrediction;
use tpo::presets;
use tpo::{HeadProgress, Question, Session, SessionOptions};

use super::Outcome;
use super::args::Args;
use super::output::{Found, Output};

pub fn run(args: &Args, question: &str, device: &Device) -> Outcome<()> {
    let bar = super::frames_bar(0);
    let (start, seen) = (Instant::now(), bar.clone());
    let options = SessionOptions {
        progress: Some(HeadProgress(Arc::new(move |what, done, total| {
            seen.set_length(total as u64);
            seen.set_position(done as u64);
            let rate = done as f64 / start.elapsed().as_secs_f64().max(1e-3);
            seen.set_message(format!("{rate:.2} per second, {what}"));
        }))),
        ..SessionOptions::default()
    };
    let mut session = match &args.model {
        Some(dir) => Session::open(dir, device, options, None)?.0,
        None => {
            eprintln!("(no --model: the mini model, which knows the synthetic world only)");
            presets::mini(device, options)?
        }
    };
    session.load_video(&args.video, None)?;
    // What is asked here is to follow something, whatever the model says.
    let reply = session
        .ask(Question::new(question).with_task("mask"))?
        .collect_reply()?;
    bar.finish_and_clear();
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
        for (at, object) in objects.iter().enumerate() {
            if let Some(frame) = object.frames.get(index) {
                found.push(Found {
                    object: at as u32 + 1,
                    score: frame.score,
                    mask: frame.mask.decode()?,
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
    for path in out.finish()? {
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
