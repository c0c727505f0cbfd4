//! Single-object tracking: a first box, and a box on every frame.

use std::path::{MAIN_SEPARATOR, Path, PathBuf};

use super::spatial::xywh;
use super::{ConvertOptions, Samples, annotated, bad, read_optional, read_text};
use crate::DataError;
use crate::schema::{Annotation, FramePosition, Media, Target, TrackFrame, TrackRegion};
use crate::video::entries;

/// LaSOT's videos have 30 frames per second.
const LASOT_FPS: f64 = 30.0;
/// GOT-10k is annotated at 10 frames per second, which are the frames it holds.
const GOT10K_FPS: f64 = 10.0;
/// Folders between the input and a sequence.
const MAX_DEPTH: usize = 3;

/// Sequence folders (those with a `groundtruth.txt`) below `root`, in order of their names.
fn sequences(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
        if dir.join("groundtruth.txt").is_file() {
            found.push(dir.into());
            return Ok(());
        }
        if depth == 0 {
            return Ok(());
        }
        let mut folders = entries(dir)?;
        // A link is not followed: it may lead round in a circle.
        folders.retain(|f| f.is_dir() && !f.is_symlink());
        folders.iter().try_for_each(|f| walk(f, depth - 1, found))
    }
    let mut found = Vec::new();
    walk(root, MAX_DEPTH, &mut found)?;
    if found.is_empty() {
        return Err(bad(
            root,
            "folder",
            "no folder below it has a groundtruth.txt",
        ));
    }
    Ok(found)
}

/// Path of a sequence below `root`, its own name when it is the input itself.
fn below(root: &Path, dir: &Path) -> String {
    let inside = dir.strip_prefix(root).unwrap_or(dir);
    let name = match inside.file_name() {
        Some(_) => inside.as_os_str(),
        None => dir.file_name().unwrap_or_default(),
    };
    name.to_string_lossy().replace(MAIN_SEPARATOR, "/")
}

/// `x,y,width,height` a line, in pixels.
fn boxes(path: &Path) -> Result<Vec<[f32; 4]>, DataError> {
    read_text(path)?
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            let numbers: Option<Vec<f32>> = line
                .split([',', '\t', ' '])
                .filter(|t| !t.is_empty())
                .map(|t| t.trim().parse().ok())
                .collect();
            let numbers = numbers.and_then(|n| <[f32; 4]>::try_from(n).ok());
            numbers.ok_or_else(|| {
                let why = format!("`{line}`; expected x,y,width,height");
                bad(path, format!("line {}", i + 1), why)
            })
        })
        .collect()
}

/// 0 or 1 per frame, separated by commas or line ends; none when the file does not exist.
fn flags(path: &Path) -> Result<Vec<bool>, DataError> {
    read_optional(path)?
        .unwrap_or_default()
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|t| !t.is_empty())
        .map(|t| match t {
            "0" => Ok(false),
            "1" => Ok(true),
            other => Err(bad(path, "file", format!("`{other}`; expected 0 or 1"))),
        })
        .collect()
}

fn track(boxes: &[[f32; 4]], absent: &[Vec<bool>]) -> Vec<TrackFrame> {
    boxes
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let gone = absent.iter().any(|a| a.get(i).copied().unwrap_or(false));
            let drawn = b.iter().all(|v| v.is_finite()) && b[2] > 0.0 && b[3] > 0.0;
            TrackFrame {
                at: FramePosition::Frame(i as u64),
                region: if gone || !drawn {
                    TrackRegion::Absent
                } else {
                    TrackRegion::Box(xywh(*b))
                },
            }
        })
        .collect()
}

/// What a dataset says about a sequence besides its boxes.
struct Sequence {
    /// The frames, below the folder of the sequence.
    frames: &'static str,
    fps: f64,
    query: Option<String>,
    /// Flags of frames on which the object is not seen.
    absent: Vec<Vec<bool>>,
}

/// A row per sequence folder below `root`.
fn rows(
    root: &Path,
    options: &ConvertOptions,
    read: impl Fn(&Path, &ConvertOptions) -> Result<Sequence, DataError> + Send + 'static,
) -> Result<Samples, DataError> {
    let (root, options) = (root.to_path_buf(), options.clone());
    Ok(Box::new(sequences(&root)?.into_iter().map(move |dir| {
        let file = dir.join("groundtruth.txt");
        let boxes = boxes(&file)?;
        let sequence = read(&dir, &options)?;
        let track = track(&boxes, &sequence.absent);
        let Some(TrackRegion::Box(first)) = track.first().map(|f| &f.region) else {
            let why = "the first frame has no box to track from";
            return Err(bad(&file, "line 1", why));
        };
        let annotation = Annotation {
            task: options.mask_task.clone(),
            query: sequence.query.filter(|q| !q.trim().is_empty()),
            prompt_box: Some(*first),
            target: Target::Track(track),
        };
        let name = below(&root, &dir);
        let frames = options.media(&format!("{name}{}", sequence.frames));
        let media = Media::frames(frames, sequence.fps);
        Ok(annotated(name, media, annotation))
    })))
}

/// LaSOT: a sequence a folder. Frames flagged in `full_occlusion.txt` or `out_of_view.txt` are
/// absent; `nlp.txt` is the query. Whether its coordinates count pixels from 0 or 1 could not be
/// confirmed; they are kept as they are, which the schema's slack of one pixel allows.
pub(super) fn lasot(root: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    rows(root, options, |dir, options| {
        let flags = |name| flags(&dir.join(name));
        Ok(Sequence {
            frames: "/img",
            fps: options.frame_rate.unwrap_or(LASOT_FPS),
            query: read_optional(&dir.join("nlp.txt"))?.map(|words| words.trim().into()),
            absent: vec![flags("full_occlusion.txt")?, flags("out_of_view.txt")?],
        })
    })
}

/// GOT-10k: a sequence a folder, frames beside the annotations. `absence.label` marks absent
/// frames; `meta_info.ini` names the object and the rate. Test sequences hold one box only and
/// become tracks of one frame.
pub(super) fn got10k(root: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    rows(root, options, |dir, options| {
        let info = read_optional(&dir.join("meta_info.ini"))?.unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .filter_map(|l| l.split_once([':', '=']))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_string())
        };
        let rate = field("anno_fps")
            .and_then(|v| v.trim_end_matches("Hz").trim().parse::<f64>().ok())
            .filter(|v| *v > 0.0);
        Ok(Sequence {
            frames: "",
            fps: rate.or(options.frame_rate).unwrap_or(GOT10K_FPS),
            query: field("object_class"),
            absent: vec![flags(&dir.join("absence.label"))?],
        })
    })
}
