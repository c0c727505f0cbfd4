//! Targets of the built-in heads from data-set annotations.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tpo_data::DataError;
use tpo_data::feed::{Targets, Truth, TruthTarget};
use tpo_heads::temporal::{SaliencyLabels, TemporalTarget};

/// Target makers of the region and the temporal head.
///
/// `clips` tells from the length of a clip in seconds how many feature rows the temporal head
/// gets for it; its saliency labels must be as many.
pub fn built_in_targets(clips: impl Fn(f64) -> usize + Send + Sync + 'static) -> Targets {
    Targets::region().with("temporal", move |truth| temporal_target(truth, &clips))
}

/// The target of the temporal head: rated pieces give the labels where there are ratings, the
/// first window where there are none (reference implementation).
///
/// # Errors
/// [`DataError::Prepare`] for an annotation that is not of time spans.
pub fn temporal_target(
    truth: &Truth,
    clips: &(impl Fn(f64) -> usize + ?Sized),
) -> Result<TemporalTarget, DataError> {
    let TruthTarget::Moments {
        spans,
        saliency,
        duration,
    } = &truth.target
    else {
        return Err(DataError::Prepare {
            reason: format!("annotation of `{}` has no time spans", truth.task),
        });
    };
    let count = clips(*duration);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(truth.seed);
    let labels = match (saliency, spans.first()) {
        (Some(s), _) => {
            let ids: Vec<usize> = s.clips.iter().map(|c| *c as usize).collect();
            SaliencyLabels::from_ratings(&ids, &s.scores, count, &mut rng)
        }
        (None, Some(first)) => SaliencyLabels::from_window(*first, *duration, count, &mut rng),
        (None, None) => SaliencyLabels::default(),
    };
    Ok(TemporalTarget::new(spans.clone(), labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::geometry::TimeSpan;
    use tpo_data::schema::Saliency;

    fn truth(saliency: Option<Saliency>) -> Truth {
        Truth {
            task: "temporal".into(),
            query: None,
            prompt_box: None,
            target: TruthTarget::Moments {
                spans: vec![TimeSpan {
                    start: 2.0,
                    end: 4.0,
                }],
                saliency,
                duration: 10.0,
            },
            seed: 3,
        }
    }

    #[test]
    fn windows_and_ratings_by_hand() {
        let one_a_second = |seconds: f64| seconds as usize;
        let plain = temporal_target(&truth(None), &one_a_second).unwrap();
        let inside: Vec<f32> = (0..10)
            .map(|i| f32::from(u8::from(i == 2 || i == 3)))
            .collect();
        assert_eq!(plain.saliency.scores, inside);
        let again = temporal_target(&truth(None), &one_a_second).unwrap();
        assert_eq!(plain, again);
        let rated = Saliency {
            clip_seconds: 2.0,
            clips: vec![1],
            scores: vec![vec![4.0, 2.0, 3.0]],
        };
        let rated = temporal_target(&truth(Some(rated)), &|s: f64| (s / 2.0) as usize).unwrap();
        assert_eq!(rated.saliency.scores, [0.0, 9.0, 0.0, 0.0, 0.0]);
        let other = Truth {
            target: TruthTarget::Value(serde_json::json!(1)),
            ..truth(None)
        };
        assert!(temporal_target(&other, &one_a_second).is_err());
    }
}
