//! Tables of your own rows.

use std::path::Path;

use serde::Deserialize;

use super::{At, ConvertOptions, Samples, asked, samples, table};
use crate::DataError;
use crate::schema::{Annotation, BoxCoords, Media, Sample, Target, Turn};

/// A row of the table. A column that is not there is empty in every row.
#[derive(Deserialize)]
struct Row {
    video: Option<String>,
    image: Option<String>,
    frames: Option<String>,
    query: Option<String>,
    left: Option<f32>,
    top: Option<f32>,
    right: Option<f32>,
    bottom: Option<f32>,
    start: Option<f64>,
    end: Option<f64>,
    question: Option<String>,
    answer: Option<String>,
}

/// Names of the columns.
const COLUMNS: [&str; 12] = [
    "video", "image", "frames", "query", "left", "top", "right", "bottom", "start", "end",
    "question", "answer",
];

/// A csv with a row for each thing to learn. `video`, `image` or `frames` (a folder of pictures, at
/// `--frame-rate` a second) names the media. `query` is what to find, with `left`, `top`, `right` and
/// `bottom` in pixels where it is, or `start` and `end` in seconds when. `question` and `answer` are
/// words. Other columns are not read. A sample's id is the number of its line.
pub(super) fn csv(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: Row| {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let prefixed = |name: String| format!("{}{name}", options.media_prefix);
        let media = match (text(&row.video), text(&row.image), text(&row.frames)) {
            (Some(video), None, None) => Media::video(prefixed(video)),
            (None, Some(image), None) => Media::image(prefixed(image)),
            (None, None, Some(folder)) => {
                let rate = options.frame_rate.ok_or_else(|| {
                    at.bad("a folder of `frames` needs a rate; give --frame-rate")
                })?;
                Media::frames(prefixed(folder), rate)
            }
            _ => return Err(at.bad("expected one of `video`, `image` and `frames`")),
        };
        let query = text(&row.query);
        let wants = |what: &str| at.bad(format!("{what} needs a `query`: what is to be found"));
        let mut annotations = Vec::new();
        match [row.left, row.top, row.right, row.bottom] {
            [Some(left), Some(top), Some(right), Some(bottom)] => {
                let query = query.as_deref().ok_or_else(|| wants("a box"))?;
                let target = Target::Box(BoxCoords::Pixels([left, top, right, bottom]));
                annotations.push(Annotation::asked(&options.region_task, query, target));
            }
            [None, None, None, None] => {}
            _ => return Err(at.bad("a box needs `left`, `top`, `right` and `bottom`")),
        }
        match [row.start, row.end] {
            [Some(start), Some(end)] => {
                let query = query.as_deref().ok_or_else(|| wants("a span"))?;
                let target = Target::spans(vec![[start, end]]);
                annotations.push(Annotation::asked(&options.temporal_task, query, target));
            }
            [None, None] => {}
            _ => return Err(at.bad("a span needs `start` and `end`")),
        }
        let turns = match (text(&row.question), text(&row.answer)) {
            (Some(question), Some(answer)) => vec![Turn::new(question, answer)],
            (None, None) => Vec::new(),
            _ => return Err(at.bad("`question` and `answer` belong together")),
        };
        if turns.is_empty() && annotations.is_empty() {
            return Err(
                at.bad("nothing to learn: neither a box, nor a span, nor `question` and `answer`")
            );
        }
        Ok([Sample {
            annotations,
            ..asked(at.number.to_string(), Some(media), turns)
        }])
    };
    Ok(samples(table(path, &COLUMNS)?, options, each))
}
