//! Ask a video or an image a question; the predicted box is drawn on the frame.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tpo::core::model::CallOrder;
use tpo::core::prompt::Visual;
use tpo::data::{FrameSampling, MediaLimits, open_video, read_image};
use tpo::draw::{LabelledBox, draw_boxes};
use tpo::llm::sampling::SamplingConfig;
use tpo::prelude::*;
use tpo::{Media, Result};

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ask a video or an image a question.
///
/// The answer is streamed. Where the model calls the region head, the box is printed and drawn on
/// a frame. Without --model a small model with random weights answers: it runs every part of the
/// chain and knows nothing, so its words and boxes mean nothing. It would not call a head either,
/// so the region head is called for it.
#[derive(Parser)]
#[command(after_help = "Examples:
  chat --video clip.mp4 --ask 'Where is the dog?'
  chat --model VideoChat-TPO --video clip.mp4 --ask 'What happens?' --ask 'And then?'
  chat --image photo.png --ask 'What is in <track_box>?' --box 0.1,0.2,0.5,0.8")]
struct Args {
    /// Video file (MP4 with H.264, GIF; anything else with the feature `ffmpeg`)
    #[arg(long, required_unless_present = "image", conflicts_with = "image")]
    video: Option<PathBuf>,
    /// Image file (PNG, JPEG, WebP, BMP)
    #[arg(long)]
    image: Option<PathBuf>,
    /// Question; repeat for several turns
    #[arg(long, required = true)]
    ask: Vec<String>,
    /// Model directory: VideoChat-TPO as published, or one written by this library
    #[arg(long)]
    model: Option<PathBuf>,
    /// Box the first question is about, x0,y0,x1,y1 between 0 and 1
    #[arg(long = "box", value_parser = parse_box)]
    area: Option<BoxXyxy>,
    /// Call this head at the start of every answer, whatever the model says [default without
    /// --model: region]
    #[arg(long)]
    task: Vec<String>,
    /// Picture to write when a box is predicted
    #[arg(long, default_value = "out/chat.png")]
    out: PathBuf,
    /// auto, cpu, cuda:0 or wgpu
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Frames to look at: middle, random, or fps1, fps0.5, …
    #[arg(long, default_value = "middle")]
    sampling: FrameSampling,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 48)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the random model and of sampling
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// When a head is called
    #[arg(long, value_enum, default_value_t = Order::Reference)]
    order: Order,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// As the published code runs it
    Reference,
    /// As the model was trained
    Trained,
}

fn parse_box(text: &str) -> std::result::Result<BoxXyxy, String> {
    let numbers: Vec<f32> = text
        .trim_matches(['[', ']'])
        .split(',')
        .map(|v| {
            v.trim()
                .parse()
                .map_err(|_| format!("`{v}` is not a number"))
        })
        .collect::<std::result::Result<_, _>>()?;
    let four: [f32; 4] = numbers
        .try_into()
        .map_err(|n: Vec<f32>| format!("four numbers are needed, {} were given", n.len()))?;
    BoxXyxy::from(four)
        .check("--box")
        .map_err(|e| e.to_string())
}

fn main() {
    if let Err(e) = run(Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(mut args: Args) -> Result<()> {
    let device = args.device.open()?;
    let options = SessionOptions {
        sampling: args.sampling,
        call_order: match args.order {
            Order::Reference => CallOrder::AsReference,
            Order::Trained => CallOrder::AsTrained,
        },
        max_new_tokens: args.max_new_tokens,
        decoding: SamplingConfig::sampling(args.temperature, args.seed),
        ..SessionOptions::default()
    };
    let mut session = match &args.model {
        Some(dir) => {
            let bar = bar("loading", "{bytes}/{total_bytes}");
            let loaded = Session::open(
                dir,
                &device,
                options,
                Some(&|done, total| {
                    bar.set_length(total);
                    bar.set_position(done);
                }),
            );
            bar.finish_and_clear();
            loaded?.0
        }
        None => {
            eprintln!("(no --model: random weights, the answer means nothing)");
            if args.task.is_empty() {
                args.task.push("region".into());
            }
            Session::mini(&device, args.seed, options)?
        }
    };

    let start = Instant::now();
    let media = match (&args.video, &args.image) {
        (Some(path), _) => {
            let bar = bar("frames", "{pos}/{len}");
            let media = session.load_video(
                path,
                Some(&|done, total| {
                    bar.set_length(total as u64);
                    bar.set_position(done as u64);
                    true
                }),
            );
            bar.finish_and_clear();
            media?
        }
        (None, Some(path)) => session.load_image(path)?,
        (None, None) => return Ok(()),
    }
    .clone();
    let (w, h) = media.size;
    let length = media
        .duration
        .map_or(String::new(), |d| format!(", {d:.2} s"));
    eprintln!(
        "{}: {w}x{h}{length}, {} frame(s) read and encoded in {:.2} s",
        media.path.display(),
        media.frames.len(),
        start.elapsed().as_secs_f64()
    );

    let mut boxes = Vec::new();
    for (turn, text) in args.ask.iter().enumerate() {
        println!("> {}", shorten(text));
        let mut question = Question::new(text);
        if turn == 0
            && let Some(area) = args.area
        {
            question = question.with_box(area);
        }
        for task in &args.task {
            question = question.with_task(task);
        }
        let start = Instant::now();
        for event in session.ask(question)? {
            match event? {
                Event::Text(piece) => {
                    print!("{piece}");
                    let _ = std::io::stdout().flush();
                }
                Event::Task(output) => {
                    println!("[{} {}]", output.task, output.to_json());
                    if let Some(p) = output.get::<RegionPrediction>() {
                        boxes.push(LabelledBox {
                            area: p.normalised,
                            label: shorten(text),
                        });
                    }
                }
                Event::NoHead(task) => println!("[{task}: this build has no such head]"),
            }
        }
        println!();
        eprintln!("answered in {:.2} s", start.elapsed().as_secs_f64());
    }
    if !boxes.is_empty() {
        let picture = draw_boxes(&frame_of(&media)?, &boxes)?;
        write(&picture, &args.out)?;
        eprintln!("wrote {}", args.out.display());
    }
    Ok(())
}

/// The image itself, or the middle one of the frames that were looked at.
fn frame_of(media: &Media) -> Result<RgbImage> {
    let limits = MediaLimits::default();
    let frame = match media.kind {
        Visual::Video => {
            let middle = media.frames[media.frames.len() / 2];
            let frames = open_video(&media.path, &limits)?.read_frames(&[middle])?;
            frames.into_iter().next()
        }
        _ => Some(read_image(&media.path, &limits)?),
    };
    let picture = frame.and_then(|f| {
        let (w, h) = (f.width() as u32, f.height() as u32);
        RgbImage::from_raw(w, h, f.into_rgb())
    });
    picture.ok_or_else(|| tpo::Error::Picture {
        what: media.path.display().to_string(),
        why: "the frame could not be read again".into(),
    })
}

fn write(picture: &RgbImage, path: &Path) -> Result<()> {
    let failed = |why: String| tpo::Error::Picture {
        what: path.display().to_string(),
        why,
    };
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
    }
    picture.save(path).map_err(|e| failed(e.to_string()))
}

fn bar(what: &str, counter: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{what} {{bar:32}} {counter} {{eta}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() > 80 {
        format!("{}…", line.chars().take(79).collect::<String>())
    } else {
        line.to_string()
    }
}
