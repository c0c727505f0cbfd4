//! Ground truth of one temporal task token.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::geometry::TimeSpan;
use tpo_core::head::HeadMetric;
use tpo_core::truth::{Saliency, Truth, TruthTarget};

use super::criterion::BatchTargets;
use super::decode::TemporalPrediction;
use super::labels::SaliencyLabels;
use super::metric::retrieval::best_iou;
use crate::HeadsError;

/// Highest saliency label that is a label (the sum of three raters is at most 12).
const MAX_SALIENCY: f32 = 100.0;

/// Where the query happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MomentWindows {
    /// In seconds.
    Seconds(Vec<TimeSpan>),
    /// (centre, width), 0–1 of the featured length of the video.
    Normalised(Vec<[f32; 2]>),
}

/// Ground truth of one temporal task token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemporalTarget {
    /// Where the query happens; may be empty.
    pub windows: MomentWindows,
    /// Saliency per clip.
    pub saliency: SaliencyLabels,
    /// Relevance per clip if it differs from `saliency.scores`; above zero is relevant.
    pub relevant: Option<Vec<f32>>,
}

impl TemporalTarget {
    /// A target in seconds.
    pub fn new(windows: Vec<TimeSpan>, saliency: SaliencyLabels) -> Self {
        Self {
            windows: MomentWindows::Seconds(windows),
            saliency,
            relevant: None,
        }
    }

    /// Spans (centre, width) of a video of `clips` clips of `clip_seconds`.
    ///
    /// # Errors
    /// [`CoreError::InvalidSpan`] for a span that is reversed, negative or not finite.
    pub fn spans(&self, clips: usize, clip_seconds: f64) -> Result<Vec<[f32; 2]>, CoreError> {
        match &self.windows {
            MomentWindows::Seconds(windows) => {
                let length = clips as f64 * clip_seconds;
                windows
                    .iter()
                    .map(|w| {
                        let w = TimeSpan::new(w.start, w.end)?;
                        let centre = (w.start + w.end) / 2.0 / length;
                        Ok([centre as f32, (w.duration() / length) as f32])
                    })
                    .collect()
            }
            MomentWindows::Normalised(spans) => {
                for s in spans {
                    let (c, w) = (f64::from(s[0]), f64::from(s[1]));
                    let usable = c.is_finite() && w.is_finite() && w >= 0.0;
                    if !usable {
                        return Err(CoreError::InvalidSpan {
                            start: c - w / 2.0,
                            end: c + w / 2.0,
                            why: "centre and width must be finite and the width not negative",
                        });
                    }
                }
                Ok(spans.clone())
            }
        }
    }
}

