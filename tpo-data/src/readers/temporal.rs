//! Temporal grounding: a sentence, and when it happens.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::csv::Table;
use super::{ConvertOptions, Format, JsonItems, Samples, bad, io, is_object, open, records};
use crate::DataError;
use crate::schema::{Annotation, LineReader, Media, Saliency, Sample, Target, Turn};

type Items = JsonItems<BufReader<File>>;

/// Seconds of a rated clip of QVHighlights.
const QVHIGHLIGHTS_CLIP_SECONDS: f64 = 2.0;
/// Seconds of a segment of DiDeMo, and the end of its last segment.
const DIDEMO_PIECE_SECONDS: f64 = 5.0;
const DIDEMO_LENGTH_SECONDS: f64 = 30.0;

fn moment(
    options: &ConvertOptions,
    id: String,
    mut media: Media,
    duration: Option<f64>,
    query: &str,
    spans: Vec<[f64; 2]>,
) -> Sample {
    media.duration = duration;
    Sample {
        id: Some(id),
        media: Some(media),
        annotations: vec![Annotation {
            task: options.temporal_task.clone(),
            query: Some(query.trim().to_string()),
            prompt_box: None,
            target: Target::Spans {
                spans,
                saliency: None,
            },
        }],
        ..Sample::default()
    }
}

#[derive(Deserialize)]
struct QvRow {
    #[serde(default)]
    qid: Option<Value>,
    query: String,
    vid: String,
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    relevant_windows: Option<Vec<[f64; 2]>>,
    #[serde(default)]
    relevant_clip_ids: Option<Vec<u32>>,
    #[serde(default)]
    saliency_scores: Option<Vec<Vec<f32>>>,
}

/// QVHighlights: one query a line. Videos are already cut (`{youtube}_{start}_{end}`), so times
/// begin at 0. The test split has no answers; its rows become questions only.
pub(super) fn qvhighlights(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    qv_rows(path, options, true)
}

fn qv_rows(path: &Path, options: &ConvertOptions, rated: bool) -> Result<Samples, DataError> {
    let (options, file) = (options.clone(), path.to_path_buf());
    Ok(Box::new(records::<QvRow>(path)?.map(move |row| {
        let (line, row) = row?;
        let id = match &row.qid {
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
            None => format!("line {line}"),
        };
        let media = Media::video(options.video(&row.vid));
        let Some(windows) = row.relevant_windows else {
            return Ok(Sample {
                id: Some(id),
                media: Some(Media {
                    duration: row.duration,
                    ..media
                }),
                turns: vec![Turn::new(row.query.trim(), "")],
                meta: Map::from_iter([("unlabelled".into(), json!(true))]),
                ..Sample::default()
            });
        };
        let mut sample = moment(&options, id, media, row.duration, &row.query, windows);
        if let (true, Some(clips), Some(scores)) =
            (rated, row.relevant_clip_ids, row.saliency_scores)
        {
            if clips.len() != scores.len() {
                return Err(bad(
                    &file,
                    format!("line {line}"),
                    format!("{} clips, {} scores", clips.len(), scores.len()),
                ));
            }
            if let Target::Spans { saliency, .. } = &mut sample.annotations[0].target {
                *saliency = Some(Saliency {
                    clip_seconds: QVHIGHLIGHTS_CLIP_SECONDS,
                    clips,
                    scores,
                });
            }
        }
        Ok(sample)
    })))
}

/// Charades-STA, as JSON lines in the layout of QVHighlights or as the original text file, whose
/// lines are `VID START END##sentence.` in seconds.
pub(super) fn charades(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let durations = durations(options)?;
    if is_object(path)? {
        return qv_rows(path, options, false);
    }
    let (options, file) = (options.clone(), path.to_path_buf());
    let mut lines = LineReader::new(open(path)?, 1 << 20);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            let line = match lines.next_line() {
                Ok(line) => line?,
                Err(e) => return Some(Err(io(&file)(e))),
            };
            let place = format!("line {}", line.number);
            let text = line.bytes.and_then(|b| std::str::from_utf8(b).ok());
            let Some(text) = text else {
                return Some(Err(bad(&file, place, "too long, or not UTF-8")));
            };
            if text.trim().is_empty() {
                continue;
            }
            let parsed = text.split_once("##").and_then(|(head, query)| {
                let mut parts = head.split_whitespace();
                let vid = parts.next()?;
                let span = [parts.next()?.parse().ok()?, parts.next()?.parse().ok()?];
                (parts.next().is_none()).then_some((vid, span, query))
            });
            let Some((vid, span, query)) = parsed else {
                return Some(Err(bad(&file, place, "expected `VID START END##sentence`")));
            };
            return Some(Ok(moment(
                &options,
                format!("{vid}:{}", line.number),
                Media::video(options.video(vid)),
                durations.get(vid).copied(),
                query,
                vec![span],
            )));
        }
    })))
}

