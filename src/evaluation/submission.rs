//! Predictions and ground truth in the formats of the official evaluators.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tpo_core::geometry::{BoxXyxy, Mask, Rle};
use tpo_data::schema::{BoxCoords, Saliency, TrackRegion};
use tpo_heads::mask::metric::track::LasotSequence;

use super::answer::{MediaInfo, Predicted};
use super::files::boxes::BoxRow;
use super::files::vos::MaskTrack;
use super::files::{PredictedWindow, Record, SampleId, Table, WindowPrediction, WindowTruth};
use super::item::{Expected, Item, ItemKind};
use super::log::{PredictionRow, write_rows};
use crate::error::{Error, Result};

/// Length of a rated piece of QVHighlights in seconds.
const QVHIGHLIGHTS_CLIP_SECONDS: f64 = 2.0;
/// A box for "no answer" where a script would repair an empty one: it overlaps nothing.
const NOWHERE: [f64; 4] = [-10_000.0, -10_000.0, 1.0, 1.0];

/// A question with its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered<'a> {
    pub item: &'a Item,
    pub row: &'a PredictionRow,
}

impl Answered<'_> {
    pub fn media(&self) -> MediaInfo {
        self.row.media.unwrap_or_default()
    }

    /// Whether its head says itself what the answer is worth.
    pub fn is_own(&self) -> bool {
        let scored = matches!(self.row.predicted, Some(Predicted::Own { .. }));
        scored || self.item.kind() == ItemKind::Own
    }

    pub fn words(&self) -> &str {
        match &self.row.predicted {
            Some(Predicted::Words(text)) => text,
            _ => "",
        }
    }

    fn id(&self) -> SampleId {
        sample_id(&self.item.id)
    }
}

/// A number where the text is one, as the benchmarks' own files have it.
pub(super) fn sample_id(id: &str) -> SampleId {
    match id.parse::<i64>() {
        Ok(n) if n.to_string() == id => SampleId::Number(n),
        _ => SampleId::Name(id.into()),
    }
}

/// The folder of submissions.
pub(super) struct Folder<'a>(pub &'a Path);

impl Folder<'_> {
    /// Writes a file, with the folders it is in.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::evaluation_io(parent))?;
        }
        std::fs::write(&path, bytes).map_err(Error::evaluation_io(&path))?;
        Ok(path)
    }

    /// Writes rows as JSON lines.
    pub fn lines<T: Serialize>(&self, name: &str, rows: &[T]) -> Result<PathBuf> {
        let mut bytes = Vec::new();
        write_rows(&mut bytes, rows).map_err(Error::evaluation_io(&self.0.join(name)))?;
        self.write(name, &bytes)
    }

    /// Writes rows as JSON lines, and hands them on as the table that a reader finds there.
    pub fn table<T: Record + Serialize>(&self, name: &str, rows: Vec<T>) -> Result<Table<T>> {
        let path = self.lines(name, &rows)?;
        Table::from_rows(&path.display().to_string(), rows)
    }
}

fn pixels(b: [f32; 4], [width, height]: [u32; 2]) -> [f64; 4] {
    let (w, h) = (f64::from(width), f64::from(height));
    let [x0, y0, x1, y1] = b.map(f64::from);
    [x0 * w, y0 * h, x1 * w, y1 * h]
}

fn truth_pixels(b: &BoxCoords, size: [u32; 2]) -> [f64; 4] {
    match b {
        BoxCoords::Pixels(b) => b.map(f64::from),
        BoxCoords::Normalised(b) => pixels(*b, size),
    }
}

fn xywh([x0, y0, x1, y1]: [f64; 4]) -> [f64; 4] {
    [x0, y0, x1 - x0, y1 - y0]
}

/// Boxes of expressions, in pixels: prediction and truth.
pub(super) fn boxes(a: &Answered<'_>) -> (BoxRow, Option<BoxRow>) {
    let size = a.media().size;
    let predicted = BoxRow {
        id: a.id(),
        corners: match &a.row.predicted {
            Some(Predicted::Box(b)) => Some(pixels(*b, size)),
            _ => None,
        },
        split: None,
    };
    let truth = match &a.item.expected {
        Expected::Region(Some(b)) => Some(BoxRow {
            id: a.id(),
            corners: Some(truth_pixels(b, size)),
            split: Some(a.item.group.clone()).filter(|g| g != "all"),
        }),
        _ => None,
    };
    (predicted, truth)
}

