//! Tracks what a question is about through every frame, and draws the masks.
//!
//! ```text
//! cargo run --release --example track_an_object
//! cargo run --release --example track_an_object -- clip.mp4 'Track the dog.' VideoChat-TPO
//! ```
//!
//! `tpo track` also starts from boxes and points, with any SAM 2.

use tpo::data::{MediaLimits, open_video};
use tpo::draw::{Animation, COLOURS, draw_mask, picture};
use tpo::prelude::*;
use tpo::presets;

fn main() -> tpo::Result<()> {
    let mut args = std::env::args().skip(1);
    let video = args.next().unwrap_or("assets/bouncing_shapes.mp4".into());
    let question = args.next().unwrap_or("Track the red circle.".into());

    let device = DeviceChoice::Auto.open()?;
    let options = SessionOptions::default();
    let mut session = match args.next() {
        Some(dir) => Session::open(dir, &device, options, None)?.0,
        None => presets::mini(&device, options)?,
    };
    session.load_video(&video, None)?;
    // The mask head is called at the start of the answer, whatever the model says.
    let question = Question::new(question).with_task("mask");
    let reply = session.ask(question)?.collect_reply()?;
    let Some(found) = reply.prediction::<MaskPrediction>() else {
        println!("this model has no mask head");
        return Ok(());
    };
    println!(
        "visible in {} of {} frames",
        found.visible(),
        found.frames.len()
    );

    let reader = open_video(&video, &MediaLimits::default())?;
    let mut animation = Animation::create("out/track_an_object.gif", reader.info().fps)?;
    for (tracked, frame) in found.frames.iter().zip(reader.stream(0)?) {
        let mask = tracked.mask.decode()?;
        let mut shown = picture(frame?.frame)?;
        draw_mask(&mut shown, &mask, COLOURS[0]);
        animation.push(shown)?;
        if let Some([x0, y0, x1, y1]) = mask.bounding_box().map(|b| b.to_array()) {
            let (frame, pixels) = (tracked.frame, mask.area());
            println!("frame {frame}: {pixels} pixels in {x0}, {y0}, {x1}, {y1}");
        }
    }
    println!("out/track_an_object.gif");
    Ok(())
}
