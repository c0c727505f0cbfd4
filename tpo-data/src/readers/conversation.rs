//! Conversations about a video or an image.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::temporal::CookVideo;
use super::{
    At, ConvertOptions, Samples, asked, is_object, members, parts, records, samples, text_of,
};
use crate::schema::{Media, Sample, Turn};
use crate::{ClipRange, DataError};

#[derive(Deserialize)]
struct ItRow {
    video: Option<String>,
    image: Option<String>,
    #[serde(rename = "QA")]
    qa: Vec<Qa>,
    start: Option<f64>,
    end: Option<f64>,
}

#[derive(Deserialize)]
struct Qa {
    #[serde(default)]
    i: String,
    #[serde(default)]
    q: String,
    a: String,
}

pub(super) fn media(
    options: &ConvertOptions,
    video: Option<String>,
    image: Option<String>,
    range: [Option<f64>; 2],
) -> Result<Option<Media>, &'static str> {
    match (video, image) {
        (Some(video), None) => {
            let mut media = Media::video(options.video(&video));
            if let [Some(start), Some(end)] = range {
                media.range = Some(ClipRange { start, end });
            }
            Ok(Some(media))
        }
        (None, Some(image)) => Ok(Some(Media::image(options.media(&image)))),
        (None, None) => Ok(None),
        _ => Err("it has both `video` and `image`"),
    }
}

/// VideoChat2-IT: `QA` of instruction `i`, question `q`, answer `a`. The instruction, where there
/// is one, is put before its question on its own line.
///
/// Its rows of YouCook2 are about clips cut out of the videos, `SUBSET/RECIPE/ID/split_N.mp4`. With
/// `youcookii_annotations_trainval.json` as the second file they are about segment `N` of the
/// whole video `SUBSET/RECIPE/ID`. Held in memory then: the segments.
pub(super) fn videochat2(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let segments: Option<HashMap<String, CookVideo>> = match &options.second {
        Some(second) => {
            let videos = members(second, &["database"])?;
            let videos = videos.map(|record| record.map(|(at, video)| (at.key, video)));
            Some(videos.collect::<Result<_, _>>()?)
        }
        None => None,
    };
    let each = move |options: &ConvertOptions, at: At, mut row: ItRow| {
        if let (Some(segments), Some(clip)) = (&segments, &row.video) {
            let (video, [start, end]) = whole_video(clip, segments).map_err(|why| at.bad(why))?;
            (row.video, row.start, row.end) = (Some(video), Some(start), Some(end));
        }
        let media = media(options, row.video, row.image, [row.start, row.end]);
        let turns = row
            .qa
            .iter()
            .map(|qa| {
                let parts = [qa.i.trim(), qa.q.trim()];
                let parts: Vec<_> = parts.into_iter().filter(|p| !p.is_empty()).collect();
                Turn::new(parts.join("\n"), qa.a.trim())
            })
            .collect();
        let media = media.map_err(|why| at.bad(why))?;
        Ok([asked(at.number.to_string(), media, turns)])
    };
    Ok(samples(records(path)?, options, each))
}

/// The video of YouCook2 that a clip was cut from, without extension, and the segment it shows.
fn whole_video(
    clip: &str,
    segments: &HashMap<String, CookVideo>,
) -> Result<(String, [f64; 2]), String> {
    let named = clip.rsplit_once('/').and_then(|(video, file)| {
        let id = video.rsplit('/').next()?;
        let number = file.split('.').next()?.rsplit_once('_')?.1;
        Some((video, id, number.parse().ok()?))
    });
    let (video, id, number): (_, _, u64) = named.ok_or_else(|| {
        format!("`{clip}`: expected SUBSET/RECIPE/ID/split_N.mp4; leave the second file out")
    })?;
    let known = segments
        .get(id)
        .ok_or_else(|| format!("the second file has no video `{id}`"))?;
    let step = known.annotations.iter().find(|step| step.id == number);
    let step = step.ok_or_else(|| format!("video `{id}` has no annotation {number}"))?;
    Ok((video.into(), step.segment))
}

#[derive(Deserialize)]
pub(super) struct LlavaRow {
    pub id: Option<Value>,
    pub image: Option<String>,
    pub video: Option<String>,
    pub conversations: Vec<Said>,
}

#[derive(Deserialize)]
pub(super) struct Said {
    from: String,
    value: String,
}

/// LLaVA conversations: `human` and `gpt` take turns; the `<image>` or `<video>` of the text is
/// dropped, because media is always put before the first question. Rows of several images cannot
/// be represented and are rejected.
pub(super) fn llava(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: LlavaRow| {
        let fail = |why: &str| at.bad(why);
        let media = media(options, row.video, row.image, [None, None]).map_err(fail)?;
        let turns = exchanges(row.conversations).map_err(fail)?;
        let id = row.id.map_or_else(|| at.number.to_string(), text_of);
        Ok([asked(id, media, turns)])
    };
    Ok(samples(records(path)?, options, each))
}