/// Windows and clip scores: prediction and truth. `rated` fills clip scores of two seconds.
pub(super) fn windows(a: &Answered<'_>, rated: bool) -> (WindowPrediction, Option<WindowTruth>) {
    let name = || Some(sample_id(&a.item.media.name()));
    let duration = a.media().duration;
    let clips = (duration / QVHIGHLIGHTS_CLIP_SECONDS).ceil() as usize;
    let (mut found, mut saliency) = (Vec::new(), Vec::new());
    if let Some(Predicted::Moments {
        windows,
        saliency: curve,
        clip_seconds,
    }) = &a.row.predicted
    {
        found.extend(windows.iter().map(|w| PredictedWindow {
            span: [w[0], w[1]],
            score: Some(w[2]),
        }));
        saliency = resample(curve, *clip_seconds, QVHIGHLIGHTS_CLIP_SECONDS, clips);
    }
    if saliency.is_empty() {
        saliency = vec![0.0; clips.max(1)];
    }
    let prediction = WindowPrediction {
        qid: a.id(),
        query: a.item.ask.query.clone(),
        vid: name(),
        pred_relevant_windows: Some(found),
        pred_saliency_scores: rated.then_some(saliency),
    };
    let truth = match &a.item.expected {
        Expected::Temporal {
            spans: Some(spans),
            saliency,
        } => {
            let rated = saliency.as_ref().and_then(|s| {
                let three = |r: &Vec<f32>| <[f32; 3]>::try_from(r.as_slice()).ok();
                let scores: Option<Vec<[f64; 3]>> = s
                    .scores
                    .iter()
                    .map(|r| Some(three(r)?.map(f64::from)))
                    .collect();
                Some((s.clips.iter().map(|c| *c as usize).collect(), scores?))
            });
            let (clips, scores) = rated.unzip();
            Some(WindowTruth {
                qid: a.id(),
                query: a.item.ask.query.clone(),
                vid: name(),
                duration: Some(duration),
                relevant_windows: Some(spans.clone()),
                relevant_clip_ids: clips,
                saliency_scores: scores,
            })
        }
        _ => None,
    };
    (prediction, truth)
}

/// A curve of pieces of `from` seconds as one of `count` pieces of `to` seconds: the mean of the
/// pieces whose middle is in the new one, or the piece there is where that is none.
pub(super) fn resample(curve: &[f32], from: f64, to: f64, count: usize) -> Vec<f64> {
    if curve.is_empty() || !(from > 0.0 && to > 0.0) {
        return Vec::new();
    }
    (0..count)
        .map(|i| {
            let (start, end) = (i as f64 * to, (i + 1) as f64 * to);
            let first = (start / from - 0.5).ceil().max(0.0) as usize;
            let last = ((end / from - 0.5).ceil().max(0.0) as usize).min(curve.len());
            match curve.get(first..last) {
                Some(inside) if !inside.is_empty() => {
                    inside.iter().map(|v| f64::from(*v)).sum::<f64>() / inside.len() as f64
                }
                _ => {
                    let at = ((start + end) / 2.0 / from) as usize;
                    f64::from(curve[at.min(curve.len() - 1)])
                }
            }
        })
        .collect()
}

/// Ratings of all pieces: `[piece][rater]`, 0 where nobody rated.
pub(super) fn ratings(s: &Saliency, duration: f64) -> Vec<Vec<f32>> {
    let raters = s.scores.iter().map(Vec::len).max().unwrap_or(0);
    let last = s.clips.iter().max().map_or(0, |c| *c as usize + 1);
    let pieces = ((duration / s.clip_seconds).round().max(0.0) as usize).max(last);
    let mut all = vec![vec![0.0; raters]; pieces];
    for (clip, scores) in s.clips.iter().zip(&s.scores) {
        all[*clip as usize][..scores.len()].copy_from_slice(scores);
    }
    all
}

fn filled(b: [f64; 4], [height, width]: [usize; 2]) -> Mask {
    let inside = |v: usize, a: f64, b: f64| (a..b).contains(&(v as f64 + 0.5));
    Mask(ndarray::Array2::from_shape_fn((height, width), |(y, x)| {
        inside(x, b[0], b[2]) && inside(y, b[1], b[3])
    }))
}

/// A mask at another size, by its nearest pixels.
fn sized(rle: &Rle, [height, width]: [usize; 2]) -> Result<Rle> {
    if rle.size == [height, width] {
        return Ok(rle.clone());
    }
    let mask = rle.decode()?;
    let [h, w] = rle.size;
    let picked = ndarray::Array2::from_shape_fn((height, width), |(y, x)| {
        mask.0[[
            (2 * y + 1) * h / (2 * height),
            (2 * x + 1) * w / (2 * width),
        ]]
    });
    Ok(Rle::encode(&Mask(picked)))
}

