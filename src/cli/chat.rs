//! Ask a video or an image a question; what the heads find is drawn: boxes and masks on a frame, time
//! spans and the saliency curve on a timeline.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;
use tpo_core::geometry::{BoxXyxy, TimeSpan};
use tpo_core::head::{HeadSet, TaskOutput};
use tpo_core::prompt::Visual;
use tpo_data::{MediaLimits, open_video, read_image};
use tpo_llm::sampling::SamplingConfig;

use super::shared::{End, ModelArgs, Outcome, counting, head_progress};
use crate::draw::{Axis, Strip, contact_sheet, draw_shapes, enlarged, picture, save_picture};
use crate::session::{Event, Media, Question, SessionOptions};

/// Longest side in pixels up to which the frames of small videos are enlarged, so that labels fit.
const ENLARGED: u32 = 640;
/// Width of the timeline in pixels.
const WIDTH: u32 = 960;

/// Ask a video or an image a question.
///
/// The answer is streamed. Where the model calls a head, the prediction is printed and drawn: a box
/// or a mask on a frame, time spans and the saliency curve on a timeline. Without --model the
/// mini model of the library answers, which knows coloured shapes of the synthetic world only: "Where
/// is the red circle at the start?", "When does the blue square blink?", "Track the green star."
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo chat --video clip.mp4 --ask 'Where is the dog?'
  tpo chat --video clip.mp4 --ask 'When does the dog jump?' --truth 3-7.5
  tpo chat --video clip.mp4 --ask 'Follow the dog.'
  tpo chat --model VideoChat-TPO --towers InternVideo2-CLIP --video clip.mp4 --ask 'When is the goal?'
  tpo chat --model VideoChat-TPO --video clip.mp4 --ask 'What happens?' --ask 'And then?'
  tpo chat --image photo.png --ask 'What is in <track_box>?' --box 0.1,0.2,0.5,0.8")]
pub(super) struct Args {
    /// Video file (MP4 with H.264, GIF; anything else with the feature `ffmpeg`)
    #[arg(long, required_unless_present = "image", conflicts_with = "image")]
    video: Option<PathBuf>,
    /// Image file (PNG, JPEG, WebP, BMP)
    #[arg(long)]
    image: Option<PathBuf>,
    /// Question; repeat for several turns
    #[arg(long, required = true)]
    ask: Vec<String>,
    /// Box the first question is about, x0,y0,x1,y1 between 0 and 1
    #[arg(long = "box", value_parser = parse_box)]
    area: Option<BoxXyxy>,
    /// Call this head (region, temporal, mask, or your own) at the start of every answer, whatever the model says
    #[arg(long)]
    task: Vec<String>,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Picture to write when something that lies on a frame is predicted: a box, a mask, a point
    #[arg(long, default_value = "out/chat.png")]
    out: PathBuf,
    /// Second of the video whose frame the picture shows [default: its middle]
    #[arg(long, value_name = "SECONDS")]
    at: Option<f64>,
    /// Timeline to write when time spans are predicted
    #[arg(long, default_value = "out/timeline.png")]
    timeline: PathBuf,
    /// True span START-END in seconds, drawn on the timeline; repeat for several
    #[arg(long, value_parser = parse_span)]
    truth: Vec<TimeSpan>,
    #[command(flatten)]
    model: ModelArgs,
}

fn parse_box(text: &str) -> Result<BoxXyxy, String> {
    let number = |text: &str| {
        let number = text.trim().parse::<f32>();
        number.map_err(|_| format!("`{text}` is not a number"))
    };
    let numbers = text.trim_matches(['[', ']']).split(',').map(number);
    let numbers: Vec<f32> = numbers.collect::<Result<_, _>>()?;
    let four: [f32; 4] = numbers
        .try_into()
        .map_err(|n: Vec<f32>| format!("four numbers are needed, {} were given", n.len()))?;
    let area = BoxXyxy::from(four).check("--box");
    area.map_err(|e| e.to_string())
}

