//! The mini model looks at a clip it has never seen and answers four questions.
//!
//! `cargo run --release --example quickstart`

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use image::codecs::gif::{GifEncoder, Repeat};
use image::imageops::{FilterType, replace, resize};
use image::{Delay, DynamicImage, Rgb, RgbImage};
use ndarray::Array2;
use tpo::data::synthetic::{Clip, Split, World, WorldConfig};
use tpo::data::{Frame, MediaLimits, open_video};
use tpo::draw::{
    COLOURS, LabelledBox, Timeline, draw_boxes, draw_boxes_in, draw_mask, draw_timeline,
};
use tpo::prelude::*;
use tpo::sheet::{Strip, contact_sheet};
use tpo::{Answer, Event, Media, Reply, presets};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Width of the sheet: that of the timeline.
const WIDTH: u32 = 960;
/// Side that small frames are enlarged to before anything is drawn on them.
const SHOWN: u32 = 288;
/// Frames of a strip.
const STRIP: usize = 6;

/// Let the trained mini model answer questions about a video: in words, with a box, with a time
/// and with masks.
///
/// Without arguments it makes a clip of the synthetic world whose combination of shape, colour and
/// event never occurs in training, asks one question of each kind and prints what is true beside
/// what the model says. Everything is drawn on one sheet.
#[derive(Parser)]
#[command(version, after_help = HELP)]
struct Args {
    /// Number of the made-up clip.
    #[arg(long, default_value_t = 12)]
    clip: u64,
    /// A video of your own instead. The mini model knows coloured shapes only; for real video see
    /// `chat --help`.
    #[arg(long, value_name = "FILE", requires = "ask")]
    video: Option<PathBuf>,
    /// A question; may be given several times. About the made-up clip if there is no --video.
    #[arg(long, value_name = "TEXT")]
    ask: Vec<String>,
    /// Folder for the pictures.
    #[arg(long, value_name = "DIR", default_value = "out/quickstart")]
    out: PathBuf,
    /// Where to compute: auto, cpu, cuda, wgpu.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

const HELP: &str = "\
Examples:
  quickstart
  quickstart --clip 5
  quickstart --clip 5 --ask 'Where is the orange cross at the end?'
  quickstart --video my.mp4 --ask 'Track the blue circle.'

Words it knows: circle square triangle star cross diamond; red green blue yellow purple orange cyan
white; blink grow spin change colour stop leave and return collide; at the start, at the end.";

fn main() -> ExitCode {
    sigpipe::reset();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<()> {
    let start = Instant::now();
    let options = SessionOptions {
        max_new_tokens: 24,
        ..SessionOptions::default()
    };
    let mut session = presets::mini(&args.device.open()?, options)?;
    let parameters = session.model().num_params();
    println!(
        "mini: {:.2} M parameters, loaded in {:.1} s",
        parameters as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    let (frames, looked, fps, asked) = match &args.video {
        Some(path) => {
            let media = session.load_video(path, None)?.clone();
            println!("{}: {}", path.display(), described(&media));
            let frames = open_video(path, &MediaLimits::default())?.read_frames(&media.frames)?;
            let fps = media.frames.len() as f64 / media.duration.unwrap_or(1.0).max(1e-3);
            let asked = args.ask.iter().map(|q| Asked::plain(q)).collect();
            (frames, media.frames, fps, asked)
        }
        None => {
            let clip = World::new(WorldConfig::default(), 1)?.clip(Split::HeldOut, args.clip);
            let rendered = clip.scene.render_all();
            let frames: Vec<Frame> = rendered
                .iter()
                .map(|f| f.to_frame())
                .collect::<Result<_, _>>()?;
            let media = session.load_frames(clip.name(), frames.clone(), clip.scene.fps)?;
            println!("{}: {}", clip.name(), described(media));
            let asked = match args.ask.is_empty() {
                true => four(&clip)?,
                false => args.ask.iter().map(|q| Asked::plain(q)).collect(),
            };
            let looked = (0..frames.len()).collect();
            (frames, looked, clip.scene.fps, asked)
        }
    };
    let pictures: Vec<RgbImage> = frames.into_iter().map(picture).collect::<Outcome<_>>()?;
    let mut sheet = Vec::new();
    let mut animation = None;
    for (number, asked) in asked.iter().enumerate() {
        session.clear_history();
        let (reply, said) = listen(session.ask(Question::new(&asked.question))?)?;
        println!("\n{}  {}", number + 1, asked.question);
        println!("   model  {said}");
        let mut caption = vec![asked.question.clone(), format!("model: {said}")];
        if let Some((truth, score)) = asked.truth.compare(&reply)? {
            println!("   truth  {truth}");
            println!("   {score}");
            caption.push(format!("truth: {truth} ({score})"));
        }
        sheet.extend(drawn(
            asked,
            &reply,
            &pictures,
            &looked,
            fps,
            caption,
            &mut animation,
        )?);
    }
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    println!();
    let path = args.out.join("sheet.png");
    stacked(&sheet).save(&path)?;
    println!("{}", path.display());
    if let Some(frames) = animation {
        let path = args.out.join("track.gif");
        write_gif(&path, &frames, fps)?;
        println!("{}", path.display());
    }
    println!("{:.1} s in all", start.elapsed().as_secs_f64());
    Ok(())
}

fn described(media: &Media) -> String {
    format!(
        "{} frames of {}x{} looked at, {:.1} s",
        media.frames.len(),
        media.size.0,
        media.size.1,
        media.duration.unwrap_or(0.0)
    )
}

/// A question and what is true.
struct Asked {
    question: String,
    truth: Truth,
}

enum Truth {
    Unknown,
    Words(String),
    Area(BoxXyxy, usize),
    Span(TimeSpan),
    Masks(Vec<Mask>),
}

impl Asked {
    fn plain(question: &str) -> Self {
        Self {
            question: question.into(),
            truth: Truth::Unknown,
        }
    }
}

/// One question of each kind that a clip can answer.
fn four(clip: &Clip) -> Outcome<Vec<Asked>> {
    let frames = clip.scene.render_all();
    let mut asked = Vec::new();
    if let Some(q) = clip.questions(&frames).into_iter().next() {
        asked.push(Asked {
            question: q.question,
            truth: Truth::Words(q.answer),
        });
    }
    if let Some(q) = clip.region_queries(&frames).into_iter().next() {
        asked.push(Asked {
            question: q.question,
            truth: Truth::Area(q.area, q.frame),
        });
    }
    if let Some(q) = clip.temporal_queries().into_iter().next()
        && let Some(&(start, end)) = q.spans.first()
    {
        asked.push(Asked {
            question: q.question,
            truth: Truth::Span(TimeSpan::new(start, end)?),
        });
    }
    if let Some(q) = clip.mask_queries(&frames).into_iter().next() {
        let masks = q.masks.iter().map(Rle::decode).collect::<Result<_, _>>()?;
        asked.push(Asked {
            question: q.question,
            truth: Truth::Masks(masks),
        });
    }
    Ok(asked)
}

fn task<T: Clone + 'static>(reply: &Reply) -> Option<T> {
    reply.tasks.iter().find_map(|t| t.get::<T>().cloned())
}

/// The answer, and the same in one line that has every prediction at its place in the sentence.
fn listen(answer: Answer<'_>) -> Outcome<(Reply, String)> {
    let mut reply = Reply::default();
    let mut said = String::new();
    for event in answer {
        match event? {
            Event::Text(text) => {
                said.push_str(&text);
                reply.text.push_str(&text);
            }
            Event::Task(output) => {
                said.push_str(&in_words(&output));
                reply.tasks.push(output);
            }
            Event::NoHead(name) => {
                said.push_str(&format!("(no {name} head)"));
                reply.without_head.push(name);
            }
        }
    }
    let said = match said.trim() {
        "" => "(nothing)".into(),
        // Words and nothing else are compared letter by letter with what is true.
        text if reply.tasks.is_empty() => format!("\"{text}\""),
        text => text.into(),
    };
    Ok((reply, said))
}

fn in_words(output: &TaskOutput) -> String {
    if let Some(found) = output.get::<RegionPrediction>() {
        area_text(&found.normalised)
    } else if let Some(best) = output.get::<TemporalPrediction>().and_then(|p| p.best()) {
        span_text(&best.span)
    } else if let Some(found) = output.get::<MaskPrediction>() {
        let frames = found.frames.len();
        format!("visible in {} of {frames} frames", found.visible())
    } else {
        format!("({}: nothing found)", output.task)
    }
}

fn area_text(area: &BoxXyxy) -> String {
    let numbers: Vec<String> = area.to_array().iter().map(|v| format!("{v:.2}")).collect();
    format!("[{}]", numbers.join(", "))
}

fn span_text(span: &TimeSpan) -> String {
    format!("{:.1} to {:.1} s", span.start, span.end)
}

impl Truth {
    /// What is true in words, and how near the answer comes.
    fn compare(&self, reply: &Reply) -> Outcome<Option<(String, String)>> {
        let missed = || "the head was not called".to_string();
        Ok(match self {
            Self::Unknown => None,
            Self::Words(answer) => {
                let right = reply.text.trim().eq_ignore_ascii_case(answer);
                let verdict = if right { "right" } else { "wrong" };
                Some((format!("\"{answer}\""), verdict.into()))
            }
            Self::Area(area, _) => {
                let score = task::<RegionPrediction>(reply);
                let score = score.map(|p| format!("IoU {:.2}", p.normalised.iou(area)));
                Some((area_text(area), score.unwrap_or_else(missed)))
            }
            Self::Span(span) => {
                let best = task::<TemporalPrediction>(reply).and_then(|p| p.best().cloned());
                let score = best.map(|b| format!("IoU {:.2}", b.span.iou(span)));
                Some((span_text(span), score.unwrap_or_else(missed)))
            }
            Self::Masks(masks) => {
                let shows = masks.iter().filter(|m| m.area() > 0).count();
                let truth = format!("visible in {shows} of {} frames", masks.len());
                let score = match task::<MaskPrediction>(reply) {
                    None => missed(),
                    Some(found) => {
                        let mut sum = 0.0;
                        for (frame, truth) in found.frames.iter().zip(masks) {
                            sum += overlap(&frame.mask.decode()?, truth);
                        }
                        format!("mean J {:.2}", sum / masks.len().max(1) as f64)
                    }
                };
                Some((truth, score))
            }
        })
    }
}

/// Intersection over union; 1 where both are empty.
fn overlap(a: &Mask, b: &Mask) -> f64 {
    let pairs = || a.0.iter().zip(&b.0);
    let either = pairs().filter(|(a, b)| **a || **b).count();
    let both = pairs().filter(|(a, b)| **a && **b).count();
    match either {
        0 => 1.0,
        n => both as f64 / n as f64,
    }
}

fn picture(frame: Frame) -> Outcome<RgbImage> {
    let (w, h) = (frame.width() as u32, frame.height() as u32);
    let picture =
        RgbImage::from_raw(w, h, frame.into_rgb()).ok_or("a frame is not as large as it says")?;
    let longest = w.max(h).max(1);
    if longest >= SHOWN {
        return Ok(picture);
    }
    let factor = SHOWN / longest;
    Ok(resize(
        &picture,
        w * factor,
        h * factor,
        FilterType::Nearest,
    ))
}

/// A mask at the size its frame is shown in.
fn enlarged_mask(mask: &Mask, (width, height): (u32, u32)) -> Mask {
    let (rows, columns) = mask.0.dim();
    let (height, width) = (height as usize, width as usize);
    Mask(Array2::from_shape_fn((height, width), |(y, x)| {
        mask.0[[y * rows / height, x * columns / width]]
    }))
}

/// Some of `n` things, evenly spread.
fn spread(n: usize) -> Vec<usize> {
    let count = n.min(STRIP);
    (0..count)
        .map(|i| i * (n - 1) / (count - 1).max(1))
        .collect()
}

/// The part of the sheet for one question.
fn drawn(
    asked: &Asked,
    reply: &Reply,
    frames: &[RgbImage],
    looked: &[usize],
    fps: f64,
    mut caption: Vec<String>,
    animation: &mut Option<Vec<RgbImage>>,
) -> Outcome<Vec<RgbImage>> {
    let strip = |caption: Vec<String>, pictures: Vec<RgbImage>| {
        let strip = Strip {
            caption,
            pictures,
            axis: None,
        };
        contact_sheet(&[strip], WIDTH)
    };
    if let Some(found) = task::<RegionPrediction>(reply) {
        let (truth, at) = match &asked.truth {
            Truth::Area(area, frame) => (Some(*area), *frame),
            _ => (None, 0),
        };
        let mut boxes = vec![labelled(found.normalised, "model")];
        boxes.extend(truth.map(|area| labelled(area, "truth")));
        let shown = draw_boxes_in(&frames[at.min(frames.len() - 1)], &boxes, &[0, 2])?;
        return Ok(vec![strip(caption, vec![shown])?]);
    }
    if let Some(found) = task::<TemporalPrediction>(reply) {
        let mut timeline = Timeline {
            title: String::new(),
            duration: found.duration,
            curve: found.saliency.clone(),
            clip_seconds: found.clip_seconds,
            predicted: found.spans.iter().take(1).cloned().collect(),
            truth: match &asked.truth {
                Truth::Span(span) => vec![*span],
                _ => Vec::new(),
            },
            thumbnails: Vec::new(),
        };
        for at in spread(frames.len()) {
            timeline
                .thumbnails
                .push((at as f64 / fps, frames[at].clone()));
        }
        return Ok(vec![strip(caption, Vec::new())?, draw_timeline(&timeline)?]);
    }
    if let Some(found) = task::<MaskPrediction>(reply) {
        let mut all = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            let mut shown = frame.clone();
            if let Some(tracked) = found.frames.iter().find(|f| f.frame == looked[i]) {
                let mask = enlarged_mask(&tracked.mask.decode()?, shown.dimensions());
                draw_mask(&mut shown, &mask, COLOURS[0])?;
                let boxes: Vec<LabelledBox> = tracked
                    .area
                    .iter()
                    .map(|area| labelled(*area, &format!("{:.1} s", i as f64 / fps)))
                    .collect();
                shown = draw_boxes(&shown, &boxes)?;
            }
            all.push(shown);
        }
        let some = spread(all.len()).into_iter().map(|i| all[i].clone());
        let part = strip(caption, some.collect())?;
        *animation = Some(all);
        return Ok(vec![part]);
    }
    let some = spread(frames.len()).into_iter().map(|i| frames[i].clone());
    caption.truncate(4);
    Ok(vec![strip(caption, some.collect())?])
}

fn labelled(area: BoxXyxy, label: &str) -> LabelledBox {
    LabelledBox {
        area,
        label: label.into(),
    }
}

/// Pictures one below the other.
fn stacked(parts: &[RgbImage]) -> RgbImage {
    let width = parts.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = parts.iter().map(RgbImage::height).sum::<u32>().max(1);
    let mut sheet = RgbImage::from_pixel(width, height, Rgb([250, 250, 248]));
    let mut y = 0;
    for part in parts {
        replace(&mut sheet, part, 0, y);
        y += i64::from(part.height());
    }
    sheet
}

fn write_gif(path: &Path, frames: &[RgbImage], fps: f64) -> Outcome<()> {
    let file = File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut gif = GifEncoder::new_with_speed(BufWriter::new(file), 10);
    gif.set_repeat(Repeat::Infinite)?;
    for frame in frames {
        let rgba = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
        let delay = Delay::from_numer_denom_ms((1000.0 / fps).clamp(20.0, 2000.0) as u32, 1);
        gif.encode_frame(image::Frame::from_parts(rgba, 0, 0, delay))?;
    }
    Ok(())
}