/// Masks of one object: prediction and truth, one entry per frame of the clip.
pub(super) fn masks(a: &Answered<'_>) -> Result<(MaskTrack, Option<MaskTrack>)> {
    let media = a.media();
    let mut size = [media.size[1] as usize, media.size[0] as usize];
    let of_box = |b: [f32; 4], [height, width]: [usize; 2]| {
        let b = pixels(b, [width as u32, height as u32]);
        Rle::encode(&filled(b, [height, width]))
    };
    let track = |masks| MaskTrack {
        video: sample_id(&a.item.media.name()),
        object: a.id(),
        masks,
    };
    let mut truth = None;
    if let Expected::Mask(Some(frames)) = &a.item.expected {
        size = frames
            .iter()
            .find_map(|f| match &f.region {
                TrackRegion::Mask(rle) => Some(rle.size),
                _ => None,
            })
            .unwrap_or(size);
        let mut masks: Vec<Option<Rle>> = vec![None; media.frames];
        for f in frames {
            let at = a.item.frame_in_clip(f.at, media.fps);
            let Some(slot) = at.and_then(|i| masks.get_mut(i)) else {
                continue;
            };
            *slot = Some(match &f.region {
                TrackRegion::Mask(rle) => sized(rle, size)?,
                TrackRegion::Absent => Rle::encode(&filled([0.0; 4], size)),
                TrackRegion::Box(b) => {
                    let b = b.normalised(media.size[0], media.size[1]);
                    of_box(b.to_array(), size)
                }
            });
        }
        truth = masks.iter().any(Option::is_some).then(|| track(masks));
    }
    let mut predicted: Vec<Option<Rle>> = vec![None; media.frames];
    if let Some(Predicted::Track { masks, boxes }) = &a.row.predicted {
        if masks.is_empty() {
            for (slot, b) in predicted.iter_mut().zip(boxes) {
                *slot = b.map(|b| of_box(b, size));
            }
        } else {
            for (slot, mask) in predicted.iter_mut().zip(masks) {
                *slot = mask.as_ref().map(|m| sized(m, size)).transpose()?;
            }
        }
    }
    Ok((track(predicted), truth))
}

/// Boxes of one object on its annotated frames, `[x, y, width, height]` in pixels; on all frames,
/// and none of the truth, where nobody says what is true.
pub(super) fn box_track(a: &Answered<'_>) -> LasotSequence {
    let media = a.media();
    let mut track = LasotSequence {
        name: a.item.id.replace('/', "_"),
        truth: Vec::new(),
        predicted: Vec::new(),
        absent: Vec::new(),
    };
    let boxes: &[Option<[f32; 4]>] = match &a.row.predicted {
        Some(Predicted::Track { boxes, .. }) => boxes,
        _ => &[],
    };
    let answered = boxes.iter().any(Option::is_some);
    let place = |i: usize| match boxes.get(i).copied().flatten() {
        Some(b) => {
            let b = BoxXyxy::from(b).clamped().to_array();
            xywh(pixels(b, media.size))
        }
        None if answered => [0.0; 4],
        None => NOWHERE,
    };
    let Expected::Track(Some(frames)) = &a.item.expected else {
        track.predicted = (0..media.frames).map(place).collect();
        return track;
    };
    for f in frames {
        let at = a.item.frame_in_clip(f.at, media.fps);
        let Some(at) = at.filter(|i| *i < media.frames) else {
            continue;
        };
        track.predicted.push(place(at));
        let b = match &f.region {
            TrackRegion::Box(b) => Some(xywh(truth_pixels(b, media.size))),
            _ => None,
        };
        track.truth.push(b.unwrap_or([0.0; 4]));
        track.absent.push(b.is_none());
    }
    track
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_by_hand() {
        let curve = [1.0, 3.0, 5.0, 7.0];
        assert_eq!(resample(&curve, 1.0, 2.0, 2), [2.0, 6.0]);
        assert_eq!(resample(&curve, 1.0, 1.0, 4), [1.0, 3.0, 5.0, 7.0]);
        assert_eq!(resample(&curve[..2], 2.0, 1.0, 4), [1.0, 1.0, 3.0, 3.0]);
        // Past the end the last value stays.
        assert_eq!(resample(&curve, 1.0, 2.0, 3), [2.0, 6.0, 7.0]);
        assert!(resample(&[], 1.0, 2.0, 3).is_empty());
        assert!(resample(&curve, 0.0, 2.0, 3).is_empty());
    }

    #[test]
    fn ids_are_numbers_where_they_are() {
        assert_eq!(sample_id("12"), SampleId::Number(12));
        assert_eq!(sample_id("012"), SampleId::Name("012".into()));
        assert_eq!(sample_id("v:1"), SampleId::Name("v:1".into()));
    }

    #[test]
    fn masks_by_hand() {
        let mask = filled([1.0, 0.0, 3.0, 1.0], [2, 4]);
        assert_eq!(mask.0.iter().filter(|v| **v).count(), 2);
        let rle = Rle::encode(&mask);
        let twice = sized(&rle, [4, 8]).unwrap().decode().unwrap();
        assert_eq!(twice.0.iter().filter(|v| **v).count(), 8);
        assert!(twice.0[[1, 5]] && !twice.0[[2, 5]] && !twice.0[[0, 1]]);
        assert_eq!(sized(&rle, [2, 4]).unwrap(), rle);
    }
}