fn parse_span(text: &str) -> Result<TimeSpan, String> {
    let (start, end) = text
        .split_once('-')
        .ok_or("a span is START-END in seconds, for example 3-7.5")?;
    let number = |text: &str| {
        let number = text.trim().parse::<f64>();
        number.map_err(|_| format!("`{text}` is not a number"))
    };
    TimeSpan::new(number(start)?, number(end)?).map_err(|e| e.to_string())
}

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    let (mut session, _) = args.model.open::<H>(SessionOptions {
        decoding: SamplingConfig::sampling(args.temperature, args.model.seed),
        progress: Some(head_progress()),
        ..SessionOptions::default()
    })?;
    let start = Instant::now();
    let media = match (&args.video, &args.image) {
        (Some(path), _) => counting("frames", |heard| {
            session.load_video(path, Some(heard)).cloned()
        })?,
        (None, Some(path)) => session.load_image(path)?.clone(),
        (None, None) => return Err("give --video or --image".into()),
    };
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

    let mut answers: Vec<(TaskOutput, String)> = Vec::new();
    for (turn, text) in args.ask.iter().enumerate() {
        println!("> {}", shorten(text));
        let mut question = Question::new(text);
        question.boxes.extend(args.area.filter(|_| turn == 0));
        question.tasks.clone_from(&args.task);
        let start = Instant::now();
        for event in session.ask(question)? {
            let output = match event? {
                Event::Text(piece) => {
                    print!("{piece}");
                    let _ = std::io::stdout().flush();
                    continue;
                }
                Event::NoHead(task) => {
                    println!("[{task}: this build has no such head]");
                    continue;
                }
                Event::Task(output) => output,
            };
            println!("[{} {}]", output.task, output.drawing().text);
            answers.push((output, shorten(text)));
        }
        println!();
        eprintln!("answered in {:.2} s", start.elapsed().as_secs_f64());
    }
    draw(&args, &media, &answers)?;
    Ok(End::Fine)
}

/// Writes the pictures of what was answered.
fn draw(args: &Args, media: &Media, answers: &[(TaskOutput, String)]) -> Outcome<()> {
    let shown: Vec<_> = answers
        .iter()
        .map(|(output, text)| (output.drawing(), text.clone()))
        .collect();
    if shown.is_empty() {
        return Ok(());
    }
    let last = media.frames.len() - 1;
    let looked_at = args.at.map_or(media.frames.len() / 2, |at| {
        media.timestamps.partition_point(|t| *t < at).min(last)
    });
    let index = media.frames[looked_at];
    let frame = pictures(media, &[index])?;
    let frame = frame.into_iter().next();
    let frame = frame.ok_or("the frame could not be read again")?;
    if let Some(drawn) = draw_shapes(&enlarged(frame, ENLARGED), &shown, index)? {
        save_picture(&drawn, &args.out)?;
        eprintln!("wrote {}", args.out.display());
    }
    let duration = media.duration.unwrap_or_default();
    let axes = shown.iter().rev();
    let mut axes = axes.filter_map(|(d, text)| Some((Axis::of(d, duration)?, text)));
    if let Some((axis, text)) = axes.next() {
        let times = axis.telling_times();
        let video = open_video(&media.path, &MediaLimits::default())?;
        let shown = &video.info().timestamps;
        let frames = times.map(|t| shown.partition_point(|s| *s <= t).saturating_sub(1));
        let mut axis = axis.with_truth(&args.truth);
        axis.frames = times.to_vec();
        let strip = Strip {
            caption: vec![text.clone()],
            pictures: pictures(media, &frames)?,
            axis: Some(axis),
        };
        save_picture(&contact_sheet(&[strip], WIDTH)?, &args.timeline)?;
        eprintln!("wrote {}", args.timeline.display());
    }
    Ok(())
}

/// Frames of the video by their index, or the image itself.
fn pictures(media: &Media, frames: &[usize]) -> Outcome<Vec<RgbImage>> {
    let limits = MediaLimits::default();
    let frames = match media.kind {
        Visual::Video => open_video(&media.path, &limits)?.read_frames(frames)?,
        _ => vec![read_image(&media.path, &limits)?],
    };
    Ok(frames
        .into_iter()
        .map(picture)
        .collect::<crate::Result<_>>()?)
}

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(80) {
        Some(_) => line.chars().take(79).chain(['…']).collect(),
        None => line.to_string(),
    }
}
