//! Ask a video or an image a question; what the heads find is drawn: boxes and masks on a frame, time
//! spans and the saliency curve on a timeline.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;
use tpo_core::geometry::{BoxXyxy, TimeSpan};
use tpo_core::head::{HeadSet, Shape, TaskOutput};
use tpo_core::prompt::Visual;
use tpo_data::{MediaLimits, open_video, read_image};
use tpo_llm::sampling::SamplingConfig;

use super::shared::{
    End, MAX_NEW_TOKENS, ModelArgs, Outcome, TRACK_SAMPLED, counting, head_progress,
};
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
/// is the red circle at the start?", "When does the blue square blink?", "Track the green star." `tpo
/// synthetic out/world` draws clips of it.
///
/// "When?" asked of VideoChat-TPO needs InternVideo2-CLIP (--towers, --features). Without it, and where a
/// head lacks anything else, the answer goes on in words, `[temporal: not answered]` stands in the head's
/// place, and standard error says what is missing and how to get it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo chat --video out/world/train-000000.gif --ask 'Where is the white square at the start?'
  tpo chat --video clip.mp4 --ask 'Where is the dog?'
  tpo chat --video clip.mp4 --ask 'When does the dog jump?' --truth 3-7.5
  tpo chat --video clip.mp4 --ask 'Follow the dog.'
  tpo chat --model VideoChat-TPO --video clip.mp4 --ask 'Follow the dog.' --track sampled
  tpo chat --model VideoChat-TPO --towers InternVideo2-CLIP --video clip.mp4 --ask 'When is the goal?'
  tpo chat --model VideoChat-TPO --towers InternVideo2-CLIP --towers-device cpu --feature-cache features --video clip.mp4 --ask 'When is the goal?'
  tpo chat --model VideoChat-TPO --video clip.mp4 --ask 'What happens?' --ask 'And then?'
  tpo chat --image photo.png --ask 'What is in <track_box>?' --box 0.1,0.2,0.5,0.8")]
