//! Everything wrong with a row that can be found without opening its file, not only the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::prompts::videochat::{IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER};
use tpo_core::CoreError;
use tpo_core::geometry::{Rle, TimeSpan};

use super::annotation::{
    Annotation, BoxCoords, FramePosition, Saliency, Target, TrackFrame, TrackRegion,
};
use super::marks::{BOX_MARK, Mark, marks};
use super::sample::{Media, MediaKind, Sample, Turn};
use crate::{ClipRange, VideoInfo};

/// Pixel boxes may reach this far outside: some annotations count pixel centres from 1.
const BOX_SLACK_PIXELS: f32 = 1.0;

/// Most pixels of one mask.
const MAX_MASK_PIXELS: u64 = 1 << 26;

/// Most images of a row.
const MAX_IMAGES: usize = 256;

/// Something wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, for example `annotations[1].spans[0]`.
    pub at: String,
    /// What is wrong with it, with the values.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// How far annotated times may reach past the end of a video of `duration` seconds: annotators'
/// players round. One second, or two per cent of a long video. What is past the end is clipped.
fn time_slack(duration: f64) -> f64 {
    (0.02 * duration).max(1.0)
}

/// Collects problems of a field and what is in it.
struct Report<'a> {
    /// Path of the field; empty for the row.
    at: String,
    found: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// The report of what is at `name` in the field.
    fn field(&mut self, name: impl fmt::Display) -> Report<'_> {
        let at = match self.at.as_str() {
            "" => name.to_string(),
            at => format!("{at}.{name}"),
        };
        Report {
            at,
            found: self.found,
        }
    }

    /// The report of element `i` of a list.
    fn element(&mut self, list: &str, i: usize) -> Report<'_> {
        self.field(format_args!("{list}[{i}]"))
    }

    /// Something wrong with the field itself.
    fn add(&mut self, what: impl Into<String>) {
        self.found.push(Problem {
            at: self.at.clone(),
            what: what.into(),
        });
    }
}

impl Sample {
    /// Everything wrong with the row that can be seen without its media file; empty for a good
    /// row. [`check_media`](super::check_media) looks at the file.
    pub fn problems(&self) -> Vec<Problem> {
        self.check(None)
    }

    /// As [`Sample::problems`], and what the media file shows, which is believed rather than the
    /// row.
    pub(super) fn check(&self, file: Option<&VideoInfo>) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut row = Report {
            at: String::new(),
            found: &mut found,
        };
        if self.turns.is_empty() && self.annotations.is_empty() {
            let what = "it has neither `turns` nor `annotations`";
            row.field("row").add(what);
        }
        if self.id.as_deref().is_some_and(|id| id.trim().is_empty()) {
            row.field("id").add("it is empty; leave it out instead");
        }
        if let Some(media) = &self.media {
            check_media_fields(media, row.field("media"));
            if let Some(file) = file {
                check_file(media, file, row.field("media"));
            }
        } else if !self.annotations.is_empty() {
            let what = "annotations need a video or an image";
            row.field("media").add(what);
        }
        let size = file.map(picture_size);
        for (i, turn) in self.turns.iter().enumerate() {
            check_turn(turn, size, row.element("turns", i));
        }
        let media = self.media.as_ref().map(|media| Media {
            size: size.or(media.size),
            duration: file.map(|f| f.duration).or(media.duration),
            ..media.clone()
        });
        for (i, annotation) in self.annotations.iter().enumerate() {
            let out = row.element("annotations", i);
            check_annotation(annotation, media.as_ref(), file, out);
        }
        self.check_calls(row);
        found
    }

    /// Whether some answer calls a head with a mark; annotations are then used in the order of
    /// the calls, otherwise each becomes a turn of its own.
    pub fn has_calls(&self) -> bool {
        self.turns.iter().any(|t| !calls(&t.answer).is_empty())
    }

    fn check_calls(&self, mut row: Report<'_>) {
        if self.has_calls() {
            let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
            for name in self.turns.iter().flat_map(|t| calls(&t.answer)) {
                counts.entry(name).or_default()[0] += 1;
            }
            for a in &self.annotations {
                counts.entry(&a.task).or_default()[1] += 1;
            }
            for (task, [marks, annotations]) in counts {
                if marks != annotations {
                    row.field("turns").add(format!(
                        "{marks} `<task:{task}>` in the answers, {annotations} annotations of \
                         that task; they must be equally many"
                    ));
                }
            }
            return;
        }
        for (i, a) in self.annotations.iter().enumerate() {
            if a.query.is_none() && a.prompt_box.is_none() {
                row.element("annotations", i).add(format!(
                    "it has no `query` to ask with; add one, or a turn that answers with \
                     `<task:{}>`",
                    a.task
                ));
            }
        }
    }
}