/// Lengths of videos from a JSON `{video: seconds}` or a csv with `id` and `length`
/// (`Charades_v1_train.csv`).
fn durations(options: &ConvertOptions) -> Result<HashMap<String, f64>, DataError> {
    let Some(path) = options.durations.as_deref() else {
        return Ok(HashMap::new());
    };
    if is_object(path)? {
        return Items::new(open(path)?, path, &[])?
            .map(|item| {
                let item = item?;
                let seconds = Items::parse(path, &item)?;
                Ok((item.key.unwrap_or_default(), seconds))
            })
            .collect();
    }
    let table = Table::read(path)?;
    let id = table.column(path, &["id", "video", "video_id"])?;
    let length = table.column(path, &["length", "duration"])?;
    table
        .rows
        .iter()
        .map(|(line, row)| {
            let seconds = row.get(length).and_then(|v| v.trim().parse().ok());
            match (row.get(id), seconds) {
                (Some(id), Some(seconds)) => Ok((id.clone(), seconds)),
                _ => Err(bad(path, format!("line {line}"), "no id or no length")),
            }
        })
        .collect()
}

#[derive(Deserialize)]
struct Captions {
    #[serde(default)]
    duration: Option<f64>,
    #[serde(default)]
    fps: Option<f64>,
    #[serde(default)]
    num_frames: Option<f64>,
    timestamps: Vec<[f64; 2]>,
    sentences: Vec<String>,
}

/// ActivityNet Captions: one member per video, several sentences each.
pub(super) fn activitynet(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    captions(path, options, false)
}

/// TACoS as the 2D-TAN line of work distributes it: times are frame numbers. Rows whose end is
/// not after their start exist there and are rejected like any other bad span.
pub(super) fn tacos(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    captions(path, options, true)
}

fn captions(path: &Path, options: &ConvertOptions, frames: bool) -> Result<Samples, DataError> {
    let (options, file) = (options.clone(), path.to_path_buf());
    let items = Items::new(open(path)?, path, &[])?;
    Ok(Box::new(items.flat_map(move |item| {
        let rows = item.and_then(|item| {
            let key = item.key.clone().unwrap_or_default();
            let place = format!("member `{key}`");
            let c: Captions = Items::parse(&file, &item)?;
            if c.timestamps.len() != c.sentences.len() {
                let counts = format!(
                    "{} timestamps, {} sentences",
                    c.timestamps.len(),
                    c.sentences.len()
                );
                return Err(bad(&file, place, counts));
            }
            let (unit, duration) = match (frames, c.fps) {
                (false, _) => (1.0, c.duration),
                (true, Some(fps)) if fps > 0.0 => (1.0 / fps, c.num_frames.map(|n| n / fps)),
                (true, _) => return Err(bad(&file, place, "no positive `fps`")),
            };
            let media = Media::video(options.video(&key));
            Ok(c.timestamps
                .iter()
                .zip(&c.sentences)
                .enumerate()
                .map(|(i, (t, sentence))| {
                    let span = t.map(|v| v * unit);
                    let id = format!("{key}:{i}");
                    moment(&options, id, media.clone(), duration, sentence, vec![span])
                })
                .collect::<Vec<_>>())
        });
        spread(rows)
    })))
}

/// Samples of one record, or its error.
pub(super) fn spread(
    rows: Result<Vec<Sample>, DataError>,
) -> impl Iterator<Item = Result<Sample, DataError>> {
    let (rows, error) = match rows {
        Ok(rows) => (rows, None),
        Err(e) => (Vec::new(), Some(Err(e))),
    };
    rows.into_iter().map(Ok).chain(error)
}

#[derive(Deserialize)]
struct DidemoRow {
    video: String,
    description: String,
    times: Vec<[u32; 2]>,
    #[serde(default)]
    annotation_id: Option<Value>,
}

