//! The mini model looks at a clip it has never seen and answers four questions: in words, with a box,
//! with a time and with masks. What is true is printed beside what it says, and all of it is drawn.
//!
//! `cargo run --release --example quickstart`; for videos and questions of your own there is `tpo chat`.

use std::time::Instant;

use image::RgbImage;
use tpo::data::synthetic::{Split, World, WorldConfig};
use tpo::draw::{Axis, Strip, contact_sheet, draw_shapes, enlarged, picture, save_picture};
use tpo::prelude::*;

fn main() -> tpo::Result<()> {
    let start = Instant::now();
    let device = DeviceChoice::Auto.open()?;
    let mut session = tpo::presets::mini(&device, SessionOptions::default())?;
    let size = session.model().num_params() as f64 / 1e6;
    let seconds = start.elapsed().as_secs_f64();
    println!("mini: {size:.2} M parameters, loaded in {seconds:.1} s");

    // A clip whose combination of shape, colour and event never occurs in training.
    let clip = World::new(WorldConfig::default(), 1)?.clip(Split::HeldOut, 12);
    let rendered = clip.scene.render_all();
    let frames = rendered.iter().map(|f| f.to_frame());
    let frames: Vec<_> = frames.collect::<Result<_, _>>()?;
    let media = session.load_frames(clip.name(), frames.clone(), clip.scene.fps)?;
    let (count, (w, h), duration) = (frames.len(), media.size, clip.scene.duration());
    println!("{count} frames of {w}x{h} looked at, {duration:.1} s");
    let pictures = frames.into_iter().map(|f| Ok(enlarged(picture(f)?, 288)));
    let pictures: Vec<RgbImage> = pictures.collect::<tpo::Result<_>>()?;
    let mut ask = |question: &str| {
        session.clear_history();
        session.ask(Question::new(question))?.collect_reply()
    };

    let asked = clip.questions(&rendered).swap_remove(0);
    let reply = ask(&asked.question)?;
    let right = reply.text.trim() == asked.answer;
    let score = if right { "right" } else { "wrong" };
    let words = page(&asked.question, &reply, &asked.answer, score, &pictures)?;

    let asked = clip.region_queries(&rendered).swap_remove(0);
    let reply = ask(&asked.question)?;
    let [x0, y0, x1, y1] = asked.area.to_array();
    let truth = format!("[{x0:.2}, {y0:.2}, {x1:.2}, {y1:.2}]");
    let found: Option<&RegionPrediction> = reply.prediction();
    let overlap = found.map_or(0.0, |found| found.normalised.iou(&asked.area));
    let score = format!("IoU {overlap:.2}");
    let place = page(&asked.question, &reply, &truth, &score, &pictures[..1])?;

    let asked = clip.temporal_queries().swap_remove(0);
    let reply = ask(&asked.question)?;
    let truth = TimeSpan::new(asked.spans[0].0, asked.spans[0].1)?;
    let found: Option<&TemporalPrediction> = reply.prediction();
    let best = found.and_then(|found| found.best());
    let overlap = best.map_or(0.0, |best| best.span.iou(&truth));
    let text = format!("{:.1} to {:.1} s", truth.start, truth.end);
    let score = format!("IoU {overlap:.2}");
    let mut time = page(&asked.question, &reply, &text, &score, &pictures)?;
    let axis = reply.tasks.first().map(|t| Axis::of(t.drawing(), duration));
    time.axis = axis.flatten().map(|axis| axis.with_truth(&[truth]));

    let asked = clip.mask_queries(&rendered).swap_remove(0);
    let reply = ask(&asked.question)?;
    let visible = asked.boxes.iter().flatten().count();
    let truth = format!("visible in {visible} of {count} frames");
    let found: Option<&MaskPrediction> = reply.prediction();
    let frames = found.map_or(&[][..], |found| &found.frames);
    let mut overlap = 0.0;
    for (found, truth) in frames.iter().zip(&asked.masks) {
        let same = found.mask == *truth; // where both see nothing they agree
        overlap += if same {
            1.0
        } else {
            found.mask.iou(truth, false)?
        };
    }
    let score = format!("mean J {:.2}", overlap / count as f64);
    let masks = page(&asked.question, &reply, &truth, &score, &pictures)?;

    let sheet = contact_sheet(&[words, place, time, masks], 960)?;
    save_picture(&sheet, "out/quickstart/sheet.png")?;
    let seconds = start.elapsed().as_secs_f64();
    println!("\nout/quickstart/sheet.png\n{seconds:.1} s in all");
    Ok(())
}

/// Prints an answer beside what is true, and draws it on every third picture.
fn page(
    question: &str,
    reply: &Reply,
    truth: &str,
    score: &str,
    pictures: &[RgbImage],
) -> tpo::Result<Strip> {
    let said = reply.said.trim();
    println!("\n   {question}\n   model  {said}\n   truth  {truth}\n   {score}");
    let mut strip = Strip {
        caption: vec![question.into(), format!("{said} (truth: {truth}; {score})")],
        ..Strip::default()
    };
    let drawings = reply.tasks.iter().map(|t| (t.drawing(), String::new()));
    let drawings: Vec<_> = drawings.collect();
    for (i, plain) in pictures.iter().enumerate().step_by(3) {
        let drawn = draw_shapes(plain, &drawings, i)?;
        strip.pictures.push(drawn.unwrap_or_else(|| plain.clone()));
    }
    Ok(strip)
}
