//! Temporal grounding: a sentence, and when it happens.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    At, ConvertOptions, Format, JsonItems, Samples, annotated, is_object, items, lines, map,
    members, of_split, parts, records, samples, table, text_of, unlabelled,
};
use crate::DataError;
use crate::schema::{Annotation, Media, Saliency, Sample, Target};

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
    let annotation = Annotation::asked(&options.temporal_task, query, Target::spans(spans));
    annotated(id, media, annotation)
}

#[derive(Deserialize)]
struct QvRow {
    qid: Option<Value>,
    query: String,
    vid: String,
    duration: Option<f64>,
    relevant_windows: Option<Vec<[f64; 2]>>,
    relevant_clip_ids: Option<Vec<u32>>,
    saliency_scores: Option<Vec<Vec<f32>>>,
}

/// QVHighlights: one query a line. Videos are already cut (`{youtube}_{start}_{end}`), so times
/// begin at 0. The test split has no answers; its rows become questions only.
pub(super) fn qvhighlights(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    qv_rows(path, options, true)
}

fn qv_rows(path: &Path, options: &ConvertOptions, rated: bool) -> Result<Samples, DataError> {
    let each = move |options: &ConvertOptions, at: At, row: QvRow| {
        let id = row.qid.map_or_else(|| at.place.clone(), text_of);
        let mut media = Media::video(options.video(&row.vid));
        let Some(windows) = row.relevant_windows else {
            media.duration = row.duration;
            return Ok([unlabelled(id, media, &row.query)]);
        };
        let mut sample = moment(options, id, media, row.duration, &row.query, windows);
        if let (true, Some(clips), Some(scores)) =
            (rated, row.relevant_clip_ids, row.saliency_scores)
        {
            if clips.len() != scores.len() {
                let (clips, scores) = (clips.len(), scores.len());
                return Err(at.bad(format!("{clips} clips, {scores} scores")));
            }
            if let Target::Spans { saliency, .. } = &mut sample.annotations[0].target {
                *saliency = Some(Saliency {
                    clip_seconds: QVHIGHLIGHTS_CLIP_SECONDS,
                    clips,
                    scores,
                });
            }
        }
        Ok([sample])
    };
    Ok(samples(records(path)?, options, each))
}

/// Charades-STA, as JSON lines in the layout of QVHighlights or as the original text file, whose
/// lines are `VID START END##sentence.` in seconds.
pub(super) fn charades(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let durations = durations(options)?;
    if is_object(path)? {
        return qv_rows(path, options, false);
    }
    let each = move |options: &ConvertOptions, at: At, line: Vec<u8>| {
        let parsed = std::str::from_utf8(&line).ok().and_then(|text| {
            let (head, query) = text.split_once("##")?;
            let mut parts = head.split_whitespace();
            let vid = parts.next()?;
            let span = [parts.next()?.parse().ok()?, parts.next()?.parse().ok()?];
            (parts.next().is_none()).then_some((vid, span, query))
        });
        let (vid, span, query) =
            parsed.ok_or_else(|| at.bad("expected `VID START END##sentence`"))?;
        let media = Media::video(options.video(vid));
        let (id, length) = (format!("{vid}:{}", at.number), durations.get(vid).copied());
        Ok([moment(options, id, media, length, query, vec![span])])
    };
    Ok(samples(lines(path, 1 << 20)?, options, each))
}

#[derive(Deserialize)]
struct LengthRow {
    #[serde(alias = "video", alias = "video_id")]
    id: String,
    #[serde(alias = "duration")]
    length: f64,
}

/// Lengths of videos from a JSON `{video: seconds}` or a csv with `id` and `length`
/// (`Charades_v1_train.csv`).
fn durations(options: &ConvertOptions) -> Result<HashMap<String, f64>, DataError> {
    let Some(path) = options.durations.as_deref() else {
        return Ok(HashMap::new());
    };
    if is_object(path)? {
        return map(path);
    }
    let columns = ["id", "video", "video_id", "length", "duration"];
    table::<LengthRow>(path, &columns)?
        .map(|row| row.map(|(_, row)| (row.id, row.length)))
        .collect()
}

#[derive(Deserialize)]
struct Captions {
    duration: Option<f64>,
    fps: Option<f64>,
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
    let each = move |options: &ConvertOptions, at: At, c: Captions| {
        let key = &at.key;
        if c.timestamps.len() != c.sentences.len() {
            let (times, sentences) = (c.timestamps.len(), c.sentences.len());
            return Err(at.bad(format!("{times} timestamps, {sentences} sentences")));
        }
        let (unit, duration) = match (frames, c.fps) {
            (false, _) => (1.0, c.duration),
            (true, Some(fps)) if fps > 0.0 => (1.0 / fps, c.num_frames.map(|n| n / fps)),
            (true, _) => return Err(at.bad("no positive `fps`")),
        };
        let media = Media::video(options.video(key));
        let sentences = c.timestamps.iter().zip(&c.sentences).enumerate();
        Ok(sentences
            .map(|(i, (t, sentence))| {
                let span = t.map(|v| v * unit);
                let id = format!("{key}:{i}");
                moment(options, id, media.clone(), duration, sentence, vec![span])
            })
            .collect::<Vec<_>>())
    };
    Ok(samples(members(path, &[])?, options, each))
}

