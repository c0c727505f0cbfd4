//! Conversations about a video or an image.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{At, ConvertOptions, Samples, asked, records, samples, text_of};
use crate::schema::{Media, Turn};
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

fn media(
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
pub(super) fn videochat2(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: ItRow| {
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

#[derive(Deserialize)]
struct LlavaRow {
    id: Option<Value>,
    image: Option<String>,
    video: Option<String>,
    conversations: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
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
        let mut said = row.conversations.into_iter().peekable();
        // Some rows begin with a system text; it is not part of the conversation.
        said.next_if(|s| s.from == "system");
        let (mut turns, mut places) = (Vec::new(), 0);
        while let Some(question) = said.next() {
            let answer = said
                .next()
                .ok_or_else(|| fail("a question has no answer"))?;
            let human = matches!(question.from.as_str(), "human" | "user");
            if !human || !matches!(answer.from.as_str(), "gpt" | "assistant") {
                return Err(fail("the turns are not human, gpt, human, gpt, .."));
            }
            let mut text = question.value;
            for mark in ["<image>", "<video>"] {
                places += text.matches(mark).count();
                text = text.replace(mark, "");
            }
            turns.push(Turn::new(text.trim(), answer.value.trim()));
        }
        if places > 1 {
            return Err(fail("it is about several images; a row has one"));
        }
        let id = row.id.map_or_else(|| at.number.to_string(), text_of);
        Ok([asked(id, media, turns)])
    };
    Ok(samples(records(path)?, options, each))
}
