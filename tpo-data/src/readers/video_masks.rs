//! Segmentation in videos: an expression or a first box, and masks over time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tpo_core::geometry::{Mask, Rle};

use super::palette::{object, read_indices};
use super::temporal::spread;
use super::{ConvertOptions, Format, JsonItems, Samples, bad, io, open};
use crate::schema::{
    Annotation, BoxCoords, FramePosition, Media, Sample, Target, TrackFrame, TrackRegion, Turn,
};
use crate::{ClipRange, DataError};

type Items = JsonItems<BufReader<File>>;

/// SA-V masks are given at 6 frames per second of videos of 24 (its documentation).
const SAV_FRAME_STEP: u64 = 4;
const SAV_FPS: f64 = 24.0;
/// YouTube-VOS keeps every fifth frame of 30 frames per second.
const YOUTUBE_VOS_FPS: f64 = 6.0;

/// A mask as a region; an empty one is an absence.
fn region(rle: Rle) -> Result<TrackRegion, String> {
    let runs = rle.runs().map_err(|e| e.to_string())?;
    let area: u64 = runs.iter().skip(1).step_by(2).sum();
    Ok(if area == 0 {
        TrackRegion::Absent
    } else {
        TrackRegion::Mask(rle)
    })
}

/// Tight box of the first visible mask and its frame.
fn first_box(track: &[TrackFrame]) -> Result<Option<(u64, BoxCoords)>, String> {
    for f in track {
        if let (FramePosition::Frame(n), TrackRegion::Mask(rle)) = (f.at, &f.region) {
            let mask = rle.decode().map_err(|e| e.to_string())?;
            if let Some(b) = mask.bounding_box() {
                return Ok(Some((n, BoxCoords::Pixels(b.to_array()))));
            }
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct SavFile {
    video_id: String,
    #[serde(default)]
    video_duration: Option<f64>,
    #[serde(default)]
    video_width: Option<f64>,
    #[serde(default)]
    video_height: Option<f64>,
    #[serde(default)]
    video_split: Option<String>,
    masklet: Vec<Vec<Option<Rle>>>,
    #[serde(default)]
    masklet_id: Vec<i64>,
}

/// SA-V: one file per video, `masklet[frame][object]`. There is no text: each object becomes a
/// tracking row whose question shows the box of its first mask, cut to begin there. One file is
/// in memory at a time.
pub(super) fn sa_v(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let files = if path.is_dir() {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io(path))? {
            let file = entry.map_err(io(path))?.path();
            if file.extension().is_some_and(|e| e == "json") {
                files.push(file);
            }
        }
        files.sort();
        files
    } else {
        vec![path.to_path_buf()]
    };
    if files.is_empty() {
        return Err(bad(path, "folder", "it holds no .json file"));
    }
    let options = options.clone();
    Ok(Box::new(
        files
            .into_iter()
            .flat_map(move |file| spread(sa_v_file(&file, &options))),
    ))
}

fn sa_v_file(path: &Path, options: &ConvertOptions) -> Result<Vec<Sample>, DataError> {
    let sav: SavFile =
        serde_json::from_reader(open(path)?).map_err(|e| bad(path, "file", e.to_string()))?;
    if options.split.is_some() && options.split != sav.video_split {
        return Ok(Vec::new());
    }
    let objects = sav.masklet.iter().map(Vec::len).max().unwrap_or(0);
    let mut media = Media::video(options.video(&sav.video_id));
    media.duration = sav.video_duration;
    if let (Some(w), Some(h)) = (sav.video_width, sav.video_height) {
        media.size = Some([w as u32, h as u32]);
    }
    let mut rows = Vec::new();
    for k in 0..objects {
        let name = sav.masklet_id.get(k).map_or(k as i64, |id| *id);
        let place = format!("masklet {name}");
        let mut track = Vec::new();
        for (i, masks) in sav.masklet.iter().enumerate() {
            if let Some(Some(rle)) = masks.get(k) {
                track.push(TrackFrame {
                    at: FramePosition::Frame(i as u64 * SAV_FRAME_STEP),
                    region: region(rle.clone()).map_err(|e| bad(path, &place, e))?,
                });
            }
        }
        let Some((first, area)) = first_box(&track).map_err(|e| bad(path, &place, e))? else {
            continue;
        };
        let mut media = media.clone();
        if first > 0 {
            media.range = Some(ClipRange {
                start: first as f64 / SAV_FPS,
                end: media
                    .duration
                    .unwrap_or((sav.masklet.len() as u64 * SAV_FRAME_STEP) as f64 / SAV_FPS),
            });
        }
        track.retain(|f| matches!(f.at, FramePosition::Frame(n) if n >= first));
        rows.push(Sample {
            id: Some(format!("{}:{name}", sav.video_id)),
            media: Some(media),
            annotations: vec![Annotation {
                task: options.mask_task.clone(),
                query: None,
                prompt_box: Some(area),
                target: Target::Track(track),
            }],
            ..Sample::default()
        });
    }
    Ok(rows)
}

#[derive(Deserialize)]
struct Expressions {
    expressions: BTreeMap<String, Expression>,
    frames: Vec<String>,
}

#[derive(Deserialize)]
struct Expression {
    exp: String,
    #[serde(default)]
    obj_id: Value,
    #[serde(default)]
    anno_id: Vec<Value>,
}

/// Rows of one video, by expression; `masks` gives the track of one, `None` without labels.
fn expression_rows(
    vid: &str,
    video: &Expressions,
    fps: f64,
    options: &ConvertOptions,
    mut masks: impl FnMut(&Expression) -> Result<Option<Vec<TrackFrame>>, DataError>,
) -> Result<Vec<Sample>, DataError> {
    let media = Media::frames(options.media(vid), fps);
    let mut rows = Vec::new();
    for (number, expression) in &video.expressions {
        let mut sample = Sample {
            id: Some(format!("{vid}:{number}")),
            media: Some(media.clone()),
            ..Sample::default()
        };
        match masks(expression)? {
            Some(track) => sample.annotations.push(Annotation {
                task: options.mask_task.clone(),
                query: Some(expression.exp.trim().to_string()),
                prompt_box: None,
                target: Target::Track(track),
            }),
            None => {
                sample.turns.push(Turn::new(expression.exp.trim(), ""));
                sample.meta.insert("unlabelled".into(), true.into());
            }
        }
        rows.push(sample);
    }
    Ok(rows)
}

/// MeViS: expressions per video, masks in `mask_dict.json` by annotation number; an expression
/// about several objects gets their union. Frames are folders `VIDEO/00000.jpg`; their rate is
/// not in the files and could not be confirmed, 6 per second is assumed. Only the positions of
/// the masks in the file are held in memory, not the masks.
pub(super) fn mevis(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let second = options
        .second(Format::MeViS, "mask_dict.json")?
        .to_path_buf();
    let mut places = HashMap::new();
    for item in Items::new(open(&second)?, &second, &[])? {
        let item = item?;
        let key = item.key.unwrap_or_else(|| item.index.to_string());
        places.insert(key, (item.offset, item.bytes.len()));
    }
    let mut masks = MaskDict {
        file: File::open(&second).map_err(io(&second))?,
        path: second,
        places,
    };
    let (options, file) = (options.clone(), path.to_path_buf());
    let fps = options.frame_rate.unwrap_or(YOUTUBE_VOS_FPS);
    let items = Items::new(open(path)?, path, &["videos"])?;
    Ok(Box::new(items.flat_map(move |item| {
        spread(item.and_then(|item| {
            let vid = item.key.clone().unwrap_or_default();
            let video: Expressions = Items::parse(&file, &item)?;
            expression_rows(&vid, &video, fps, &options, |e| {
                if e.anno_id.is_empty() {
                    return Ok(None);
                }
                masks.union(&e.anno_id, video.frames.len()).map(Some)
            })
        }))
    })))
}

struct MaskDict {
    file: File,
    path: PathBuf,
    places: HashMap<String, (u64, usize)>,
}

impl MaskDict {
    fn read(&mut self, key: &str) -> Result<Vec<Option<Rle>>, DataError> {
        let place = format!("member `{key}`");
        let (offset, length) = *self
            .places
            .get(key)
            .ok_or_else(|| bad(&self.path, &place, "an expression names it, it is missing"))?;
        let mut bytes = vec![0; length];
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(io(&self.path))?;
        serde_json::from_slice(&bytes).map_err(|e| bad(&self.path, place, e.to_string()))
    }

    fn union(&mut self, ids: &[Value], frames: usize) -> Result<Vec<TrackFrame>, DataError> {
        let mut joined: Vec<Option<Rle>> = vec![None; frames];
        for id in ids {
            let key = match id {
                Value::String(s) => s.clone(),
                other => other.to_string(),
            };
            let fail = |path: &Path, why: String| bad(path, format!("member `{key}`"), why);
            for (slot, rle) in joined.iter_mut().zip(self.read(&key)?) {
                let Some(rle) = rle else { continue };
                *slot = Some(match slot.take() {
                    None => rle,
                    Some(other) => unite(&other, &rle).map_err(|why| fail(&self.path, why))?,
                });
            }
        }
        joined
            .into_iter()
            .enumerate()
            .map(|(i, rle)| {
                Ok(TrackFrame {
                    at: FramePosition::Frame(i as u64),
                    region: match rle {
                        None => TrackRegion::Absent,
                        Some(rle) => region(rle).map_err(|e| bad(&self.path, "a mask", e))?,
                    },
                })
            })
            .collect()
    }
}

fn unite(a: &Rle, b: &Rle) -> Result<Rle, String> {
    let (a, b) = (
        a.decode().map_err(|e| e.to_string())?,
        b.decode().map_err(|e| e.to_string())?,
    );
    if a.size() != b.size() {
        return Err(format!("masks of {:?} and {:?}", a.size(), b.size()));
    }
    let joined = ndarray::Zip::from(&a.0)
        .and(&b.0)
        .map_collect(|x, y| *x || *y);
    Ok(Rle::encode(&Mask(joined)))
}

/// Ref-YouTube-VOS: expressions per video, masks as indexed PNG files
/// `Annotations/VIDEO/FRAME.png` whose values are object numbers. The frame folder must hold
/// exactly the frames the expressions file lists, as the dataset's archives do.
pub(super) fn ref_youtube_vos(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let folder = options
        .second(Format::RefYouTubeVos, "the Annotations folder")?
        .to_path_buf();
    let (options, file) = (options.clone(), path.to_path_buf());
    let fps = options.frame_rate.unwrap_or(YOUTUBE_VOS_FPS);
    let items = Items::new(open(path)?, path, &["videos"])?;
    Ok(Box::new(items.flat_map(move |item| {
        spread(item.and_then(|item| {
            let vid = item.key.clone().unwrap_or_default();
            let video: Expressions = Items::parse(&file, &item)?;
            // All objects of a frame share its picture.
            let mut pictures = HashMap::new();
            expression_rows(&vid, &video, fps, &options, |e| {
                let number = match &e.obj_id {
                    Value::Null => return Ok(None),
                    Value::String(s) => s.parse().ok(),
                    other => other.as_u64().and_then(|n| u8::try_from(n).ok()),
                };
                let number: u8 = number.ok_or_else(|| {
                    bad(
                        &file,
                        format!("member `{vid}`"),
                        format!("obj_id {}", e.obj_id),
                    )
                })?;
                let mut track = Vec::new();
                for (i, name) in video.frames.iter().enumerate() {
                    let png = folder.join(&vid).join(format!("{name}.png"));
                    if !png.is_file() {
                        continue;
                    }
                    let indices = match pictures.entry(i) {
                        std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
                        std::collections::hash_map::Entry::Vacant(e) => {
                            e.insert(read_indices(&png)?)
                        }
                    };
                    let rle = Rle::encode(&object(indices, number));
                    track.push(TrackFrame {
                        at: FramePosition::Frame(i as u64),
                        region: region(rle).map_err(|e| bad(&png, "mask", e))?,
                    });
                }
                if track.is_empty() {
                    let why = format!("no mask of `{vid}` below it");
                    return Err(bad(&folder, "folder", why));
                }
                Ok(Some(track))
            })
        }))
    })))
}
