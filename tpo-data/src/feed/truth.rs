//! Annotations in the terms of the clip the model sees.

use tpo_core::geometry::{BoxXyxy, TimeSpan};
use tpo_core::truth::{Saliency, Truth, TruthFrame, TruthPlace, TruthTarget};

use super::view::View;
use crate::schema::{Annotation, FramePosition, Target, TrackRegion};
use crate::{DataError, VideoInfo};

/// Puts an annotation into a clip. `times` are those of the sampled frames in seconds of the
/// file; of a track the annotations nearest to them are kept.
///
/// # Errors
/// [`DataError::Prepare`] when nothing of it is left in the clip, or a box or mask does not
/// fit the picture; [`DataError::Core`] for a mask that cannot be read.
pub fn place_truth(
    annotation: &Annotation,
    info: &VideoInfo,
    view: &View,
    times: &[f64],
    seed: u64,
) -> Result<Truth, DataError> {
    let (width, height) = (info.width as u32, info.height as u32);
    let fail = |why: String| DataError::Prepare {
        reason: format!("annotation of `{}`: {why}", annotation.task),
    };
    let place = |b: &crate::schema::BoxCoords| -> Result<BoxXyxy, DataError> {
        let b = b.normalised(width, height).check(&annotation.task)?;
        Ok(view.map_box(b))
    };
    let prompt_box = annotation.prompt_box.as_ref().map(place).transpose()?;
    let (start, end) = view.seconds(info);
    let target = match &annotation.target {
        Target::Value(value) => TruthTarget::Value(value.clone()),
        Target::Box(b) => TruthTarget::Box(place(b)?),
        Target::Spans { spans, saliency } => {
            let spans: Vec<TimeSpan> = spans
                .iter()
                .map(|[a, b]| TimeSpan {
                    start: a.max(start) - start,
                    end: b.min(end) - start,
                })
                .filter(|s| s.end > s.start)
                .collect();
            if spans.is_empty() {
                return Err(fail(format!("no span inside the clip [{start}, {end}] s")));
            }
            let saliency = saliency
                .as_ref()
                .map(|s| cut_saliency(s, start, end))
                .transpose()
                .map_err(fail)?;
            TruthTarget::Moments {
                spans,
                saliency,
                duration: end - start,
            }
        }
        Target::Track(frames) => {
            let mut kept = Vec::new();
            let seconds = |at: FramePosition| match at {
                FramePosition::Time(t) => t,
                FramePosition::Frame(n) => info
                    .timestamps
                    .get(n as usize)
                    .copied()
                    .unwrap_or(n as f64 / info.fps),
            };
            let at: Vec<f64> = frames.iter().map(|f| seconds(f.at)).collect();
            for i in nearest_annotations(&at, times) {
                let region = match &frames[i].region {
                    TrackRegion::Absent => TruthPlace::Absent,
                    TrackRegion::Box(b) => TruthPlace::Box(place(b)?),
                    TrackRegion::Mask(rle) => {
                        TruthPlace::Mask(view.map_mask(rle, [info.width, info.height])?)
                    }
                };
                kept.push(TruthFrame {
                    time: (at[i] - start).max(0.0),
                    sampled: nearest(times, at[i]),
                    place: region,
                });
            }
            if kept.iter().all(|f| f.place == TruthPlace::Absent) {
                return Err(fail("the object is on none of the sampled frames".into()));
            }
            TruthTarget::Track(kept)
        }
    };
    Ok(Truth {
        task: annotation.task.clone(),
        query: annotation.query.clone(),
        prompt_box,
        target,
        seed,
    })
}

/// Index of the value nearest to `t`; the first of equally near ones, 0 without values.
fn nearest(values: &[f64], t: f64) -> usize {
    let distance = |i: &usize| (values[*i] - t).abs();
    (0..values.len())
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .unwrap_or(0)
}

/// For every sampled time the nearest annotated one, each once, in order. An annotation further
/// away than half the distance between neighbouring samples, and than half a second (annotations
/// come once or a few times a second), says nothing about a sample.
pub(super) fn nearest_annotations(annotated: &[f64], times: &[f64]) -> Vec<usize> {
    let gap = times
        .windows(2)
        .map(|w| w[1] - w[0])
        .filter(|d| *d > 0.0)
        .fold(f64::INFINITY, f64::min);
    // A still, or one sampled frame, takes what is nearest however far.
    let reach = if gap.is_finite() {
        (gap / 2.0).max(0.5)
    } else {
        f64::INFINITY
    };
    let mut kept: Vec<usize> = times
        .iter()
        .filter(|_| !annotated.is_empty())
        .map(|t| (nearest(annotated, *t), *t))
        .filter(|(i, t)| (annotated[*i] - t).abs() <= reach)
        .map(|(i, _)| i)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// The ratings of `[start, end]` seconds of a file, pieces counted from `start`.
///
/// # Errors
/// A sentence when `start` lies inside a piece.
pub fn cut_saliency(saliency: &Saliency, start: f64, end: f64) -> Result<Saliency, String> {
    let skipped = (start / saliency.clip_seconds).round();
    if (skipped * saliency.clip_seconds - start).abs() > 1e-6 {
        return Err(format!(
            "the clip starts at {start} s, inside a rated piece of {} s",
            saliency.clip_seconds
        ));
    }
    let last = (end / saliency.clip_seconds).ceil();
    let inside = |c: &u32| f64::from(*c) >= skipped && f64::from(*c) < last;
    let rated = || {
        saliency
            .clips
            .iter()
            .zip(&saliency.scores)
            .filter(|(c, _)| inside(c))
    };
    Ok(Saliency {
        clip_seconds: saliency.clip_seconds,
        clips: rated().map(|(c, _)| c - skipped as u32).collect(),
        scores: rated().map(|(_, s)| s.clone()).collect(),
    })
}