/// Questions and answers of a LLaVA conversation, without the places of its picture.
pub(super) fn exchanges(said: Vec<Said>) -> Result<Vec<Turn>, &'static str> {
    let mut said = said.into_iter().peekable();
    // Some rows begin with a system text; it is not part of the conversation.
    said.next_if(|s| s.from == "system");
    let (mut turns, mut places) = (Vec::new(), 0);
    while let Some(question) = said.next() {
        let answer = said.next().ok_or("a question has no answer")?;
        let human = matches!(question.from.as_str(), "human" | "user");
        if !human || !matches!(answer.from.as_str(), "gpt" | "assistant") {
            return Err("the turns are not human, gpt, human, gpt, ..");
        }
        let mut text = question.value;
        for mark in ["<image>", "<video>"] {
            places += text.matches(mark).count();
            text = text.replace(mark, "");
        }
        turns.push(Turn::new(text.trim(), answer.value.trim()));
    }
    if places > 1 {
        return Err("it is about several images; a row has one");
    }
    Ok(turns)
}

#[derive(Deserialize)]
struct RtlVideo {
    duration: f64,
    #[serde(rename = "QA")]
    qa: Vec<Qa>,
}

#[derive(Deserialize)]
struct RtlQuestion {
    vid: String,
    duration: f64,
    question: String,
    answer: String,
}

/// ActivityNet-RTL, the reasoning about time that LITA publishes. Training is an object
/// `{"v_ID": {duration, QA: [{q, a}]}}`, validation an array of `vid` without `v_`, `question`,
/// `answer`, `duration`. Times stand in the answers as seconds in angle brackets, most often the
/// span and then a reason: `<3.2> <10> He runs up before ..`. Every question becomes a row of
/// words: `3.2 - 10 seconds. He runs up before ..`.
pub(super) fn activitynet_rtl(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    if is_object(path)? {
        let each = |options: &ConvertOptions, at: At, video: RtlVideo| {
            let rows = video.qa.iter().enumerate().map(|(i, qa)| {
                let id = format!("{}:{i}", at.key);
                reasoning(options, &at, id, (&at.key, video.duration), [&qa.q, &qa.a])
            });
            rows.collect()
        };
        return Ok(parts(members(path, &[])?, options, each));
    }
    let each = |options: &ConvertOptions, at: At, row: RtlQuestion| {
        let (id, video) = (at.number.to_string(), format!("v_{}", row.vid));
        let texts = [&*row.question, &*row.answer];
        vec![reasoning(options, &at, id, (&video, row.duration), texts)]
    };
    Ok(parts(records(path)?, options, each))
}

fn reasoning(
    options: &ConvertOptions,
    at: &At,
    id: String,
    (video, duration): (&str, f64),
    [question, answer]: [&str; 2],
) -> Result<Sample, DataError> {
    let mut media = Media::video(options.video(video));
    media.duration = Some(duration);
    let answer = times_in_words(answer, duration)
        .map_err(|why| at.bad(format!("the answer to `{}`: {why}", question.trim())))?;
    let turn = Turn::new(question.trim(), answer);
    Ok(asked(id, Some(media), vec![turn]))
}

/// A text with `<3.2>` as `3.2 seconds`; two that begin it are a span.
fn times_in_words(text: &str, duration: f64) -> Result<String, String> {
    let mut rest = text.trim();
    let mut out = String::new();
    let after_time = |text: &str| -> Option<(f64, usize)> {
        let end = text.strip_prefix('<')?.find('>')? + 1;
        let inside = &text[1..end];
        let digits = inside.chars().all(|c| c.is_ascii_digit() || c == '.');
        let seconds = inside.parse().ok().filter(|_| digits)?;
        Some((seconds, end + 1))
    };
    let check = |seconds: f64| {
        // Annotations of ActivityNet end up to a second after the video.
        let inside = seconds <= duration + 1.0;
        inside
            .then_some(seconds)
            .ok_or_else(|| format!("<{seconds}> is after the end of the video, {duration} seconds"))
    };
    if let Some((start, length)) = after_time(rest)
        && let Some((end, second)) = after_time(rest[length..].trim_start())
    {
        check(end)?;
        if start >= end {
            return Err(format!("its span <{start}> <{end}> is empty or reversed"));
        }
        out = format!("{start} - {end} seconds.");
        rest = &rest[length..].trim_start()[second..];
    }
    while let Some(open) = rest.find('<') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        match after_time(rest) {
            Some((seconds, length)) => {
                out.push_str(&format!("{} seconds", check(seconds)?));
                rest = &rest[length..];
            }
            None => {
                out.push('<');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}
