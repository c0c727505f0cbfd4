//! Segmentation in videos: an expression or a first box, and masks over time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::Deserialize;
use serde_json::Value;
use tpo_core::geometry::{LabelMap, Mask, Rle};

use super::spatial::xywh;
use super::{
    At, ConvertOptions, Format, JsonItems, Samples, annotated, bad, members, of_split, open,
    samples, text_of, unlabelled,
};
use crate::schema::{
    Annotation, BoxCoords, FramePosition, Media, Sample, Target, TrackFrame, TrackRegion,
};
use crate::video::entries;
use crate::{ClipRange, DataError, MediaLimits, read_label_png};

/// SA-V masks are given at 6 frames per second of videos of 24 (its documentation).
const SAV_FRAME_STEP: u64 = 4;
const SAV_FPS: f64 = 24.0;
/// YouTube-VOS keeps every fifth frame of 30 frames per second.
const YOUTUBE_VOS_FPS: f64 = 6.0;

/// Frame number `at` of a track; an empty mask is an absence.
fn masked(at: u64, rle: Rle) -> Result<TrackFrame, String> {
    Ok(TrackFrame {
        at: FramePosition::Frame(at),
        region: match rle.area().map_err(|e| e.to_string())? {
            0 => TrackRegion::Absent,
            _ => TrackRegion::Mask(rle),
        },
    })
}

/// Tight box of the first visible mask and its frame.
fn first_box(track: &[TrackFrame]) -> Result<Option<(u64, BoxCoords)>, String> {
    let visible = track.iter().find_map(|f| match (f.at, &f.region) {
        (FramePosition::Frame(n), TrackRegion::Mask(rle)) => Some((n, rle)),
        _ => None,
    });
    let Some((n, rle)) = visible else {
        return Ok(None);
    };
    let area = rle.coco_box().map_err(|e| e.to_string())?;
    Ok(Some((n, xywh(area.map(|v| v as f32)))))
}

#[derive(Deserialize)]
struct SavFile {
    video_id: String,
    video_duration: Option<f64>,
    video_width: Option<f64>,
    video_height: Option<f64>,
    video_split: Option<String>,
    masklet: Vec<Vec<Option<Rle>>>,
    #[serde(default)]
    masklet_id: Vec<i64>,
}

/// SA-V: one file per video, `masklet[frame][object]`. There is no text: each object becomes a
/// tracking row whose question shows the box of its first mask, cut to begin there. One file is
/// in memory at a time.
pub(super) fn sa_v(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        files = entries(path)?;
        files.retain(|file| file.extension().is_some_and(|e| e == "json"));
    }
    if files.is_empty() {
        return Err(bad(path, "folder", "it holds no .json file"));
    }
    let files = files.into_iter().zip(0..).map(|(file, number)| {
        let at = At {
            file: file.into(),
            place: "file".into(),
            number,
            key: String::new(),
        };
        let sav: SavFile =
            serde_json::from_reader(open(&at.file)?).map_err(|e| at.bad(e.to_string()))?;
        Ok::<_, DataError>((at, sav))
    });
    let files = of_split(Box::new(files), options, |sav: &SavFile| {
        sav.video_split.as_deref()
    });
    Ok(samples(files, options, sa_v_file))
}