/// DiDeMo: several annotators mark the first and last of six 5-second segments. The reference
/// result is the range most annotators agree on; ties go to the first of them.
pub(super) fn didemo(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let (options, file) = (options.clone(), path.to_path_buf());
    Ok(Box::new(records::<DidemoRow>(path)?.map(move |row| {
        let (index, row) = row?;
        let votes = |t: &[u32; 2]| row.times.iter().filter(|o| *o == t).count();
        let mut best: Option<[u32; 2]> = None;
        for t in &row.times {
            if best.is_none_or(|b| votes(t) > votes(&b)) {
                best = Some(*t);
            }
        }
        let [first, last] =
            best.ok_or_else(|| bad(&file, format!("element {index}"), "no `times`"))?;
        let start = f64::from(first) * DIDEMO_PIECE_SECONDS;
        let end = (f64::from(last) + 1.0) * DIDEMO_PIECE_SECONDS;
        let id = match row.annotation_id {
            Some(v) => format!("didemo:{v}"),
            None => format!("didemo:{index}"),
        };
        let media = Media::video(options.video(&row.video));
        let span = [start, end.min(DIDEMO_LENGTH_SECONDS)];
        Ok(moment(
            &options,
            id,
            media,
            None,
            &row.description,
            vec![span],
        ))
    })))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

/// QuerYD: captions and times per video in two files. They are published as Python pickles,
/// which are not read here because loading one runs code; write them as JSON once
/// (`json.dump(pickle.load(f), g)`). Keys are `video-ID` there; what the rest of the name means
/// could not be confirmed, so it is kept as the video's name without `video-`.
pub(super) fn queryd(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let times_path = options
        .second(Format::QuerYd, "the times, as JSON")?
        .to_path_buf();
    let times: HashMap<String, Vec<[f64; 2]>> = Items::new(open(&times_path)?, &times_path, &[])?
        .map(|item| {
            let item = item?;
            let spans = Items::parse(&times_path, &item)?;
            Ok((item.key.unwrap_or_default(), spans))
        })
        .collect::<Result<_, DataError>>()?;
    let lengths = durations(options)?;
    let (options, file) = (options.clone(), path.to_path_buf());
    let items = Items::new(open(path)?, path, &[])?;
    Ok(Box::new(items.flat_map(move |item| {
        let rows = item.and_then(|item| {
            let key = item.key.clone().unwrap_or_default();
            let place = format!("member `{key}`");
            let captions: Vec<Words> = Items::parse(&file, &item)?;
            let spans = times
                .get(&key)
                .ok_or_else(|| bad(&file, &place, "the times file has no such video"))?;
            if spans.len() != captions.len() {
                let counts = format!("{} captions, {} times", captions.len(), spans.len());
                return Err(bad(&file, place, counts));
            }
            let name = key.strip_prefix("video-").unwrap_or(&key);
            let media = Media::video(options.video(name));
            Ok(captions
                .into_iter()
                .zip(spans)
                .enumerate()
                .map(|(i, (words, span))| {
                    let query = match words {
                        Words::One(text) => text,
                        Words::Many(words) => words.join(" "),
                    };
                    let length = lengths.get(name).copied();
                    let id = format!("{name}:{i}");
                    moment(&options, id, media.clone(), length, &query, vec![*span])
                })
                .collect())
        });
        spread(rows)
    })))
}

#[derive(Deserialize)]
struct HirestVideo {
    #[serde(default)]
    relevant: bool,
    #[serde(default)]
    clip: bool,
    #[serde(default)]
    v_duration: Option<f64>,
    #[serde(default)]
    bounds: Vec<f64>,
    #[serde(default)]
    steps: Vec<HirestStep>,
}

#[derive(Deserialize)]
struct HirestStep {
    heading: String,
    #[serde(default)]
    absolute_bounds: Option<[f64; 2]>,
}

/// HiREST: per search prompt the videos found. A clippable video gives the span of the prompt,
/// and one of every step; videos that are not relevant give nothing.
pub(super) fn hirest(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let (options, file) = (options.clone(), path.to_path_buf());
    let items = Items::new(open(path)?, path, &[])?;
    Ok(Box::new(items.flat_map(move |item| {
        let rows = item.and_then(|item| {
            let prompt = item.key.clone().unwrap_or_default();
            // Videos keep their order: serde_json's map would sort them.
            let videos = JsonItems::new(std::io::Cursor::new(item.bytes), &file, &[])?;
            let mut rows = Vec::new();
            for video in videos {
                let video = video?;
                let name = video.key.clone().unwrap_or_default();
                let v: HirestVideo = Items::parse(&file, &video)?;
                if !v.relevant {
                    continue;
                }
                let media = Media::video(options.video(&name));
                let mut row = |i: usize, query: &str, span: [f64; 2]| {
                    rows.push(moment(
                        &options,
                        format!("{name}:{prompt}:{i}"),
                        media.clone(),
                        v.v_duration,
                        query,
                        vec![span],
                    ));
                };
                if let (true, [start, end]) = (v.clip, &v.bounds[..]) {
                    row(0, &prompt, [*start, *end]);
                }
                for (i, step) in v.steps.iter().enumerate() {
                    if let Some(span) = step.absolute_bounds {
                        row(i + 1, &step.heading, span);
                    }
                }
            }
            Ok(rows)
        });
        spread(rows)
    })))
}
