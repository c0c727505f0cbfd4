//! Asks a video questions and prints words and predictions as they come.
//!
//! ```text
//! cargo run --release --example ask_a_video
//! cargo run --release --example ask_a_video -- clip.mp4 'Where is the dog?' VideoChat-TPO
//! ```

use std::io::Write;

use tpo::data::synthetic::{Split, World, WorldConfig};
use tpo::prelude::*;
use tpo::presets;

fn main() -> tpo::Result<()> {
    let mut args = std::env::args().skip(1);
    let video = args.next();
    let question = args
        .next()
        .unwrap_or("Where is the orange star at the start?".into());

    let device = DeviceChoice::Auto.open()?;
    let options = SessionOptions::default();
    let mut session = match args.next() {
        Some(dir) => Session::open(dir, &device, options, None)?.0,
        // A small model that comes with the library and knows coloured shapes only.
        None => presets::mini(&device, options)?,
    };
    let media = match video {
        Some(video) => session.load_video(video, None)?,
        // A clip of the world that the small model knows.
        None => {
            let clip = World::new(WorldConfig::default(), 7)?.clip(Split::HeldOut, 0);
            let frames = clip.scene.render_all();
            let frames = frames.iter().map(|frame| frame.to_frame());
            let frames = frames.collect::<Result<_, _>>()?;
            session.load_frames("a clip of the world", frames, clip.scene.fps)?
        }
    };
    let name = media.path.display();
    println!("{name}: looked at {} frames", media.frames.len());

    // The session remembers: the second question is asked after the first answer.
    for question in [question.as_str(), "How many shapes are there?"] {
        println!("> {question}");
        for event in session.ask(Question::new(question))? {
            match event? {
                Event::Text(text) => print!("{text}"),
                Event::Task(output) => print!("[{} {}]", output.task, output.to_json()),
                Event::NoHead(task) => print!("[no {task} head in this build]"),
                Event::Unanswered(call) => print!("[{}: {}]", call.task, call.why),
            }
            std::io::stdout().flush().ok();
        }
        println!();
    }
    Ok(())
}
