//! Ask a video or an image a question; what the heads find is drawn: boxes and masks on a frame, time
//! spans and the saliency curve on a timeline.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tpo::core::model::CallOrder;
use tpo::core::prompt::Visual;
use tpo::data::{FrameSampling, MediaLimits, open_video, read_image};
use tpo::draw::{COLOURS, LabelledBox, Timeline, draw_boxes, draw_mask, draw_timeline};
use tpo::features::{FeatureCache, TemporalTowers};
use tpo::llm::sampling::SamplingConfig;
use tpo::prelude::*;
use tpo::presets;
use tpo::{HeadProgress, Media, Result};

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ask a video or an image a question.
///
/// The answer is streamed. Where the model calls a head, the prediction is printed and drawn: a box
/// or a mask on a frame, time spans and the saliency curve on a timeline. Without --model the
/// mini model of the library answers, which knows coloured shapes of the synthetic world only: "Where
/// is the red circle at the start?", "When does the blue square blink?", "Track the green star."
#[derive(Parser)]
#[command(after_help = "Examples:
  chat --video clip.mp4 --ask 'Where is the dog?'
  chat --video clip.mp4 --ask 'When does the dog jump?' --truth 3-7.5
  chat --video clip.mp4 --ask 'Follow the dog.'
  chat --model VideoChat-TPO --towers InternVideo2-CLIP --video clip.mp4 --ask 'When is the goal?'
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
    /// Folder with InternVideo2-CLIP, whose features the temporal head of VideoChat-TPO reads:
    /// vision.safetensors, text.safetensors, clip.safetensors, tokenizer.model
    #[arg(long)]
    towers: Option<PathBuf>,
    /// Folder in which video features are kept between runs
    #[arg(long)]
    feature_cache: Option<PathBuf>,
    /// True span START-END in seconds, drawn on the timeline; repeat for several
    #[arg(long, value_parser = parse_span)]
    truth: Vec<TimeSpan>,
    /// Timeline to write when time spans are predicted
    #[arg(long, default_value = "out/timeline.png")]
    timeline: PathBuf,
    /// Call this head (region, temporal, mask) at the start of every answer, whatever the model says
    #[arg(long)]
    task: Vec<String>,
    /// Picture to write when a box is predicted
    #[arg(long, default_value = "out/chat.png")]
    out: PathBuf,
    /// auto, cpu, cuda:0 or wgpu
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Frames to look at: middle, rand, rand:SEED, or fps1, fps0.5, …
    #[arg(long, default_value = "middle")]
    sampling: FrameSampling,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 48)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of sampling
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// When a head is called; default: as the model's tpo.json says
    #[arg(long, value_enum)]
    order: Option<Order>,
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

fn parse_span(text: &str) -> std::result::Result<TimeSpan, String> {
    let (start, end) = text
        .split_once('-')
        .ok_or("a span is START-END in seconds, for example 3-7.5")?;
    let number = |t: &str| {
        let t = t.trim();
        t.parse::<f64>()
            .map_err(|_| format!("`{t}` is not a number"))
    };
    TimeSpan::new(number(start)?, number(end)?).map_err(|e| e.to_string())
}

