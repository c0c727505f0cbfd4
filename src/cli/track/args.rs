//! The command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use tpo_core::geometry::BoxXyxy;

use crate::cli::shared::{DeviceArgs, Precision, QuantizeArg};

/// Follow objects through a video with SAM 2.
///
/// Every object gets a box or points on one frame; its masks on all following frames are written
/// as run lengths in COCO's form, with a box around each, and drawn in an animated picture. Frames
/// are read as they are needed and forgotten afterwards, so that the length of the video does not
/// matter for memory.
///
/// With --ask a video language model reads the question and its mask head says what to follow.
///
/// Without --weights (or --model) the mini model's SAM 2 runs: it works on 128 pixels and knows the
/// coloured shapes of the synthetic world, nothing else.
#[derive(clap::Args)]
#[command(after_help = "Prompts:
  [OBJECT:]x0,y0,x1,y1[@FRAME]   a box          [OBJECT:]x,y[@FRAME]   a point
  Coordinates are shares of width and height, 0 to 1 from the top left. Frames count from 0, the
  default. Boxes without an object's number are objects 1, 2, ..; points without one belong to
  object 1. Points of an object that also has a box on that frame refine the box.

Weights:
  --weights takes a safetensors file or a directory of them, under the names of the SAM 2 release,
  of Hugging Face (facebook/sam2.1-hiera-large, with its config.json), or of VideoChat-TPO. For the
  release's names say --size and --sam; a config.json and VideoChat-TPO say them themselves.
  Without --weights, --size builds that size with random weights, to see how fast it is.

Examples:
  tpo track --video clip.mp4 --box 0.3,0.2,0.6,0.9
  tpo track --video clip.mp4 --weights sam2.1-hiera-large --box 0.3,0.2,0.6,0.9 --point 0.5,0.5
  tpo track --video clip.mp4 --weights sam2_hiera_tiny.safetensors --size tiny \\
        --box 1:0.3,0.2,0.6,0.9 --point 2:0.8,0.5@30 --not-point 2:0.9,0.5@30 --backward
  tpo track --video clip.mp4 --model VideoChat-TPO --ask 'Follow the dog.'")]
