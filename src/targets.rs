//! Targets of the built-in heads from data-set annotations.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tpo_core::geometry::{Rle, TimeSpan};
use tpo_data::DataError;
use tpo_data::feed::{Targets, Truth, TruthFrame, TruthRegion, TruthTarget};
use tpo_data::schema::Saliency;
use tpo_heads::mask::{FrameMask, MaskTarget};
use tpo_heads::temporal::{SaliencyLabels, TemporalTarget};

use crate::features::feature_rows;

/// Target makers of the region, the temporal and the mask head. Add those of other heads with
/// [`Targets::with`].
///
/// `clip_seconds` is what one feature row of the temporal head covers
/// ([`TemporalHeadConfig::clip_seconds`](tpo_heads::temporal::TemporalHeadConfig)).
pub fn built_in_targets(clip_seconds: f64) -> Targets {
    Targets::region()
        .with("temporal", move |truth| {
            temporal_target(truth, clip_seconds)
        })
        .with("mask", mask_target)
}

fn fail(truth: &Truth, why: impl std::fmt::Display) -> DataError {
    DataError::Prepare {
        reason: format!("annotation of `{}`: {why}", truth.task),
    }
}

/// The target of the temporal head: rated pieces give the labels where there are ratings, the
/// first window where there are none (reference implementation). Ratings of pieces of another
/// length are those of the piece in which the middle of a feature row lies.
///
/// # Errors
/// [`DataError::Prepare`] for an annotation that is not of time spans, a clip shorter than one
/// feature row, or spans that are all behind the last row.
pub fn temporal_target(truth: &Truth, clip_seconds: f64) -> Result<TemporalTarget, DataError> {
    let TruthTarget::Moments {
        spans,
        saliency,
        duration,
    } = &truth.target
    else {
        return Err(fail(truth, "it has no time spans"));
    };
    let count = feature_rows(*duration, clip_seconds);
    if count == 0 {
        return Err(fail(
            truth,
            format!("the clip of {duration} s has no room for a feature of {clip_seconds} s"),
        ));
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
        return Err(fail(
            truth,
            format!("no span begins in the {length} s that have features"),
        ));
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

/// The target of the mask head: the object's masks on the sampled frames, and its box on the first
/// of them. A track of boxes (LaSOT) gives the box alone. Where nothing is said of the first sampled
/// frame the box of the question stands for it.
///
/// # Errors
/// [`DataError::Prepare`] for an annotation that is not a track, and an object that does not show
/// on the first sampled frame: that is where it is prompted.
pub fn mask_target(truth: &Truth) -> Result<MaskTarget, DataError> {
    let TruthTarget::Track(frames) = &truth.target else {
        return Err(fail(truth, "it is no track"));
    };
    let size = frames.iter().find_map(|f| match &f.region {
        TruthRegion::Mask(rle) => Some(rle.size),
        _ => None,
    });
    let mut target = MaskTarget::default();
    let mut last = None;
    for TruthFrame {
        sampled, region, ..
    } in frames
    {
        // Of several annotations of one sampled frame the first.
        if last == Some(*sampled) {
            continue;
        }
        last = Some(*sampled);
        let mask = match (region, size) {
            (TruthRegion::Mask(rle), _) => rle.clone(),
            (TruthRegion::Absent, Some(size)) => Rle::empty(size)?,
            (TruthRegion::Box(area), _) => {
                if *sampled == 0 {
                    target.area = Some(*area);
                }
                continue;
            }
            (TruthRegion::Absent, None) => continue,
        };
        target.masks.push(FrameMask {
            frame: *sampled,
            mask,
        });
    }
    if !frames.iter().any(|f| f.sampled == 0) {
        target.area = truth.prompt_box;
    }
    target
        .first_box(0)
        .map_err(|e| fail(truth, format!("the first sampled frame: {e}")))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::geometry::{BoxXyxy, Mask};

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
            assert!(matches!(error, DataError::Prepare { .. }));
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    fn frame(sampled: usize, region: TruthRegion) -> TruthFrame {
        TruthFrame {
            time: sampled as f64,
            sampled,
            region,
        }
    }

    #[test]
    fn tracks_of_masks_and_of_boxes() {
        let mut pixels = ndarray::Array2::from_elem((4, 6), false);
        pixels[[1, 2]] = true;
        pixels[[2, 3]] = true;
        let rle = Rle::encode(&Mask(pixels.clone()));
        let track = |frames| truth(TruthTarget::Track(frames));
        let found = mask_target(&track(vec![
            frame(0, TruthRegion::Mask(rle.clone())),
            frame(1, TruthRegion::Absent),
            // Two annotations of one sampled frame.
            frame(3, TruthRegion::Mask(rle.clone())),
            frame(3, TruthRegion::Absent),
        ]))
        .unwrap();
        let at: Vec<usize> = found.masks.iter().map(|m| m.frame).collect();
        assert_eq!((at, found.area), (vec![0, 1, 3], None));
        let hidden = found.masks[1].mask.decode().unwrap();
        assert_eq!(hidden.size(), (4, 6));
        assert!(hidden.0.iter().all(|v| !v));
        assert_eq!(found.masks[2].mask.decode().unwrap().0, pixels);

        // As LaSOT has them: boxes, of which the first is what the head learns.
        let area = BoxXyxy::from([0.1, 0.2, 0.3, 0.4]);
        let later = BoxXyxy::from([0.5, 0.5, 0.6, 0.6]);
        let found = mask_target(&track(vec![
            frame(0, TruthRegion::Box(area)),
            frame(1, TruthRegion::Box(later)),
            frame(2, TruthRegion::Absent),
        ]))
        .unwrap();
        assert_eq!(found, MaskTarget::from_box(area));

        // Not there when it is prompted.
        for bad in [
            vec![frame(1, TruthRegion::Mask(rle.clone()))],
            vec![
                frame(0, TruthRegion::Absent),
                frame(1, TruthRegion::Mask(rle)),
            ],
            vec![frame(1, TruthRegion::Box(area))],
        ] {
            let error = mask_target(&track(bad)).unwrap_err();
            assert!(matches!(error, DataError::Prepare { .. }), "{error}");
        }
        let asked = Truth {
            prompt_box: Some(area),
            ..track(vec![frame(1, TruthRegion::Box(later))])
        };
        assert_eq!(mask_target(&asked).unwrap(), MaskTarget::from_box(area));
        assert!(mask_target(&truth(TruthTarget::Box(area))).is_err());
    }
}