fn calls(answer: &str) -> Vec<&str> {
    marks(answer)
        .into_iter()
        .filter_map(|(_, m)| match m {
            Mark::Task(name) => Some(name),
            Mark::Box => None,
        })
        .collect()
}

fn check_media_fields(media: &Media, mut out: Report<'_>) {
    let mut paths = std::iter::once(&media.path).chain(&media.more);
    if paths.any(|path| path.trim().is_empty() || path.contains('\0')) {
        out.add("a path is empty or holds a zero byte");
    }
    let images = media.more.len().saturating_add(1);
    if images > MAX_IMAGES {
        let what = format!("{images} images; a row shows at most {MAX_IMAGES}");
        out.field("images").add(what);
    }
    if let MediaKind::Frames { fps } = media.kind
        && !(fps.is_finite() && fps > 0.0 && fps <= 1000.0)
    {
        out.field("fps")
            .add(format!("{fps} is not between 0 and 1000"));
    }
    if media.size.is_some_and(|s| s.contains(&0)) {
        out.field("size").add("a side is 0");
    }
    if let Some(d) = media.duration
        && !(d.is_finite() && d > 0.0)
    {
        out.field("duration")
            .add(format!("{d} seconds is not positive"));
    }
    let Some(range) = media.range else { return };
    let mut out = out.field("range");
    if !media.is_video() {
        out.add("an image has no time");
    }
    if let Some(why) = bad_span([range.start, range.end]) {
        out.add(why);
    } else if let Some(d) = media.duration
        && range.start >= d
    {
        let start = range.start;
        out.add(format!("it starts at {start} s, the video lasts {d} s"));
    }
}

/// `[width, height]` of a file's pictures.
fn picture_size(file: &VideoInfo) -> [u32; 2] {
    [file.width as u32, file.height as u32]
}

/// What a row says about a file as a whole.
fn check_file(media: &Media, file: &VideoInfo, mut out: Report<'_>) {
    let size = picture_size(file);
    if let Some(said) = media.size.filter(|s| *s != size) {
        let what = format!("the row says {said:?}, the file is {size:?} [width, height]");
        out.field("size").add(what);
    }
    if !media.is_video() {
        return;
    }
    let (length, slack) = (file.duration, time_slack(file.duration));
    if let Some(said) = media.duration.filter(|d| (d - length).abs() > slack) {
        let what = format!("the row says {said} s, the file lasts {length:.3} s");
        out.field("duration").add(what);
    }
    let past = |r: &ClipRange| r.start >= length || r.end > length + slack;
    if let Some(r) = media.range.filter(past) {
        let what = format!("[{}, {}] s, the file lasts {length:.3} s", r.start, r.end);
        out.field("range").add(what);
    }
}

fn check_turn(turn: &Turn, size: Option<[u32; 2]>, mut out: Report<'_>) {
    if turn.question.trim().is_empty() {
        out.field("question").add("it is empty");
    }
    for (name, text) in [("question", &turn.question), ("answer", &turn.answer)] {
        let places = [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER];
        if places.iter().any(|p| text.contains(p)) {
            out.field(name).add(
                "it holds the place of a video or image; media is put in front of the first \
                 question by itself",
            );
        }
    }
    let asked = marks(&turn.question);
    let marked = asked.iter().filter(|(_, m)| *m == Mark::Box).count();
    let boxes = turn.boxes.len();
    if marked != boxes {
        let what = format!("{marked} `{BOX_MARK}` in the question, {boxes} boxes");
        out.field("boxes").add(what);
    }
    if asked.len() != marked {
        out.field("question").add("only an answer calls a head");
    }
    if marks(&turn.answer).iter().any(|(_, m)| *m == Mark::Box) {
        let what = format!("`{BOX_MARK}` belongs to questions; an answer calls `<task:NAME>`");
        out.field("answer").add(what);
    }
    for (i, b) in turn.boxes.iter().enumerate() {
        check_box(b, size, out.element("boxes", i));
    }
    let options = turn.options.len();
    if let Some(i) = turn.correct.filter(|i| *i >= options) {
        out.field("correct")
            .add(format!("choice {i} of {options} choices"));
    }
    if options == 1 || options > 26 {
        let what = format!("{options} choices; 2 to 26 make a question");
        out.field("options").add(what);
    }
}