#[derive(Deserialize)]
struct DidemoRow {
    video: String,
    description: String,
    times: Vec<[u32; 2]>,
    annotation_id: Option<Value>,
}

/// DiDeMo: several annotators mark the first and last of six 5-second segments. The reference
/// result is the range most annotators agree on; ties go to the first of them.
pub(super) fn didemo(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: DidemoRow| {
        let votes = |t: &[u32; 2]| row.times.iter().filter(|o| *o == t).count();
        // `max_by_key` gives the last of those that are equal.
        let best = row.times.iter().rev().max_by_key(|t| votes(t));
        let [first, last] = *best.ok_or_else(|| at.bad("no `times`"))?;
        let start = f64::from(first) * DIDEMO_PIECE_SECONDS;
        let end = (f64::from(last) + 1.0) * DIDEMO_PIECE_SECONDS;
        let id = match row.annotation_id {
            Some(v) => format!("didemo:{v}"),
            None => format!("didemo:{}", at.number),
        };
        let media = Media::video(options.video(&row.video));
        let spans = vec![[start, end.min(DIDEMO_LENGTH_SECONDS)]];
        Ok([moment(options, id, media, None, &row.description, spans)])
    };
    Ok(samples(records(path)?, options, each))
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
    let second = options.second(Format::QuerYd, "the times, as JSON")?;
    let times: HashMap<String, Vec<[f64; 2]>> = map(second)?;
    let lengths = durations(options)?;
    let each = move |options: &ConvertOptions, at: At, captions: Vec<Words>| {
        let key = &at.key;
        let spans = times
            .get(key)
            .ok_or_else(|| at.bad("the times file has no such video"))?;
        if spans.len() != captions.len() {
            let (captions, times) = (captions.len(), spans.len());
            return Err(at.bad(format!("{captions} captions, {times} times")));
        }
        let name = key.strip_prefix("video-").unwrap_or(key);
        let media = Media::video(options.video(name));
        let length = lengths.get(name).copied();
        let captions = captions.into_iter().zip(spans).enumerate();
        Ok(captions
            .map(|(i, (words, span))| {
                let query = match words {
                    Words::One(text) => text,
                    Words::Many(words) => words.join(" "),
                };
                let id = format!("{name}:{i}");
                moment(options, id, media.clone(), length, &query, vec![*span])
            })
            .collect::<Vec<_>>())
    };
    Ok(samples(members(path, &[])?, options, each))
}

#[derive(Deserialize)]
struct HirestVideo {
    #[serde(default)]
    relevant: bool,
    #[serde(default)]
    clip: bool,
    v_duration: Option<f64>,
    #[serde(default)]
    bounds: Vec<f64>,
    #[serde(default)]
    steps: Vec<HirestStep>,
}

#[derive(Deserialize)]
struct HirestStep {
    heading: String,
    absolute_bounds: Option<[f64; 2]>,
}

/// HiREST: per search prompt the videos found. A clippable video gives the span of the prompt,
/// and one of every step; videos that are not relevant give nothing.
pub(super) fn hirest(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, videos: Vec<u8>| {
        let prompt = &at.key;
        let mut rows = Vec::new();
        // Videos keep their order: serde_json's map would sort them.
        let broken = |e: DataError| match e {
            // What is wrong within a record costs that record.
            DataError::Json { reason, .. } => at.bad(reason),
            other => other,
        };
        for video in JsonItems::new(&videos[..], &at.file, &[]).map_err(broken)? {
            let video = video.map_err(broken)?;
            let v: HirestVideo =
                serde_json::from_slice(&video.bytes).map_err(|e| at.bad(e.to_string()))?;
            let name = video.key.unwrap_or_default();
            if !v.relevant {
                continue;
            }
            let media = Media::video(options.video(&name));
            let mut row = |i: usize, query: &str, span: [f64; 2]| {
                let (id, media) = (format!("{name}:{prompt}:{i}"), media.clone());
                rows.push(moment(options, id, media, v.v_duration, query, vec![span]));
            };
            if let (true, [start, end]) = (v.clip, &v.bounds[..]) {
                row(0, prompt, [*start, *end]);
            }
            for (i, step) in v.steps.iter().enumerate() {
                if let Some(span) = step.absolute_bounds {
                    row(i + 1, &step.heading, span);
                }
            }
        }
        Ok(rows)
    };
    Ok(samples(items(path, &[])?, options, each))
}

