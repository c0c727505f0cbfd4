//! The mini model looks at a clip it has never seen and answers four questions.
//!
//! `cargo run --release --example quickstart`, with `-- --help` for questions and videos of your own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use image::RgbImage;
use tpo::data::synthetic::{Clip, Split, World, WorldConfig};
use tpo::data::{Frame, MediaLimits, open_video};
use tpo::draw::{
    Animation, COLOURS, LabelledBox, Timeline, draw_boxes, draw_boxes_in, draw_mask, draw_timeline,
    enlarged, picture, save_picture, stacked,
};
use tpo::prelude::*;
use tpo::sheet::{Strip, contact_sheet};
use tpo::{Answer, Media, presets};

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
    /// `tpo chat --help`.
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

/// What the pictures are made of: frames, their indices in the video, and their rate.
struct Film {
    pictures: Vec<RgbImage>,
    indices: Vec<usize>,
    fps: f64,
}

fn main() -> ExitCode {
    sigpipe::reset();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Outcome<()> {
    let start = Instant::now();
    let options = SessionOptions {
        max_new_tokens: 24,
        ..SessionOptions::default()
    };
    let mut session = presets::mini(&args.device.open()?, options)?;
    println!(
        "mini: {:.2} M parameters, loaded in {:.1} s",
        session.model().num_params() as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    let mut asked: Vec<(String, Truth)> = Vec::new();
    asked.extend(args.ask.iter().map(|q| (q.clone(), Truth::Unknown)));
    let (frames, indices, fps) = match &args.video {
        Some(path) => {
            let media = session.load_video(path, None)?.clone();
            println!("{}: {}", path.display(), described(&media));
            let frames = open_video(path, &MediaLimits::default())?.read_frames(&media.frames)?;
            let fps = media.frames.len() as f64 / media.duration.unwrap_or(1.0).max(1e-3);
            (frames, media.frames, fps)
        }
        None => {
            let clip = World::new(WorldConfig::default(), 1)?.clip(Split::HeldOut, args.clip);
            let frames = clip.scene.render_all();
            let frames: Vec<Frame> = frames
                .iter()
                .map(|f| f.to_frame())
                .collect::<Result<_, _>>()?;
            let media = session.load_frames(clip.name(), frames.clone(), clip.scene.fps)?;
            println!("{}: {}", clip.name(), described(media));
            if asked.is_empty() {
                asked = four(&clip)?;
            }
            let indices = (0..frames.len()).collect();
            (frames, indices, clip.scene.fps)
        }
    };
    let pictures = frames.into_iter().map(|f| Ok(enlarged(picture(f)?, SHOWN)));
    let film = Film {
        pictures: pictures.collect::<tpo::Result<_>>()?,
        indices,
        fps,
    };
    let mut sheet = Vec::new();
    let mut tracked = None;
    for (number, (question, truth)) in asked.iter().enumerate() {
        session.clear_history();
        let (reply, said) = listen(session.ask(Question::new(question))?)?;
        println!("\n{}  {question}", number + 1);
        println!("   model  {said}");
        let mut caption = vec![question.clone(), format!("model: {said}")];
        if let Some((truth, score)) = truth.compare(&reply)? {
            println!("   truth  {truth}");
            println!("   {score}");
            caption.push(format!("truth: {truth} ({score})"));
        }
        sheet.extend(film.part(caption, &reply, truth)?);
        if let Some(found) = prediction::<MaskPrediction>(&reply) {
            tracked = Some(film.masked(found)?);
        }
    }
    println!();
    let path = args.out.join("sheet.png");
    save_picture(&stacked(&sheet), &path)?;
    println!("{}", path.display());
    if let Some(pictures) = tracked {
        let path = args.out.join("track.gif");
        let mut animation = Animation::create(&path, film.fps)?;
        for picture in pictures {
            animation.push(picture)?;
        }
        println!("{}", path.display());
    }
    println!("{:.1} s in all", start.elapsed().as_secs_f64());
    Ok(())
}

fn described(media: &Media) -> String {
    let ((w, h), frames) = (media.size, media.frames.len());
    let seconds = media.duration.unwrap_or(0.0);
    format!("{frames} frames of {w}x{h} looked at, {seconds:.1} s")
}

/// What is true of a question.
enum Truth {
    Unknown,
    Words(String),
    Area(BoxXyxy, usize),
    Span(TimeSpan),
    Masks(Vec<Mask>),
}

/// One question of each kind that a clip can answer.
fn four(clip: &Clip) -> Outcome<Vec<(String, Truth)>> {
    let frames = clip.scene.render_all();
    let mut asked = Vec::new();
    if let Some(q) = clip.questions(&frames).into_iter().next() {
        asked.push((q.question, Truth::Words(q.answer)));
    }
    if let Some(q) = clip.region_queries(&frames).into_iter().next() {
        asked.push((q.question, Truth::Area(q.area, q.frame)));
    }
    if let Some(q) = clip.temporal_queries().into_iter().next()
        && let Some(&(start, end)) = q.spans.first()
    {
        asked.push((q.question, Truth::Span(TimeSpan::new(start, end)?)));
    }
    if let Some(q) = clip.mask_queries(&frames).into_iter().next() {
        let masks = q.masks.iter().map(Rle::decode).collect::<Result<_, _>>()?;
        asked.push((q.question, Truth::Masks(masks)));
    }
    Ok(asked)
}

fn prediction<T: 'static>(reply: &Reply) -> Option<&T> {
    reply.tasks.iter().find_map(|t| t.get())
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
            Event::NoHead(name) => said.push_str(&format!("(no {name} head)")),
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
    let [x0, y0, x1, y1] = area.to_array();
    format!("[{x0:.2}, {y0:.2}, {x1:.2}, {y1:.2}]")
}

fn span_text(span: &TimeSpan) -> String {
    format!("{:.1} to {:.1} s", span.start, span.end)
}

impl Truth {
    /// What is true in words, and how near the answer comes.
    fn compare(&self, reply: &Reply) -> Outcome<Option<(String, String)>> {
        let (truth, score) = match self {
            Self::Unknown => return Ok(None),
            Self::Words(answer) => {
                let right = reply.text.trim().eq_ignore_ascii_case(answer);
                let verdict = if right { "right" } else { "wrong" };
                (format!("\"{answer}\""), Some(verdict.to_string()))
            }
            Self::Area(area, _) => {
                let found = prediction::<RegionPrediction>(reply);
                let score = found.map(|p| format!("IoU {:.2}", p.normalised.iou(area)));
                (area_text(area), score)
            }
            Self::Span(span) => {
                let best = prediction::<TemporalPrediction>(reply).and_then(|p| p.best());
                let score = best.map(|b| format!("IoU {:.2}", b.span.iou(span)));
                (span_text(span), score)
            }
            Self::Masks(masks) => {
                let shows = masks.iter().filter(|m| m.area() > 0).count();
                let truth = format!("visible in {shows} of {} frames", masks.len());
                let mut score = None;
                if let Some(found) = prediction::<MaskPrediction>(reply) {
                    let mut sum = 0.0;
                    for (frame, truth) in found.frames.iter().zip(masks) {
                        let mask = frame.mask.decode()?;
                        sum += match mask.area() + truth.area() {
                            0 => 1.0,
                            _ => mask.iou(truth)?,
                        };
                    }
                    score = Some(format!("mean J {:.2}", sum / masks.len().max(1) as f64));
                }
                (truth, score)
            }
        };
        let score = score.unwrap_or_else(|| "the head was not called".into());
        Ok(Some((truth, score)))
    }
}

impl Film {
    /// The part of the sheet for one question.
    fn part(&self, caption: Vec<String>, reply: &Reply, truth: &Truth) -> Outcome<Vec<RgbImage>> {
        let strip = |pictures: Vec<RgbImage>| {
            let (caption, axis) = (caption.clone(), None);
            let strip = Strip {
                caption,
                pictures,
                axis,
            };
            contact_sheet(&[strip], WIDTH)
        };
        let some = |pictures: &[RgbImage]| {
            let spread = spread(pictures.len()).into_iter();
            spread.map(|i| pictures[i].clone()).collect()
        };
        if let Some(found) = prediction::<RegionPrediction>(reply) {
            let mut boxes = vec![LabelledBox::new(found.normalised, "model")];
            let mut at = 0;
            if let Truth::Area(area, frame) = truth {
                boxes.push(LabelledBox::new(*area, "truth"));
                at = *frame;
            }
            let frame = &self.pictures[at.min(self.pictures.len() - 1)];
            return Ok(vec![strip(vec![draw_boxes_in(frame, &boxes, &[0, 2])?])?]);
        }
        if let Some(found) = prediction::<TemporalPrediction>(reply) {
            let thumbnail = |at: usize| (at as f64 / self.fps, self.pictures[at].clone());
            let timeline = Timeline {
                title: String::new(),
                duration: found.duration,
                curve: found.saliency.clone(),
                clip_seconds: found.clip_seconds,
                predicted: found.spans.iter().take(1).cloned().collect(),
                truth: match truth {
                    Truth::Span(span) => vec![*span],
                    _ => Vec::new(),
                },
                thumbnails: spread(self.pictures.len())
                    .into_iter()
                    .map(thumbnail)
                    .collect(),
            };
            return Ok(vec![strip(Vec::new())?, draw_timeline(&timeline)?]);
        }
        Ok(vec![match prediction::<MaskPrediction>(reply) {
            Some(found) => strip(some(&self.masked(found)?))?,
            None => strip(some(&self.pictures))?,
        }])
    }

    /// The frames with the masks of an object and a box around each.
    fn masked(&self, found: &MaskPrediction) -> Outcome<Vec<RgbImage>> {
        let mut all = self.pictures.clone();
        for (i, shown) in all.iter_mut().enumerate() {
            let here = found.frames.iter().find(|f| f.frame == self.indices[i]);
            let Some(tracked) = here else { continue };
            draw_mask(shown, &tracked.mask.decode()?, COLOURS[0]);
            let time = format!("{:.1} s", i as f64 / self.fps);
            let boxes = tracked
                .area
                .iter()
                .map(|area| LabelledBox::new(*area, &time));
            *shown = draw_boxes(shown, &boxes.collect::<Vec<_>>())?;
        }
        Ok(all)
    }
}

/// Some of `n` things, evenly spread.
fn spread(n: usize) -> Vec<usize> {
    let count = n.min(STRIP);
    let place = |i: usize| i * (n - 1) / (count - 1).max(1);
    (0..count).map(place).collect()
}