fn check_annotation(
    a: &Annotation,
    media: Option<&Media>,
    file: Option<&VideoInfo>,
    mut out: Report<'_>,
) {
    let named = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if a.task.is_empty() || !a.task.chars().all(named) {
        let what = format!("`{}` is not letters, digits, `_`, `-` and `.`", a.task);
        out.field("task").add(what);
    }
    if a.query.as_deref().is_some_and(|q| q.trim().is_empty()) {
        out.field("query").add("it is empty");
    }
    let size = media.and_then(|m| m.size);
    if let Some(b) = &a.prompt_box {
        check_box(b, size, out.field("prompt_box"));
    }
    match &a.target {
        Target::Box(b) => check_box(b, size, out.field("box")),
        Target::Spans { spans, saliency } => {
            check_spans(spans, media, &mut out);
            if let Some(s) = saliency {
                check_saliency(s, out.field("saliency"));
            }
        }
        Target::Track(frames) => {
            check_track(frames, size, &mut out);
            if let Some(file) = file {
                check_track_file(frames, file, &mut out);
            }
        }
        Target::Value(_) => {}
    }
}

fn check_box(b: &BoxCoords, size: Option<[u32; 2]>, mut out: Report<'_>) {
    let [x0, y0, x1, y1] = b.to_array();
    let (low, high) = match (b, size) {
        (BoxCoords::Normalised(_), _) => (0.0, Some([1.0, 1.0])),
        (BoxCoords::Pixels(_), Some([w, h])) => (
            -BOX_SLACK_PIXELS,
            Some([w as f32 + BOX_SLACK_PIXELS, h as f32 + BOX_SLACK_PIXELS]),
        ),
        (BoxCoords::Pixels(_), None) => (-BOX_SLACK_PIXELS, None),
    };
    let outside = x0 < low || y0 < low || high.is_some_and(|[w, h]| x1 > w || y1 > h);
    let why = if [x0, y0, x1, y1].iter().any(|v| !v.is_finite()) {
        "a coordinate is not a finite number"
    } else if x0 > x1 || y0 > y1 {
        "its corners are reversed; write [left, top, right, bottom]"
    } else if outside {
        match b {
            BoxCoords::Normalised(_) => {
                "it reaches outside 0 to 1; pixel boxes go under the name with `_pixels`"
            }
            BoxCoords::Pixels(_) => "it reaches outside the picture",
        }
    } else if x0 == x1 || y0 == y1 {
        "it has no area"
    } else {
        return;
    };
    out.add(format!("[{x0}, {y0}, {x1}, {y1}]: {why}"));
}

fn bad_span([start, end]: [f64; 2]) -> Option<String> {
    let why = match TimeSpan::new(start, end) {
        Err(CoreError::InvalidSpan { why, .. }) => why,
        _ if start == end => "it has no length",
        _ => return None,
    };
    Some(format!("[{start}, {end}] seconds: {why}"))
}

fn check_spans(spans: &[[f64; 2]], media: Option<&Media>, out: &mut Report<'_>) {
    if spans.is_empty() {
        out.field("spans").add("there is none");
    }
    if media.is_some_and(|m| !m.is_video()) {
        out.field("spans").add("an image has no time");
    }
    let duration = media.and_then(|m| m.duration).filter(|d| d.is_finite());
    let range = media.and_then(|m| m.range);
    for (i, span) in spans.iter().enumerate() {
        let mut out = out.element("spans", i);
        let past = duration.filter(|d| span[1] > d + time_slack(*d) || span[0] >= *d);
        let outside = range.filter(|r| span[1] <= r.start || span[0] >= r.end);
        if let Some(why) = bad_span(*span) {
            out.add(why);
        } else if let Some(d) = past {
            out.add(format!("{span:?} seconds: the video lasts {d} s"));
        } else if let Some(r) = outside {
            let range = [r.start, r.end];
            out.add(format!("{span:?} seconds is outside the clip {range:?}"));
        }
    }
}

