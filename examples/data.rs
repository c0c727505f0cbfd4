//! Check, look at and convert data sets.
//!
//! ```text
//! cargo run --release --example data -- validate my.jsonl
//! cargo run --release --example data -- preview my.jsonl --out sheet.png
//! cargo run --release --example data -- convert --from qvhighlights train.jsonl --out my.jsonl
//! ```

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image::RgbImage;
use indicatif::ProgressBar;
use tpo::data::feed::{Draw, ItemSeed, Truth, TruthRegion, TruthTarget, View};
use tpo::data::prompts::{AnswerStyle, PromptConfig, PromptWriter, Vocabulary};
use tpo::data::readers::{ConvertOptions, Format, convert};
use tpo::data::schema::{
    FramePosition, RowLimits, Sample, SampleReader, Summary, Target, check_media, open_media,
    write_row,
};
use tpo::data::{ClipConfig, DataError, MediaLimits, VideoInfo, VideoReader, select_frames};
use tpo::draw::{LabelledBox, draw_boxes_in, tint_mask};
use tpo::prelude::{BoxXyxy, TaskRegistry};
use tpo::sheet::{Axis, AxisSpan, Strip, contact_sheet};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Check, look at and convert data sets.
///
/// Everything in this project learns from one format: JSON lines, one sample a row. docs/DATA.md
/// explains every field; the shortest useful rows are
///
///   {"media": {"image": "a.jpg"}, "annotations":
///     [{"task": "region", "query": "the dog", "box": [0.1, 0.2, 0.5, 0.9]}]}
///   {"media": {"video": "b.mp4"}, "annotations":
///     [{"task": "temporal", "query": "a dog jumps", "spans": [[1.5, 4.0]]}]}
///   {"media": {"video": "b.mp4"}, "turns": [{"question": "What is it?", "answer": "A dog."}]}
///
/// (each on one line).
///
/// Media paths count from the folder of the file, or from --root.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check every row and every media file; list all problems with their lines.
    ///
    /// Rows are parsed, their numbers checked, their media opened (headers only) and held against
    /// the annotations. Prints counts, lengths and sizes. Exit code 0 when all is well, 1 when
    /// some row has a problem, 2 for wrong arguments.
    Validate(Validate),
    /// Draw the first rows with their annotations on one picture.
    ///
    /// For each row: sampled frames with boxes, masks and, below videos, the time axis with the
    /// annotated spans (black lines: the sampled frames). The caption is what the model will be
    /// asked and what it should say.
    Preview(Preview),
    /// Convert a public data set to the format of this project.
    ///
    /// Records that cannot be used are listed and left out. Nothing is downloaded and media is not
    /// touched; run `validate` on the result.
    #[command(after_help = formats())]
    Convert(Convert),
}

fn formats() -> String {
    let mut text = String::from("Formats:\n");
    for f in Format::ALL {
        text.push_str(&format!("  {:<22} {}\n", f.name(), f.help()));
    }
    text
}

#[derive(Args)]
struct Input {
    /// The JSON lines file.
    file: PathBuf,
    /// Folder media paths count from; by default that of the file.
    #[arg(long)]
    root: Option<PathBuf>,
}

impl Input {
    fn root(&self) -> PathBuf {
        let parent = || self.file.parent().map(Path::to_path_buf);
        self.root.clone().or_else(parent).unwrap_or_default()
    }
}

#[derive(Args)]
struct Validate {
    #[command(flatten)]
    input: Input,
    /// Check the rows only, not their media.
    #[arg(long)]
    no_media: bool,
    /// Print at most so many problems; all are counted.
    #[arg(long)]
    max_problems: Option<u64>,
}