fn sa_v_file(options: &ConvertOptions, at: At, sav: SavFile) -> Result<Vec<Sample>, DataError> {
    let path = &at.file;
    let objects = sav.masklet.iter().map(Vec::len).max().unwrap_or(0);
    let mut media = Media::video(options.video(&sav.video_id));
    media.duration = sav.video_duration;
    if let (Some(w), Some(h)) = (sav.video_width, sav.video_height) {
        media.size = Some([w as u32, h as u32]);
    }
    let mut samples = Vec::new();
    for k in 0..objects {
        let name = sav.masklet_id.get(k).map_or(k as i64, |id| *id);
        let place = format!("masklet {name}");
        let mut track = Vec::new();
        for (i, masks) in sav.masklet.iter().enumerate() {
            if let Some(Some(rle)) = masks.get(k) {
                let frame = masked(i as u64 * SAV_FRAME_STEP, rle.clone());
                track.push(frame.map_err(|e| bad(path, &place, e))?);
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
        let id = format!("{}:{name}", sav.video_id);
        let annotation = Annotation {
            task: options.mask_task.clone(),
            query: None,
            prompt_box: Some(area),
            target: Target::Track(track),
        };
        samples.push(annotated(id, media, annotation));
    }
    Ok(samples)
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
    let row = |(number, expression): (&String, &Expression)| {
        let (id, media) = (format!("{vid}:{number}"), media.clone());
        Ok(match masks(expression)? {
            Some(track) => {
                let (task, target) = (&options.mask_task, Target::Track(track));
                annotated(id, media, Annotation::asked(task, &expression.exp, target))
            }
            None => unlabelled(id, media, &expression.exp),
        })
    };
    video.expressions.iter().map(row).collect()
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
    for item in JsonItems::new(open(&second)?, &second, &[])? {
        let item = item?;
        let key = item.key.unwrap_or_else(|| item.index.to_string());
        places.insert(key, (item.offset, item.bytes.len()));
    }
    let mut masks = MaskDict {
        file: File::open(&second).map_err(DataError::io(&second))?,
        path: second,
        places,
    };
    let fps = options.frame_rate.unwrap_or(YOUTUBE_VOS_FPS);
    let each = move |options: &ConvertOptions, at: At, video: Expressions| {
        let vid = &at.key;
        expression_rows(vid, &video, fps, options, |e| {
            if e.anno_id.is_empty() {
                return Ok(None);
            }
            masks.union(&e.anno_id, video.frames.len()).map(Some)
        })
    };
    Ok(samples(members(path, &["videos"])?, options, each))
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
            .map_err(DataError::io(&self.path))?;
        serde_json::from_slice(&bytes).map_err(|e| bad(&self.path, place, e.to_string()))
    }

    fn union(&mut self, ids: &[Value], frames: usize) -> Result<Vec<TrackFrame>, DataError> {
        let mut joined: Vec<Option<Rle>> = vec![None; frames];
        for id in ids {
            let key = text_of(id.clone());
            for (slot, rle) in joined.iter_mut().zip(self.read(&key)?) {
                let Some(rle) = rle else { continue };
                *slot = Some(match slot.take() {
                    None => rle,
                    Some(other) => Rle::merge(&[other, rle], false).map_err(|why| {
                        bad(&self.path, format!("member `{key}`"), why.to_string())
                    })?,
                });
            }
        }
        joined
            .into_iter()
            .enumerate()
            .map(|(i, rle)| match rle {
                Some(rle) => masked(i as u64, rle).map_err(|e| bad(&self.path, "a mask", e)),
                None => Ok(TrackFrame {
                    at: FramePosition::Frame(i as u64),
                    region: TrackRegion::Absent,
                }),
            })
            .collect()
    }
}

/// Ref-YouTube-VOS: expressions per video, masks as indexed PNG files
/// `Annotations/VIDEO/FRAME.png` whose values are object numbers. The frame folder must hold
/// exactly the frames the expressions file lists, as the dataset's archives do.
pub(super) fn ref_youtube_vos(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let folder = options
        .second(Format::RefYouTubeVos, "the Annotations folder")?
        .to_path_buf();
    let fps = options.frame_rate.unwrap_or(YOUTUBE_VOS_FPS);
    let each = move |options: &ConvertOptions, at: At, video: Expressions| {
        let vid = &at.key;
        // All objects of a frame share its picture.
        let mut pictures: HashMap<usize, LabelMap> = HashMap::new();
        expression_rows(vid, &video, fps, options, |e| {
            let number = match &e.obj_id {
                Value::Null => return Ok(None),
                Value::String(s) => s.parse().ok(),
                other => other.as_u64().and_then(|n| u8::try_from(n).ok()),
            };
            let number: u8 = number.ok_or_else(|| at.bad(format!("obj_id {}", e.obj_id)))?;
            let mut track = Vec::new();
            for (i, name) in video.frames.iter().enumerate() {
                let png = folder.join(vid).join(format!("{name}.png"));
                if !png.is_file() {
                    continue;
                }
                let labels = match pictures.entry(i) {
                    Entry::Occupied(e) => e.into_mut(),
                    Entry::Vacant(e) => e.insert(read_label_png(&png, &MediaLimits::default())?),
                };
                let size = (labels.height, labels.width);
                let object = Array2::from_shape_fn(size, |(y, x)| {
                    labels.labels[y * labels.width + x] == number
                });
                let frame = masked(i as u64, Rle::encode(&Mask(object)));
                track.push(frame.map_err(|e| bad(&png, "mask", e))?);
            }
            if track.is_empty() {
                let why = format!("no mask of `{vid}` below it");
                return Err(bad(&folder, "folder", why));
            }
            Ok(Some(track))
        })
    };
    Ok(samples(members(path, &["videos"])?, options, each))
}