fn main() {
    sigpipe::reset();
    if let Err(e) = run(Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(args: Args) -> Result<()> {
    let device = args.device.open()?;
    let options = SessionOptions {
        sampling: args.sampling,
        call_order: args.order.map(|order| match order {
            Order::Reference => CallOrder::AsReference,
            Order::Trained => CallOrder::AsTrained,
        }),
        max_new_tokens: args.max_new_tokens,
        decoding: SamplingConfig::sampling(args.temperature, args.seed),
        towers: args
            .towers
            .as_ref()
            .map(|dir| TemporalTowers::open(dir, &device))
            .transpose()?,
        feature_cache: args
            .feature_cache
            .as_ref()
            .map(FeatureCache::open)
            .transpose()?,
        progress: Some(head_progress()),
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
            eprintln!("(no --model: the mini model, which knows the synthetic world only)");
            presets::mini(&device, options)?
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
    let mut masks: Vec<MaskPrediction> = Vec::new();
    let mut timeline = None;
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
                    match output.get::<MaskPrediction>() {
                        Some(p) => println!("[{} {}]", output.task, summary(p)),
                        None => println!("[{} {}]", output.task, output.to_json()),
                    }
                    masks.extend(output.get::<MaskPrediction>().cloned());
                    if let Some(p) = output.get::<RegionPrediction>() {
                        boxes.push(LabelledBox {
                            area: p.normalised,
                            label: shorten(text),
                        });
                    }
                    if let Some(p) = output.get::<TemporalPrediction>() {
                        timeline = Some(timeline_of(text, p, &args.truth));
                    }
                }
                Event::NoHead(task) => println!("[{task}: this build has no such head]"),
            }
        }
        println!();
        eprintln!("answered in {:.2} s", start.elapsed().as_secs_f64());
    }
    if !boxes.is_empty() || !masks.is_empty() {
        let mut picture = draw_boxes(&frame_of(&media)?, &boxes)?;
        for (i, found) in masks.iter().enumerate() {
            let shown = found.frames.iter().find(|f| f.frame == middle(&media));
            if let Some(frame) = shown {
                let colour = COLOURS[(boxes.len() + i) % COLOURS.len()];
                draw_mask(&mut picture, &frame.mask.decode()?, colour)?;
            }
        }
        write(&picture, &args.out)?;
        eprintln!("wrote {}", args.out.display());
    }
    if let Some(mut timeline) = timeline {
        let times = timeline.thumbnail_times();
        timeline.thumbnails = thumbnails(&media, &times)?;
        write(&draw_timeline(&timeline)?, &args.timeline)?;
        eprintln!("wrote {}", args.timeline.display());
    }
    Ok(())
}

fn timeline_of(question: &str, found: &TemporalPrediction, truth: &[TimeSpan]) -> Timeline {
    Timeline {
        title: question.into(),
        duration: found.duration,
        curve: found.saliency.clone(),
        clip_seconds: found.clip_seconds,
        predicted: found.spans.clone(),
        truth: truth.to_vec(),
        thumbnails: Vec::new(),
    }
}

/// The frames shown at some times, with the times.
fn thumbnails(media: &Media, times: &[f64]) -> Result<Vec<(f64, RgbImage)>> {
    let video = open_video(&media.path, &MediaLimits::default())?;
    let shown = &video.info().timestamps;
    let indices: Vec<usize> = times
        .iter()
        .map(|t| shown.partition_point(|s| s <= t).saturating_sub(1))
        .collect();
    let frames = video.read_frames(&indices)?;
    let pictures = frames.into_iter().filter_map(|f| {
        let (w, h) = (f.width() as u32, f.height() as u32);
        RgbImage::from_raw(w, h, f.into_rgb())
    });
    Ok(times.iter().copied().zip(pictures).collect())
}

/// A bar for heads that work through many frames.
fn head_progress() -> HeadProgress {
    let bar = bar("", "{msg} {pos}/{len}");
    HeadProgress(Arc::new(move |what, done, total| {
        bar.set_length(total as u64);
        bar.set_message(what.to_string());
        bar.set_position(done as u64);
        if done >= total {
            bar.finish_and_clear();
        }
    }))
}

/// What a mask prediction says without its pixels.
fn summary(found: &MaskPrediction) -> String {
    let [height, width] = found.size;
    format!(
        "{} frame(s) of {width}x{height}, visible in {}",
        found.frames.len(),
        found.visible()
    )
}

/// Index in the file of the middle one of the frames that were looked at.
fn middle(media: &Media) -> usize {
    media.frames[media.frames.len() / 2]
}

/// The image itself, or the middle one of the frames that were looked at.
fn frame_of(media: &Media) -> Result<RgbImage> {
    let limits = MediaLimits::default();
    let frame = match media.kind {
        Visual::Video => {
            let frames = open_video(&media.path, &limits)?.read_frames(&[middle(media)])?;
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