/// `r1@0.5`, `r1@0.7` and `miou` of the first predicted spans (moment retrieval): of several
/// windows the best-matching one counts, no span is a miss, and targets without a window are left
/// out.
pub fn moment_metrics(
    predictions: &[TemporalPrediction],
    targets: &[TemporalTarget],
) -> Vec<HeadMetric> {
    let mut ious = Vec::new();
    for (prediction, target) in predictions.iter().zip(targets) {
        let length = prediction.saliency.len() as f64 * prediction.clip_seconds;
        let windows: Vec<[f64; 2]> = match &target.windows {
            MomentWindows::Seconds(windows) => windows.iter().map(|w| [w.start, w.end]).collect(),
            MomentWindows::Normalised(spans) => spans
                .iter()
                .map(|s| {
                    let (centre, half) = (f64::from(s[0]), f64::from(s[1]) / 2.0);
                    [(centre - half) * length, (centre + half) * length]
                })
                .collect(),
        };
        if windows.is_empty() {
            continue;
        }
        let best = prediction.best().and_then(|found| {
            let found = [found.span.start, found.span.end];
            best_iou(found, &windows)
        });
        ious.push(best.unwrap_or(0.0));
    }
    let recall = |threshold: f64| ious.iter().map(move |iou| *iou >= threshold);
    [
        HeadMetric::share_of("r1@0.5", recall(0.5)),
        HeadMetric::share_of("r1@0.7", recall(0.7)),
        HeadMetric::mean_of("miou", ious.iter().copied()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl BatchTargets {
    /// Checks the targets of a batch and pads them to the longest video.
    ///
    /// `videos[i]` names the video of sample `i`; samples of equal names are never each other's
    /// negatives.
    ///
    /// # Errors
    /// [`HeadsError::Shape`] when labels do not fit the number of clips,
    /// [`CoreError::InvalidSpan`] for an unusable window.
    pub fn new<V: PartialEq>(
        targets: &[TemporalTarget],
        clips: &[usize],
        clip_seconds: f64,
        videos: &[V],
    ) -> Result<Self, HeadsError> {
        let shape = |what, expected: String, found: usize| HeadsError::Shape {
            place: "temporal target",
            what,
            expected,
            found: vec![found],
        };
        if targets.len() != clips.len() || videos.len() != clips.len() {
            let expected = format!("one per sample ({})", clips.len());
            return Err(shape("targets", expected, targets.len()));
        }
        let width = clips.iter().copied().max().unwrap_or(0);
        let mut out = Self::default();
        for (target, &n) in targets.iter().zip(clips) {
            let labels = &target.saliency;
            let relevant = target.relevant.as_ref().unwrap_or(&labels.scores);
            // Rows padded to the batch are accepted.
            let fits = |row: &[f32]| (n..=width).contains(&row.len());
            if !fits(&labels.scores) || !fits(relevant) {
                let expected = format!("{n} labels, one per clip");
                return Err(shape("saliency", expected, labels.scores.len()));
            }
            let usable = |s: &f32| s.is_finite() && (0.0..=MAX_SALIENCY).contains(s);
            if !labels.scores.iter().chain(relevant).all(usable) {
                let expected = format!("numbers from 0 to {MAX_SALIENCY}");
                return Err(shape("saliency", expected, labels.scores.len()));
            }
            if labels.positive.len() != labels.negative.len() {
                let expected = format!("{} clips, as `positive`", labels.positive.len());
                return Err(shape("negative", expected, labels.negative.len()));
            }
            let pairs: Vec<(usize, usize)> = labels
                .positive
                .iter()
                .copied()
                .zip(labels.negative.iter().copied())
                .collect();
            if let Some(bad) = pairs.iter().flat_map(|p| [p.0, p.1]).find(|c| *c >= width) {
                let expected = format!("clips below {n}");
                return Err(shape("positive and negative", expected, bad));
            }
            let mut scores = labels.scores.clone();
            scores.resize(width, 0.0);
            let mut flags: Vec<bool> = relevant.iter().map(|r| *r > 0.0).collect();
            flags.resize(width, false);
            out.spans.push(target.spans(n, clip_seconds)?);
            out.saliency.push(scores);
            out.relevant.push(flags);
            out.pairs.push(pairs);
        }
        let batch = videos.len();
        out.real_negative = (0..batch)
            .map(|b| videos[b] != videos[(b + 1) % batch])
            .collect();
        Ok(out)
    }
}

/// Number of rows the temporal head gets for a clip of `duration` seconds: whole pieces of
/// `clip_seconds`; rounding of the division does not lose one.
pub fn feature_rows(duration: f64, clip_seconds: f64) -> usize {
    // Saturates on infinities, 0 for what is no number.
    (duration * (1.0 / clip_seconds) + 1e-6) as usize
}

/// The target of the temporal head: rated pieces give the labels where there are ratings, the
/// first window where there are none (reference implementation). Ratings of pieces of another
/// length are those of the piece in which the middle of a feature row lies.
///
/// # Errors
/// [`CoreError::Truth`] for an annotation that is not of time spans, a clip shorter than one
/// feature row, or spans that are all after the last row.
pub fn temporal_target(truth: &Truth, clip_seconds: f64) -> Result<TemporalTarget, CoreError> {
    let TruthTarget::Moments {
        spans,
        saliency,
        duration,
    } = &truth.target
    else {
        return Err(truth.unusable("it has no time spans"));
    };
    let count = feature_rows(*duration, clip_seconds);
    if count == 0 {
        return Err(truth.unusable(format!(
            "the clip of {duration} s has no room for a feature of {clip_seconds} s"
        )));
    }
    let length = count as f64 * clip_seconds;
    let spans: Vec<TimeSpan> = spans
        .iter()
        .filter(|s| s.start < length)
        .map(|s| TimeSpan {
            start: s.start,
            end: s.end.min(length),
        })
        .collect();
    let Some(first) = spans.first() else {
        return Err(truth.unusable(format!(
            "no span begins in the {length} s that have features"
        )));
    };
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(truth.seed);
    let labels = match saliency {
        Some(s) => {
            let (ids, ratings) = ratings(s, count, clip_seconds);
            SaliencyLabels::from_ratings(&ids, &ratings, count, &mut rng)
        }
        None => SaliencyLabels::from_window(*first, length, count, &mut rng),
    };
    Ok(TemporalTarget::new(spans, labels))
}

/// Rated feature rows and their ratings.
fn ratings(saliency: &Saliency, count: usize, clip_seconds: f64) -> (Vec<usize>, Vec<Vec<f32>>) {
    let rated = saliency.clips.iter().zip(&saliency.scores);
    if (saliency.clip_seconds - clip_seconds).abs() < 1e-6 {
        return rated.map(|(c, s)| (*c as usize, s.clone())).unzip();
    }
    (0..count)
        .filter_map(|row| {
            let middle = (row as f64 + 0.5) * clip_seconds;
            let piece = (middle / saliency.clip_seconds) as u32;
            let at = saliency.clips.iter().position(|c| *c == piece)?;
            Some((row, saliency.scores.get(at)?.clone()))
        })
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::geometry::ScoredSpan;

    fn target(scores: Vec<f32>) -> TemporalTarget {
        let window = TimeSpan {
            start: 2.0,
            end: 6.0,
        };
        TemporalTarget::new(
            vec![window],
            SaliencyLabels {
                scores,
                positive: vec![1],
                negative: vec![0],
            },
        )
    }

    #[test]
    fn spans_and_negatives_by_hand() {
        let two = [target(vec![0.0, 1.0]), target(vec![0.0, 1.0, 1.0, 0.0])];
        let batch = BatchTargets::new(&two, &[2, 4], 4.0, &["a", "b"]).unwrap();
        // 8 s and 16 s.
        assert_eq!(batch.spans, [vec![[0.5, 0.5]], vec![[0.25, 0.25]]]);
        assert_eq!(batch.saliency[0], [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.relevant[0], [false, true, false, false]);
        assert_eq!(batch.real_negative, [true, true]);
        let same = BatchTargets::new(&two, &[2, 4], 4.0, &["a", "a"]).unwrap();
        assert_eq!(same.real_negative, [false, false]);
    }

    #[test]
    fn moments_by_hand() {
        let predicted = |spans: &[[f64; 2]]| TemporalPrediction {
            spans: spans
                .iter()
                .map(|s| ScoredSpan {
                    span: TimeSpan {
                        start: s[0],
                        end: s[1],
                    },
                    score: 0.5,
                })
                .collect(),
            saliency: vec![0.0; 10],
            clip_seconds: 1.0,
            duration: 10.0,
        };
        let truth = |windows: Vec<[f32; 2]>| TemporalTarget {
            windows: MomentWindows::Normalised(windows),
            ..target(vec![0.0; 10])
        };
        // 2-6 s against 2-6, against the better of 0-1 and 4-8, and no answer; one without truth.
        let metrics = moment_metrics(
            &[
                predicted(&[[2.0, 6.0], [0.0, 1.0]]),
                predicted(&[[2.0, 6.0]]),
                predicted(&[]),
                predicted(&[[2.0, 6.0]]),
            ],
            &[
                truth(vec![[0.4, 0.4]]),
                truth(vec![[0.05, 0.1], [0.6, 0.4]]),
                truth(vec![[0.5, 0.2]]),
                truth(vec![]),
            ],
        );
        let expected = [("r1@0.5", 1.0), ("r1@0.7", 1.0), ("miou", 1.0 + 2.0 / 6.0)];
        assert_eq!(metrics.len(), 3);
        for (metric, (name, sum)) in metrics.iter().zip(expected) {
            assert_eq!((metric.name.as_str(), metric.count), (name, 3));
            assert!((metric.mean - sum / 3.0).abs() < 1e-6, "{metric:?}");
        }
        assert!(moment_metrics(&[], &[]).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let new = |t: TemporalTarget| BatchTargets::new(&[t], &[2], 1.0, &[0]);
        assert!(new(target(vec![0.0, 1.0])).is_ok());
        assert!(new(target(vec![0.0])).is_err());
        assert!(new(target(vec![0.0, f32::NAN])).is_err());
        assert!(new(target(vec![0.0, 101.0])).is_err());
        let mut far = target(vec![0.0, 1.0]);
        far.saliency.positive = vec![2];
        assert!(new(far).is_err());
        let mut odd = target(vec![0.0, 1.0]);
        odd.saliency.negative.clear();
        assert!(new(odd).is_err());
        let mut reversed = target(vec![0.0, 1.0]);
        reversed.windows = MomentWindows::Normalised(vec![[0.5, -0.1]]);
        assert!(new(reversed).is_err());
    }

    fn truth(target: TruthTarget) -> Truth {
        Truth {
            task: "temporal".into(),
            query: None,
            prompt_box: None,
            target,
            seed: 3,
        }
    }

    fn moments(spans: &[[f64; 2]], saliency: Option<Saliency>, duration: f64) -> Truth {
        truth(TruthTarget::Moments {
            spans: spans
                .iter()
                .map(|[start, end]| TimeSpan {
                    start: *start,
                    end: *end,
                })
                .collect(),
            saliency,
            duration,
        })
    }

    #[test]
    fn windows_and_ratings_by_hand() {
        let plain = moments(&[[2.0, 4.0]], None, 10.0);
        let found = temporal_target(&plain, 1.0).unwrap();
        let inside: Vec<f32> = (0..10)
            .map(|i| f32::from(u8::from(i == 2 || i == 3)))
            .collect();
        assert_eq!(found.saliency.scores, inside);
        assert_eq!(found, temporal_target(&plain, 1.0).unwrap());
        let rated = || Saliency {
            clip_seconds: 2.0,
            clips: vec![1],
            scores: vec![vec![4.0, 2.0, 3.0]],
        };
        let rated = moments(&[[2.0, 4.0]], Some(rated()), 10.0);
        let found = temporal_target(&rated, 2.0).unwrap();
        assert_eq!(found.saliency.scores, [0.0, 9.0, 0.0, 0.0, 0.0]);
        // Pieces of two seconds, rows of one: two rows have the rating.
        let found = temporal_target(&rated, 1.0).unwrap();
        let twice: Vec<f32> = inside.iter().map(|v| 9.0 * v).collect();
        assert_eq!(found.saliency.scores, twice);
    }

    #[test]
    fn spans_end_where_the_features_end() {
        let found = temporal_target(&moments(&[[9.0, 10.4]], None, 10.4), 1.0).unwrap();
        assert_eq!(found.spans(10, 1.0).unwrap(), [[0.95, 0.1]]);
        for (bad, part) in [
            (moments(&[[10.1, 10.4]], None, 10.4), "no span begins"),
            (moments(&[[0.1, 0.4]], None, 0.4), "no room"),
            (
                truth(TruthTarget::Value(serde_json::json!(1))),
                "no time spans",
            ),
        ] {
            let error = temporal_target(&bad, 1.0).unwrap_err();
            assert!(matches!(error, CoreError::Truth { .. }));
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