fn check_saliency(s: &Saliency, mut out: Report<'_>) {
    if !(s.clip_seconds.is_finite() && s.clip_seconds > 0.0) {
        out.field("clip_seconds")
            .add(format!("{} is not positive", s.clip_seconds));
    }
    let (clips, scores) = (s.clips.len(), s.scores.len());
    if clips != scores {
        out.add(format!("{clips} clips, {scores} rows of scores"));
    }
    if s.clips.iter().collect::<BTreeSet<_>>().len() != clips {
        out.field("clips").add("a clip is rated twice");
    }
    let raters = s.scores.first().map_or(0, Vec::len);
    for (i, row) in s.scores.iter().enumerate() {
        let mut out = out.element("scores", i);
        if row.is_empty() || row.len() != raters {
            out.add(format!("{} scores, the first has {raters}", row.len()));
        } else if row.iter().any(|v| !v.is_finite() || *v < 0.0) {
            let what = "a score is negative or not a finite number";
            out.add(format!("{row:?}: {what}"));
        }
    }
}

fn check_track(frames: &[TrackFrame], size: Option<[u32; 2]>, out: &mut Report<'_>) {
    if frames.iter().all(|f| f.region == TrackRegion::Absent) {
        out.field("track")
            .add("the object is visible on no frame of it");
    }
    let by_time = |f: &TrackFrame| matches!(f.at, FramePosition::Time(_));
    let mut last: Option<f64> = None;
    let mut mask_size = None;
    for (i, f) in frames.iter().enumerate() {
        let mut out = out.element("track", i);
        let position = match f.at {
            FramePosition::Frame(n) => n as f64,
            FramePosition::Time(t) if !t.is_finite() || t < 0.0 => {
                out.field("time").add(format!("{t} seconds"));
                continue;
            }
            FramePosition::Time(t) => t,
        };
        if by_time(f) != by_time(&frames[0]) {
            out.add("`frame` and `time` are mixed in one track");
        } else if last.is_some_and(|l| l >= position) {
            out.add("frames are not in ascending order");
        }
        last = Some(position);
        match &f.region {
            TrackRegion::Absent => {}
            TrackRegion::Box(b) => check_box(b, size, out),
            TrackRegion::Mask(rle) => {
                let mut out = out.field("rle");
                check_rle(rle, &mut out);
                let (size, first) = (rle.size, *mask_size.get_or_insert(rle.size));
                if first != size {
                    out.add(format!("size {size:?}, earlier masks have {first:?}"));
                }
            }
        }
    }
}

/// Whether the frames of a track are in the file, and its masks of the shape of its pictures.
fn check_track_file(frames: &[TrackFrame], file: &VideoInfo, out: &mut Report<'_>) {
    let (count, length) = (file.frame_count, file.duration);
    let [width, height] = picture_size(file);
    for (i, f) in frames.iter().enumerate() {
        let mut out = out.element("track", i);
        let past = match f.at {
            FramePosition::Frame(n) => n >= count as u64,
            FramePosition::Time(t) => t > length + time_slack(length),
        };
        if past {
            let what = format!("the file has {count} frames, {length:.3} s");
            out.add(format!("past the end: {what}"));
        }
        if let TrackRegion::Mask(rle) = &f.region {
            // Masks of another size are fine when only the scale differs.
            let [h, w] = rle.size.map(|v| v as f64);
            if (w / h * f64::from(height) / f64::from(width) - 1.0).abs() > 0.05 {
                let shapes = format!("the mask is {w} x {h}, the picture {width} x {height}");
                out.add(format!("{shapes}: another shape"));
            }
        }
    }
}

fn check_rle(rle: &Rle, out: &mut Report<'_>) {
    let [h, w] = rle.size;
    let pixels = (h as u64).saturating_mul(w as u64);
    if pixels == 0 || pixels > MAX_MASK_PIXELS {
        out.add(format!("size {h} x {w} pixels"));
        return;
    }
    if let Err(e) = rle.runs() {
        out.add(e.to_string());
    }
}