pub(super) struct Args {
    /// Video file (MP4 with H.264, GIF; anything else with the feature `ffmpeg`)
    #[arg(long, required_unless_present = "image", conflicts_with = "image")]
    video: Option<PathBuf>,
    /// Image file (PNG, JPEG, WebP, BMP); repeat for several, for a model that reads several
    #[arg(long)]
    image: Vec<PathBuf>,
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
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Picture to write when something that lies on a frame is predicted: a box, a mask, a point
    #[arg(long, default_value = "out/chat.png")]
    out: PathBuf,
    /// Second of the video whose frame the picture shows [default: where boxes and points are, its
    /// start, else the frame of the largest mask]
    #[arg(long, value_name = "SECONDS", value_parser = parse_second, allow_negative_numbers = true)]
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

fn parse_second(text: &str) -> Result<f64, String> {
    let second = text.trim().parse().ok();
    let second = second.filter(|s: &f64| s.is_finite() && *s >= 0.0);
    second.ok_or_else(|| "expected a number of seconds, 0 or more".into())
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
        progress: Some(head_progress(Some(TRACK_SAMPLED))),
        max_new_tokens: MAX_NEW_TOKENS,
        ..SessionOptions::default()
    })?;
    let start = Instant::now();
    let media = match &args.video {
        Some(path) => counting("frames", |heard| {
            session.load_video(path, Some(heard)).cloned()
        })?,
        None => session.load_images(&args.image)?.clone(),
    };
    let (w, h) = media.size;
    let length = media
        .duration
        .map_or(String::new(), |d| format!(", {d:.2} s"));
    let others = match args.image.len() {
        0 | 1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    eprintln!(
        "{}{others}: {w}x{h}{length}, {} frame(s) read and encoded in {:.2} s",
        media.path.display(),
        media.frames.len().max(args.image.len()),
        start.elapsed().as_secs_f64()
    );

    let mut answers: Vec<(TaskOutput, String)> = Vec::new();
    for (turn, text) in args.ask.iter().enumerate() {
        println!("> {}", shorten(text));
        let mut question = Question::new(text);
        question.boxes.extend(args.area.filter(|_| turn == 0));
        question.tasks.clone_from(&args.task);
        let start = Instant::now();
        let mut unanswered = Vec::new();
        let mut words: Vec<f64> = Vec::new();
        for event in session.ask(question)? {
            let output = match event? {
                Event::Text(piece) => {
                    print!("{piece}");
                    let _ = std::io::stdout().flush();
                    words.push(start.elapsed().as_secs_f64());
                    continue;
                }
                Event::NoHead(task) => {
                    print!("[{task}: this build has no such head]");
                    continue;
                }
                Event::Unanswered(call) => {
                    print!("[{}: not answered]", call.task);
                    unanswered.push(call.why);
                    continue;
                }
                Event::Task(output) => output,
            };
            print!("[{} {}]", output.task, output.drawing().text);
            answers.push((output, shorten(text)));
        }
        println!();
        for why in unanswered {
            eprintln!("not answered: {why}");
        }
        let pace = match (words.first(), words.last()) {
            (Some(first), Some(last)) if words.len() > 1 => format!(
                ", first words after {first:.2} s, then {:.3} s each",
                (last - first) / (words.len() - 1) as f64
            ),
            _ => String::new(),
        };
        eprintln!("answered in {:.2} s{pace}", start.elapsed().as_secs_f64());
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
    let shapes: Vec<&Shape> = shown.iter().flat_map(|(d, _)| &d.shapes).collect();
    // Masks count the frames that were followed; boxes and points are of the first that was looked at.
    let followed = |looked_at: usize| {
        let frame = media.frames[looked_at];
        media.followed.iter().position(|f| *f == frame).unwrap_or(0)
    };
    let index = match args.at {
        Some(at) => {
            let looked_at = media.timestamps.partition_point(|t| *t < at);
            followed(looked_at.min(media.frames.len() - 1))
        }
        None => telling_frame(&shapes).unwrap_or(followed(0)),
    };
    let frame = pictures(media, &[media.followed[index]])?;
    let frame = frame.into_iter().next();
    let frame = frame.ok_or("the frame could not be read again")?;
    if let Some(drawn) = draw_shapes(&enlarged(frame, ENLARGED), &shown, index)? {
        save_picture(&drawn, &args.out)?;
        eprintln!("wrote {}", args.out.display());
    } else if telling_frame(&shapes).is_some() {
        eprintln!(
            "no picture: nothing was found on that frame; leave out --at for one that shows it"
        );
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

/// The frame of the largest mask; none where a box or a point tells of the first frame looked at.
fn telling_frame(shapes: &[&Shape]) -> Option<usize> {
    let on_first = |shape: &&Shape| matches!(shape, Shape::Box(_) | Shape::Point(_));
    if shapes.iter().any(on_first) {
        return None;
    }
    let masks = shapes.iter().filter_map(|shape| match shape {
        Shape::Mask { frame, mask } => Some((*frame, mask.area().ok()?)),
        _ => None,
    });
    // Of equal ones the first.
    Some(masks.rev().max_by_key(|(_, area)| *area)?.0)
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

#[cfg(test)]
mod tests {
    use tpo_core::geometry::{Mask, Rle};

    use super::*;

    #[test]
    fn pictures_show_the_frame_that_tells() {
        let mask = |frame: usize, pixels: usize| {
            let mut mask = Mask(ndarray::Array2::from_elem((4, 4), false));
            mask.0.iter_mut().take(pixels).for_each(|p| *p = true);
            Shape::Mask {
                frame,
                mask: Rle::encode(&mask),
            }
        };
        let (small, large, same) = (mask(40, 1), mask(70, 5), mask(90, 5));
        assert_eq!(telling_frame(&[&small, &large, &same]), Some(70));
        let area = Shape::Box(BoxXyxy::from([0.1, 0.1, 0.5, 0.5]));
        assert_eq!(telling_frame(&[&small, &area]), None);
        assert_eq!(telling_frame(&[]), None);
    }

    #[test]
    fn seconds_are_checked() {
        assert_eq!(parse_second("2.5"), Ok(2.5));
        for text in ["-5", "nan", "inf", "soon"] {
            assert!(parse_second(text).is_err(), "{text}");
        }
    }
}