#[derive(Args)]
struct Preview {
    #[command(flatten)]
    input: Input,
    /// Where the picture goes.
    #[arg(long, default_value = "preview.png")]
    out: PathBuf,
    /// Number of rows.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Begin at this line.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Frames of a video.
    #[arg(long, default_value_t = 4)]
    frames: usize,
    /// Width of the picture in pixels.
    #[arg(long, default_value_t = 1200)]
    width: u32,
    /// Seed of the question templates.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

#[derive(Args)]
struct Convert {
    /// Format of the input; see below.
    #[arg(long)]
    from: Format,
    /// The annotation file, or a folder for sa-v, lasot and got-10k.
    input: PathBuf,
    /// Where the rows go.
    #[arg(long)]
    out: PathBuf,
    /// The second file of formats that have two.
    #[arg(long)]
    second_file: Option<PathBuf>,
    /// Put in front of media paths: `videos/`.
    #[arg(long, default_value = "")]
    media_prefix: String,
    /// Extension of videos that are named without one.
    #[arg(long, default_value = "mp4")]
    extension: String,
    /// Lengths of the videos: JSON {video: seconds}, or csv with columns id and length.
    #[arg(long)]
    durations: Option<PathBuf>,
    /// Frames per second of folders of frames that do not say it themselves.
    #[arg(long)]
    frame_rate: Option<f64>,
    /// Only records of this split.
    #[arg(long)]
    split: Option<String>,
    /// Stop at the first record that cannot be used.
    #[arg(long)]
    strict: bool,
}

fn main() -> ExitCode {
    sigpipe::reset();
    let done = match Cli::parse().command {
        Command::Validate(args) => validate(&args),
        Command::Preview(args) => preview(&args),
        Command::Convert(args) => run_convert(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lists problems; whether there was none.
fn validate(args: &Validate) -> Outcome<bool> {
    let (file, root) = (&args.input.file, args.input.root());
    let limits = MediaLimits::default();
    let mut reader = SampleReader::open(file, RowLimits::default())?;
    let mut summary = Summary::default();
    let mut printed = 0;
    let mut tell = |text: String| {
        if args.max_problems.is_none_or(|max| printed < max) {
            println!("{text}");
        }
        printed += 1;
    };
    let bytes = std::fs::metadata(file)?.len();
    let progress = ProgressBar::new(bytes);
    while let Some(row) = reader.next_checked() {
        let (line, offset, row) = row?;
        progress.set_position(offset);
        let place = format!("{}:{line}", file.display());
        let (sample, mut problems) = match row {
            Ok(parsed) => parsed,
            Err(e) => {
                summary.bad_rows += 1;
                tell(format!("{place}: {}", e.fault));
                continue;
            }
        };
        let mut facts = None;
        let mut unreadable = None;
        if !args.no_media {
            match check_media(&sample, &root, &limits) {
                Ok(None) => {}
                Ok(Some((found, more))) => {
                    facts = Some(found);
                    // What the row alone shows is not told twice.
                    let new: Vec<_> = more
                        .into_iter()
                        .filter(|p| problems.iter().all(|known| known.at != p.at))
                        .collect();
                    problems.extend(new);
                }
                Err(e) => unreadable = Some(e),
            }
        }
        if problems.is_empty() && unreadable.is_none() {
            summary.add(&sample, facts.as_ref());
            continue;
        }
        summary.bad_rows += 1;
        problems.iter().for_each(|p| tell(format!("{place}: {p}")));
        if let Some(e) = unreadable {
            tell(format!("{place}: media: {e}"));
        }
    }
    progress.finish_and_clear();
    let hidden = args
        .max_problems
        .map_or(0, |max| printed.saturating_sub(max));
    if hidden > 0 {
        println!("... and {hidden} more problems");
    }
    print!("{summary}");
    if summary.rows + summary.bad_rows == 0 {
        println!("the file has no rows");
    }
    Ok(summary.bad_rows == 0)
}

fn preview(args: &Preview) -> Outcome<bool> {
    let root = args.input.root();
    let registry = TaskRegistry::videochat_tpo();
    let words = Vocabulary::from(&registry);
    // What the model says is shown in words: tokens would hide the answer.
    let config = PromptConfig {
        style: AnswerStyle::Text,
        ..PromptConfig::default()
    };
    let writer = PromptWriter::new(config, words)?;
    let mut reader = SampleReader::open(&args.input.file, RowLimits::default())?;
    let mut strips = Vec::new();
    let mut fine = true;
    while let Some(row) = reader.next_row() {
        if strips.len() >= args.rows {
            break;
        }
        let (line, _, row) = row?;
        if line < args.from {
            continue;
        }
        let strip = row.map_err(|e| e.to_string()).and_then(|sample| {
            strip(&sample, line, &root, &writer, args).map_err(|e| e.to_string())
        });
        strips.push(strip.unwrap_or_else(|why| {
            fine = false;
            eprintln!("line {line}: {why}");
            Strip {
                caption: vec![format!("line {line}: {why}")],
                pictures: Vec::new(),
                axis: None,
            }
        }));
    }
    if strips.is_empty() {
        return Err(format!("no row at or behind line {}", args.from).into());
    }
    contact_sheet(&strips, args.width)?.save(&args.out)?;
    println!("{}: {} rows", args.out.display(), strips.len());
    Ok(fine)
}

fn strip(
    sample: &Sample,
    line: u64,
    root: &Path,
    writer: &PromptWriter,
    args: &Preview,
) -> Outcome<Strip> {
    let mut truths = Vec::new();
    let mut turn_boxes = Vec::new();
    let (mut pictures, mut axis) = (Vec::new(), None);
    let mut what = String::from("text");
    if let Some(media) = &sample.media {
        let reader = open_media(media, root, &MediaLimits::default())?;
        let info = reader.info();
        let view = View {
            range: media.range,
            ..View::default()
        };
        let clip = ClipConfig {
            num_frames: if media.is_video() {
                args.frames.max(1)
            } else {
                1
            },
            range: media.range,
            ..ClipConfig::default()
        };
        let indices = match annotated_frames(sample, info, &view, args.frames) {
            // Between annotated frames an object moves; show it where the annotation was made.
            Some(indices) if media.is_video() => indices,
            _ => select_frames(info, &clip)?,
        };
        let times: Vec<f64> = indices
            .iter()
            .map(|i| info.timestamps.get(*i).copied().unwrap_or(0.0))
            .collect();
        for a in &sample.annotations {
            truths.push(Truth::new(a, info, &view, &times, 0)?);
        }
        let (w, h) = (info.width as u32, info.height as u32);
        for turn in &sample.turns {
            turn_boxes.push(turn.boxes.iter().map(|b| b.normalised(w, h)).collect());
        }
        pictures = draw(&*reader, &indices, &truths, &turn_boxes)?;
        let (start, end) = view.seconds(info);
        what = format!("{} {w}x{h}", media.path);
        if media.is_video() {
            what.push_str(&format!(", {:.1} s at {:.1} fps", end - start, info.fps));
            axis = Some(Axis {
                duration: end - start,
                frames: times.iter().map(|t| t - start).collect(),
                spans: spans(&truths),
            });
        }
    }
    let seed = ItemSeed {
        seed: args.seed,
        epoch: 0,
        index: line,
    };
    let dialogue = writer.write(
        &sample.turns,
        &turn_boxes,
        &truths,
        &mut Draw::new(seed, "prompt"),
    )?;
    let name = sample
        .id
        .as_ref()
        .map_or(String::new(), |id| format!(" ({id})"));
    let mut caption = vec![format!("line {line}{name}: {what}")];
    for (question, answer) in dialogue.turns.iter().take(3) {
        caption.push(format!("Q: {question}"));
        caption.push(format!("A: {answer}"));
    }
    Ok(Strip {
        caption,
        pictures,
        axis,
    })
}

/// Up to `count` frames of the clip that a track annotates, evenly spread; `None` without tracks.
fn annotated_frames(
    sample: &Sample,
    info: &VideoInfo,
    view: &View,
    count: usize,
) -> Option<Vec<usize>> {
    let (start, end) = view.seconds(info);
    let mut frames = Vec::new();
    for a in &sample.annotations {
        if let Target::Track(track) = &a.target {
            frames.extend(track.iter().map(|f| {
                match f.at {
                    FramePosition::Frame(n) => n as usize,
                    FramePosition::Time(t) => info
                        .timestamps
                        .partition_point(|s| *s < t)
                        .min(info.frame_count - 1),
                }
            }));
        }
    }
    frames.retain(|i| {
        info.timestamps
            .get(*i)
            .is_some_and(|t| (start..=end).contains(t))
    });
    frames.sort_unstable();
    frames.dedup();
    let count = count.clamp(1, frames.len().max(1));
    let last = frames.len().checked_sub(1)?;
    let place = |k: usize| frames[k * last / (count - 1).max(1)];
    Some((0..count).map(place).collect())
}

/// The frames with boxes and masks, one colour per annotation.
fn draw(
    reader: &dyn VideoReader,
    indices: &[usize],
    truths: &[Truth],
    turn_boxes: &[Vec<BoxXyxy>],
) -> Outcome<Vec<RgbImage>> {
    let mut pictures = Vec::new();
    for (i, frame) in reader.read_frames(indices)?.into_iter().enumerate() {
        let (w, h) = (frame.width() as u32, frame.height() as u32);
        let mut picture = RgbImage::from_raw(w, h, frame.into_rgb()).ok_or("odd frame")?;
        let (mut boxes, mut colours) = (Vec::new(), Vec::new());
        let mut add = |area: BoxXyxy, label: String, colour: usize| {
            boxes.push(LabelledBox { area, label });
            colours.push(colour);
        };
        for (k, truth) in truths.iter().enumerate() {
            let label = truth.query.clone().unwrap_or_else(|| truth.task.clone());
            let label: String = label.chars().take(28).collect();
            if let (0, Some(b)) = (i, truth.prompt_box) {
                add(b, format!("asked: {label}"), k);
            }
            match &truth.target {
                TruthTarget::Box(b) => add(*b, label, k),
                TruthTarget::Track(frames) => {
                    for f in frames.iter().filter(|f| f.sampled == i) {
                        match &f.region {
                            TruthRegion::Absent => {}
                            TruthRegion::Box(b) => add(*b, label.clone(), k),
                            TruthRegion::Mask(rle) => tint_mask(&mut picture, &rle.decode()?, k),
                        }
                    }
                }
                TruthTarget::Moments { .. } | TruthTarget::Value(_) => {}
            }
        }
        for b in turn_boxes.iter().flatten() {
            add(*b, "asked".into(), truths.len());
        }
        pictures.push(draw_boxes_in(&picture, &boxes, &colours)?);
    }
    Ok(pictures)
}

fn spans(truths: &[Truth]) -> Vec<AxisSpan> {
    let mut out = Vec::new();
    for (colour, truth) in truths.iter().enumerate() {
        if let TruthTarget::Moments { spans, .. } = &truth.target {
            out.extend(spans.iter().map(|s| AxisSpan {
                start: s.start,
                end: s.end,
                colour,
            }));
        }
    }
    out
}

fn run_convert(args: &Convert) -> Outcome<bool> {
    let options = ConvertOptions {
        media_prefix: args.media_prefix.clone(),
        video_extension: args.extension.clone(),
        second: args.second_file.clone(),
        durations: args.durations.clone(),
        frame_rate: args.frame_rate,
        split: args.split.clone(),
        ..ConvertOptions::default()
    };
    let samples = convert(args.from, &args.input, &options)?;
    // Under its name when it is whole: it may be there already, and may be the input.
    let mut unfinished = args.out.clone().into_os_string();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    let done = write_converted(args, samples, &unfinished);
    if done.is_err() {
        // What is not whole is of no use to anybody.
        std::fs::remove_file(&unfinished).ok();
    }
    done
}

fn write_converted(
    args: &Convert,
    samples: impl Iterator<Item = Result<Sample, DataError>>,
    unfinished: &Path,
) -> Outcome<bool> {
    const LISTED: u64 = 50;
    let file =
        std::fs::File::create(unfinished).map_err(|e| format!("{}: {e}", unfinished.display()))?;
    let mut out = BufWriter::new(file);
    let (mut written, mut refused) = (0u64, 0u64);
    let progress = ProgressBar::new_spinner();
    for sample in samples {
        progress.inc(1);
        let why = match sample {
            Ok(sample) => {
                let problems = sample.problems();
                if problems.is_empty() {
                    write_row(&sample, &mut out)?;
                    written += 1;
                    continue;
                }
                let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
                let name = sample.id.unwrap_or_default();
                format!("record {name}: {}", list.join("; "))
            }
            Err(e @ DataError::Io { .. }) => return Err(e.into()),
            Err(e) => e.to_string(),
        };
        refused += 1;
        if args.strict {
            return Err(why.into());
        }
        if refused <= LISTED {
            progress.suspend(|| eprintln!("left out: {why}"));
        }
    }
    progress.finish_and_clear();
    out.flush()?;
    drop(out);
    std::fs::rename(unfinished, &args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    if refused > LISTED {
        eprintln!("... and {} more", refused - LISTED);
    }
    println!(
        "{}: {written} rows, {refused} records left out",
        args.out.display()
    );
    Ok(written > 0)
}
