//! Everything wrong with a row that can be found without opening its file, not only the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::prompts::videochat::{IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER};
use tpo_core::geometry::Rle;

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

/// Collects problems under a path.
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem {
            at: at.into(),
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
        let mut out = Problems(Vec::new());
        if self.turns.is_empty() && self.annotations.is_empty() {
            out.add("row", "it has neither `turns` nor `annotations`");
        }
        if self.id.as_deref().is_some_and(|id| id.trim().is_empty()) {
            out.add("id", "it is empty; leave it out instead");
        }
        if let Some(media) = &self.media {
            check_media_fields(media, &mut out);
            if let Some(file) = file {
                check_file(media, file, &mut out);
            }
        } else if !self.annotations.is_empty() {
            out.add("media", "annotations need a video or an image");
        }
        let size = file.map(picture_size);
        for (i, turn) in self.turns.iter().enumerate() {
            check_turn(turn, size, &format!("turns[{i}]"), &mut out);
        }
        let media = self.media.as_ref().map(|media| Media {
            size: size.or(media.size),
            duration: file.map(|f| f.duration).or(media.duration),
            ..media.clone()
        });
        for (i, annotation) in self.annotations.iter().enumerate() {
            let (media, at) = (media.as_ref(), format!("annotations[{i}]"));
            check_annotation(annotation, media, file, &at, &mut out);
        }
        self.check_calls(&mut out);
        out.0
    }

    /// Whether some answer calls a head with a mark; annotations are then used in the order of
    /// the calls, otherwise each becomes a turn of its own.
    pub fn has_calls(&self) -> bool {
        self.turns.iter().any(|t| !calls(&t.answer).is_empty())
    }

    fn check_calls(&self, out: &mut Problems) {
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
                    out.add(
                        "turns",
                        format!(
                            "{marks} `<task:{task}>` in the answers, {annotations} annotations \
                             of that task; they must be equally many"
                        ),
                    );
                }
            }
            return;
        }
        for (i, a) in self.annotations.iter().enumerate() {
            if a.query.is_none() && a.prompt_box.is_none() {
                out.add(
                    format!("annotations[{i}]"),
                    format!(
                        "it has no `query` to ask with; add one, or a turn that answers with \
                         `<task:{}>`",
                        a.task
                    ),
                );
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

fn check_media_fields(media: &Media, out: &mut Problems) {
    if media.path.trim().is_empty() || media.path.contains('\0') {
        out.add("media", "the path is empty or holds a zero byte");
    }
    if let MediaKind::Frames { fps } = media.kind
        && !(fps.is_finite() && fps > 0.0 && fps <= 1000.0)
    {
        out.add("media.fps", format!("{fps} is not between 0 and 1000"));
    }
    if media.size.is_some_and(|s| s.contains(&0)) {
        out.add("media.size", "a side is 0");
    }
    if let Some(d) = media.duration
        && !(d.is_finite() && d > 0.0)
    {
        out.add("media.duration", format!("{d} seconds is not positive"));
    }
    let Some(range) = media.range else { return };
    if !media.is_video() {
        out.add("media.range", "an image has no time");
    }
    if let Some(why) = bad_span([range.start, range.end]) {
        out.add("media.range", why);
    } else if let Some(d) = media.duration
        && range.start >= d
    {
        out.add(
            "media.range",
            format!("it starts at {} s, the video lasts {d} s", range.start),
        );
    }
}

/// `[width, height]` of a file's pictures.
fn picture_size(file: &VideoInfo) -> [u32; 2] {
    [file.width as u32, file.height as u32]
}

/// What a row says about a file as a whole.
fn check_file(media: &Media, file: &VideoInfo, out: &mut Problems) {
    let size = picture_size(file);
    if let Some(said) = media.size.filter(|s| *s != size) {
        out.add(
            "media.size",
            format!("the row says {said:?}, the file is {size:?} [width, height]"),
        );
    }
    if !media.is_video() {
        return;
    }
    let (length, slack) = (file.duration, time_slack(file.duration));
    if let Some(said) = media.duration.filter(|d| (d - length).abs() > slack) {
        out.add(
            "media.duration",
            format!("the row says {said} s, the file lasts {length:.3} s"),
        );
    }
    let past = |r: &ClipRange| r.start >= length || r.end > length + slack;
    if let Some(r) = media.range.filter(past) {
        out.add(
            "media.range",
            format!("[{}, {}] s, the file lasts {length:.3} s", r.start, r.end),
        );
    }
}

fn check_turn(turn: &Turn, size: Option<[u32; 2]>, at: &str, out: &mut Problems) {
    if turn.question.trim().is_empty() {
        out.add(format!("{at}.question"), "it is empty");
    }
    for (name, text) in [("question", &turn.question), ("answer", &turn.answer)] {
        if [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER]
            .iter()
            .any(|p| text.contains(p))
        {
            out.add(
                format!("{at}.{name}"),
                "it holds the place of a video or image; media is put in front of the first \
                 question by itself",
            );
        }
    }
    let boxes = marks(&turn.question)
        .iter()
        .filter(|(_, m)| *m == Mark::Box)
        .count();
    if boxes != turn.boxes.len() {
        out.add(
            format!("{at}.boxes"),
            format!(
                "{boxes} `{BOX_MARK}` in the question, {} boxes",
                turn.boxes.len()
            ),
        );
    }
    if marks(&turn.question).len() != boxes {
        out.add(format!("{at}.question"), "only an answer calls a head");
    }
    if marks(&turn.answer).iter().any(|(_, m)| *m == Mark::Box) {
        out.add(
            format!("{at}.answer"),
            format!("`{BOX_MARK}` belongs to questions; an answer calls `<task:NAME>`"),
        );
    }
    for (i, b) in turn.boxes.iter().enumerate() {
        check_box(b, size, &format!("{at}.boxes[{i}]"), out);
    }
    match turn.correct {
        Some(i) if i >= turn.options.len() => out.add(
            format!("{at}.correct"),
            format!("choice {i} of {} choices", turn.options.len()),
        ),
        _ => {}
    }
    if turn.options.len() == 1 || turn.options.len() > 26 {
        out.add(
            format!("{at}.options"),
            format!("{} choices; 2 to 26 make a question", turn.options.len()),
        );
    }
}

fn check_annotation(
    a: &Annotation,
    media: Option<&Media>,
    file: Option<&VideoInfo>,
    at: &str,
    out: &mut Problems,
) {
    let named = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if a.task.is_empty() || !a.task.chars().all(named) {
        out.add(
            format!("{at}.task"),
            format!("`{}` is not letters, digits, `_`, `-` and `.`", a.task),
        );
    }
    if a.query.as_deref().is_some_and(|q| q.trim().is_empty()) {
        out.add(format!("{at}.query"), "it is empty");
    }
    let size = media.and_then(|m| m.size);
    if let Some(b) = &a.prompt_box {
        check_box(b, size, &format!("{at}.prompt_box"), out);
    }
    match &a.target {
        Target::Box(b) => check_box(b, size, &format!("{at}.box"), out),
        Target::Spans { spans, saliency } => {
            check_spans(spans, media, at, out);
            if let Some(s) = saliency {
                check_saliency(s, &format!("{at}.saliency"), out);
            }
        }
        Target::Track(frames) => {
            check_track(frames, size, at, out);
            if let Some(file) = file {
                check_track_file(frames, file, at, out);
            }
        }
        Target::Value(_) => {}
    }
}

fn check_box(b: &BoxCoords, size: Option<[u32; 2]>, at: &str, out: &mut Problems) {
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
    out.add(at, format!("[{x0}, {y0}, {x1}, {y1}]: {why}"));
}

fn bad_span([start, end]: [f64; 2]) -> Option<String> {
    let why = if !start.is_finite() || !end.is_finite() {
        "an end is not a finite number"
    } else if start < 0.0 {
        "it starts before the video"
    } else if end < start {
        "it ends before it starts"
    } else if end == start {
        "it has no length"
    } else {
        return None;
    };
    Some(format!("[{start}, {end}] seconds: {why}"))
}

fn check_spans(spans: &[[f64; 2]], media: Option<&Media>, at: &str, out: &mut Problems) {
    if spans.is_empty() {
        out.add(format!("{at}.spans"), "there is none");
    }
    if media.is_some_and(|m| !m.is_video()) {
        out.add(format!("{at}.spans"), "an image has no time");
    }
    let duration = media.and_then(|m| m.duration).filter(|d| d.is_finite());
    let range = media.and_then(|m| m.range);
    for (i, span) in spans.iter().enumerate() {
        let at = format!("{at}.spans[{i}]");
        let past = duration.filter(|d| span[1] > d + time_slack(*d) || span[0] >= *d);
        let outside = range.filter(|r| span[1] <= r.start || span[0] >= r.end);
        if let Some(why) = bad_span(*span) {
            out.add(at, why);
        } else if let Some(d) = past {
            out.add(at, format!("{span:?} seconds: the video lasts {d} s"));
        } else if let Some(r) = outside {
            let range = [r.start, r.end];
            out.add(
                at,
                format!("{span:?} seconds is outside the clip {range:?}"),
            );
        }
    }
}

fn check_saliency(s: &Saliency, at: &str, out: &mut Problems) {
    if !(s.clip_seconds.is_finite() && s.clip_seconds > 0.0) {
        out.add(
            format!("{at}.clip_seconds"),
            format!("{} is not positive", s.clip_seconds),
        );
    }
    if s.clips.len() != s.scores.len() {
        out.add(
            at,
            format!("{} clips, {} rows of scores", s.clips.len(), s.scores.len()),
        );
    }
    if s.clips.iter().collect::<BTreeSet<_>>().len() != s.clips.len() {
        out.add(format!("{at}.clips"), "a clip is rated twice");
    }
    let raters = s.scores.first().map_or(0, Vec::len);
    for (i, row) in s.scores.iter().enumerate() {
        let at = format!("{at}.scores[{i}]");
        if row.is_empty() || row.len() != raters {
            out.add(at, format!("{} scores, the first has {raters}", row.len()));
        } else if row.iter().any(|v| !v.is_finite() || *v < 0.0) {
            out.add(
                at,
                format!("{row:?}: a score is negative or not a finite number"),
            );
        }
    }
}

fn check_track(frames: &[TrackFrame], size: Option<[u32; 2]>, at: &str, out: &mut Problems) {
    if frames.iter().all(|f| f.region == TrackRegion::Absent) {
        out.add(
            format!("{at}.track"),
            "the object is visible on no frame of it",
        );
    }
    let by_time = |f: &TrackFrame| matches!(f.at, FramePosition::Time(_));
    let mut last: Option<f64> = None;
    let mut mask_size = None;
    for (i, f) in frames.iter().enumerate() {
        let at = format!("{at}.track[{i}]");
        let position = match f.at {
            FramePosition::Frame(n) => n as f64,
            FramePosition::Time(t) if !t.is_finite() || t < 0.0 => {
                out.add(format!("{at}.time"), format!("{t} seconds"));
                continue;
            }
            FramePosition::Time(t) => t,
        };
        if by_time(f) != by_time(&frames[0]) {
            out.add(&at, "`frame` and `time` are mixed in one track");
        } else if last.is_some_and(|l| l >= position) {
            out.add(&at, "frames are not in ascending order");
        }
        last = Some(position);
        match &f.region {
            TrackRegion::Absent => {}
            TrackRegion::Box(b) => check_box(b, size, &at, out),
            TrackRegion::Mask(rle) => {
                check_rle(rle, &format!("{at}.rle"), out);
                let first = *mask_size.get_or_insert(rle.size);
                if first != rle.size {
                    out.add(
                        format!("{at}.rle"),
                        format!("size {:?}, earlier masks have {first:?}", rle.size),
                    );
                }
            }
        }
    }
}

/// Whether the frames of a track are in the file, and its masks of the shape of its pictures.
fn check_track_file(frames: &[TrackFrame], file: &VideoInfo, at: &str, out: &mut Problems) {
    let (count, length) = (file.frame_count, file.duration);
    let [width, height] = picture_size(file);
    for (i, f) in frames.iter().enumerate() {
        let at = format!("{at}.track[{i}]");
        let past = match f.at {
            FramePosition::Frame(n) => n >= count as u64,
            FramePosition::Time(t) => t > length + time_slack(length),
        };
        if past {
            out.add(
                &at,
                format!("past the end: the file has {count} frames, {length:.3} s"),
            );
        }
        if let TrackRegion::Mask(rle) = &f.region {
            // Masks of another size are fine when only the scale differs.
            let [h, w] = rle.size.map(|v| v as f64);
            if (w / h * f64::from(height) / f64::from(width) - 1.0).abs() > 0.05 {
                let shapes = format!("the mask is {w} x {h}, the picture {width} x {height}");
                out.add(&at, format!("{shapes}: another shape"));
            }
        }
    }
}

fn check_rle(rle: &Rle, at: &str, out: &mut Problems) {
    let [h, w] = rle.size;
    let pixels = (h as u64).saturating_mul(w as u64);
    if pixels == 0 || pixels > MAX_MASK_PIXELS {
        out.add(at, format!("size {h} x {w} pixels"));
        return;
    }
    match rle.runs() {
        Err(e) => out.add(at, e.to_string()),
        Ok(runs) => {
            let total = runs.iter().try_fold(0u64, |sum, r| sum.checked_add(*r));
            if total != Some(pixels) {
                out.add(
                    at,
                    format!("the runs do not add up to {h} x {w} = {pixels} pixels"),
                );
            }
        }
    }
}