pub struct Args {
    /// Video file (MP4 with H.264, GIF; anything else with the feature `ffmpeg`)
    #[arg(long)]
    pub video: PathBuf,
    /// Box around an object; repeat for several
    #[arg(long = "box")]
    pub boxes: Vec<String>,
    /// Point on an object
    #[arg(long = "point")]
    pub points: Vec<String>,
    /// Point beside an object
    #[arg(long = "not-point")]
    pub not_points: Vec<String>,
    /// Question about what to follow, in place of boxes and points
    #[arg(long, conflicts_with_all = ["boxes", "points", "not_points", "weights", "backward"])]
    pub ask: Option<String>,
    /// Directory of the video language model that --ask goes to
    #[arg(long, requires = "ask")]
    pub model: Option<PathBuf>,
    /// Weights of SAM 2
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Size of the model in --weights [default: large; without --weights the mini model's]
    #[arg(long, value_enum)]
    pub size: Option<Size>,
    /// Generation of the model in --weights
    #[arg(long, value_enum, default_value_t = Generation::V2_1)]
    pub sam: Generation,
    /// Number format of the weights in memory; auto: f32, or of --model f32 if it fits, else bf16 (CPU),
    /// or as in the files (accelerators)
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: Precision,
    /// Quantise the linear layers of the language model of --ask while they are read
    #[arg(long, value_enum, default_value = "none", requires = "ask")]
    pub quantize: QuantizeArg,
    /// Masks to write
    #[arg(long, default_value = "out/track.json")]
    pub out: PathBuf,
    /// Animated picture to write
    #[arg(long, default_value = "out/track.gif")]
    pub gif: PathBuf,
    /// Longest side of the animated picture in pixels
    #[arg(long, default_value_t = 480)]
    pub gif_side: u32,
    /// Every how many frames the animated picture has one; 0 writes none
    #[arg(long, default_value_t = 2)]
    pub gif_every: usize,
    /// Track only the first so many frames of the video
    #[arg(long)]
    pub frames: Option<usize>,
    /// Track towards the beginning too, from the earliest prompt
    #[arg(long)]
    pub backward: bool,
    /// A pixel belongs to one object at most
    #[arg(long)]
    pub non_overlapping: bool,
    /// Keep the memories of all frames, as the reference implementation does
    #[arg(long)]
    pub keep_everything: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Seed of the random model
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Size {
    Tiny,
    Small,
    BasePlus,
    Large,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Generation {
    #[value(name = "2.0")]
    V2_0,
    #[value(name = "2.1")]
    V2_1,
}

/// What is known about an object on a frame; coordinates 0–1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    pub object: u32,
    pub frame: usize,
    pub area: Option<BoxXyxy>,
    /// Column, row, and whether the point is on the object.
    pub points: Vec<(f32, f32, bool)>,
}

impl Args {
    /// The prompts, one per object and frame.
    pub fn prompts(&self) -> Result<Vec<Prompt>, String> {
        let mut found: BTreeMap<(usize, u32), Prompt> = BTreeMap::new();
        for (i, text) in self.boxes.iter().enumerate() {
            let (object, numbers, frame) = parse(text, 4)?;
            let object = object.unwrap_or(i as u32 + 1);
            let prompt = slot(&mut found, object, frame);
            if prompt.area.is_some() {
                return Err(format!("object {object} has two boxes on frame {frame}"));
            }
            let [x0, y0, x1, y1] = numbers[..] else {
                return Err(format!("`{text}` must have four numbers"));
            };
            prompt.area = Some(BoxXyxy { x0, y0, x1, y1 });
        }
        let positive = self.points.iter().map(|p| (p, true));
        for (text, positive) in positive.chain(self.not_points.iter().map(|p| (p, false))) {
            let (object, numbers, frame) = parse(text, 2)?;
            let [x, y] = numbers[..] else {
                return Err(format!("`{text}` must have two numbers"));
            };
            slot(&mut found, object.unwrap_or(1), frame)
                .points
                .push((x, y, positive));
        }
        if found.is_empty() {
            return Err("nothing to track: give --box, --point or --ask".into());
        }
        Ok(found.into_values().collect())
    }
}

/// The prompt of an object on a frame.
fn slot(found: &mut BTreeMap<(usize, u32), Prompt>, object: u32, frame: usize) -> &mut Prompt {
    found.entry((frame, object)).or_insert_with(|| Prompt {
        object,
        frame,
        ..Prompt::default()
    })
}

/// `[OBJECT:]a,b,..[@FRAME]`
fn parse(text: &str, count: usize) -> Result<(Option<u32>, Vec<f32>, usize), String> {
    let bad = |what: &str| format!("`{text}`: {what}; write [OBJECT:]numbers[@FRAME]");
    let (object, rest) = match text.split_once(':') {
        Some((object, rest)) => {
            let object = object.trim().parse();
            let object = object.map_err(|_| bad("the object is no number"))?;
            (Some(object), rest)
        }
        None => (None, text),
    };
    let (numbers, frame) = match rest.split_once('@') {
        Some((numbers, frame)) => {
            let frame = frame.trim().parse();
            (numbers, frame.map_err(|_| bad("the frame is no number"))?)
        }
        None => (rest, 0),
    };
    let numbers: Vec<f32> = numbers
        .split(',')
        .map(|n| n.trim().parse::<f32>())
        .collect::<Result<_, _>>()
        .map_err(|_| bad("not a list of numbers"))?;
    if numbers.len() != count {
        return Err(bad(&format!("{count} numbers are needed")));
    }
    Ok((object, numbers, frame))
}