#[derive(Deserialize)]
struct NlqVideo {
    video_uid: String,
    split: Option<String>,
    clips: Vec<NlqClip>,
}

#[derive(Deserialize)]
struct NlqClip {
    clip_uid: String,
    video_start_sec: Option<f64>,
    video_end_sec: Option<f64>,
    annotations: Vec<NlqAnnotation>,
}

#[derive(Deserialize)]
struct NlqAnnotation {
    annotation_uid: String,
    language_queries: Vec<NlqQuery>,
}

#[derive(Deserialize)]
struct NlqQuery {
    query: Option<String>,
    template: Option<String>,
    clip_start_sec: Option<f64>,
    clip_end_sec: Option<f64>,
}

/// Natural language queries of Ego4D (`nlq_train.json`): videos, their clips, annotations of a
/// clip, queries of an annotation. Media are the clips Ego4D exports, `CLIP_UID.mp4`, and times are
/// those of the clip (`clip_start_sec`); the whole videos, of hours, are named in `meta`. Queries
/// without a time, those of `nlq_test_unannotated.json`, become questions. Of the first edition
/// about one window in seven has no length, and some queries no text; both are left out.
pub(super) fn ego4d_nlq(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, video: NlqVideo| {
        let mut rows = Vec::new();
        for clip in &video.clips {
            let mut media = Media::video(options.video(&clip.clip_uid));
            let ends = clip.video_end_sec.zip(clip.video_start_sec);
            media.duration = ends.map(|(end, start)| end - start);
            for annotation in &clip.annotations {
                for (i, asked) in annotation.language_queries.iter().enumerate() {
                    let id = format!("{}:{i}", annotation.annotation_uid);
                    let row = nlq_row(options, &at, id, media.clone(), asked);
                    rows.push(row.map(|mut row| {
                        let template = asked.template.as_deref();
                        let uid = Some(&*video.video_uid);
                        for (key, value) in [("template", template), ("video_uid", uid)] {
                            row.meta.extend(value.map(|v| (key.into(), v.into())));
                        }
                        row
                    }));
                }
            }
        }
        rows
    };
    let videos = members(path, &["videos"])?;
    let videos = of_split(videos, options, |v: &NlqVideo| v.split.as_deref());
    Ok(parts(videos, options, each))
}

fn nlq_row(
    options: &ConvertOptions,
    at: &At,
    id: String,
    media: Media,
    asked: &NlqQuery,
) -> Result<Sample, DataError> {
    let query = asked.query.as_deref().map(str::trim);
    let query = query.filter(|q| !q.is_empty());
    let query = query.ok_or_else(|| at.bad(format!("query `{id}` has no text")))?;
    let Some((start, end)) = asked.clip_start_sec.zip(asked.clip_end_sec) else {
        return Ok(unlabelled(id, media, query));
    };
    let length = media.duration;
    let spans = vec![[start, end]];
    Ok(moment(options, id, media, length, query, spans))
}

/// A video of YouCook2.
#[derive(Deserialize)]
pub(super) struct CookVideo {
    duration: f64,
    subset: String,
    recipe_type: String,
    pub annotations: Vec<CookStep>,
}

/// A step of a recipe.
#[derive(Deserialize)]
pub(super) struct CookStep {
    pub id: u64,
    pub segment: [f64; 2],
    sentence: Option<String>,
}

/// YouCook2 (`youcookii_annotations_trainval.json`): `database` of videos with `duration`, `subset`
/// (`training`, `validation`), `recipe_type` and the steps of the recipe. Every step becomes a row.
/// Videos lie where the dataset's own download script puts them, `SUBSET/RECIPE_TYPE/ID.mp4`.
pub(super) fn youcook2(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, video: CookVideo| {
        let (name, subset) = (&at.key, &video.subset);
        let file = format!("{subset}/{}/{name}", video.recipe_type);
        let media = Media::video(options.video(&file));
        let steps = video.annotations.iter().map(|step| {
            let id = format!("{name}:{}", step.id);
            let sentence = step.sentence.as_deref();
            let sentence =
                sentence.ok_or_else(|| at.bad(format!("step {} has no `sentence`", step.id)))?;
            let (length, spans) = (Some(video.duration), vec![step.segment]);
            Ok(moment(options, id, media.clone(), length, sentence, spans))
        });
        steps.collect()
    };
    let videos = members(path, &["database"])?;
    let videos = of_split(videos, options, |v: &CookVideo| Some(&v.subset));
    Ok(parts(videos, options, each))
}
