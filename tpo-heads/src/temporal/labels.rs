//! Training labels from annotations, as CG-DETR's dataset makes them.

use rand::Rng;
use rand::seq::index::sample;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::TimeSpan;

/// Saliency of the clips of a video for one query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SaliencyLabels {
    /// One label per clip: 0 outside the moment, otherwise 1 or the sum of the raters (up to 12
    /// in QVHighlights).
    pub scores: Vec<f32>,
    /// Clips that must be more salient …
    pub positive: Vec<usize>,
    /// … than these, pair by pair.
    pub negative: Vec<usize>,
}

impl SaliencyLabels {
    /// From one window in seconds, for data without ratings (Charades-STA, TACoS, ActivityNet):
    /// clips inside are 1, and two random clips inside are paired with two outside. The last clip is
    /// the one before that in which the window ends (reference implementation), so a window within
    /// one clip is the clip before it, and one that ends within a clip leaves that out.
    ///
    /// A window that begins after the last clip counts as the last clip. Without two clips
    /// outside, the pairs are of equals and say nothing.
    pub fn from_window(
        window: TimeSpan,
        duration: f64,
        clips: usize,
        rng: &mut (impl Rng + ?Sized),
    ) -> Self {
        /// Pairs per sample (reference implementation).
        const PAIRS: usize = 2;
        if clips == 0 {
            return Self::default();
        }
        let clip = duration / clips as f64;
        let last = (((window.end / clip) as usize).min(clips)).saturating_sub(1);
        let first = ((window.start / clip) as usize).min(last);
        let mut scores = vec![0.0; clips];
        scores[first..=last].fill(1.0);
        let positive: Vec<usize> = if first == last {
            vec![first; PAIRS]
        } else {
            sample(rng, last - first + 1, PAIRS)
                .into_iter()
                .map(|i| first + i)
                .collect()
        };
        let outside: Vec<usize> = (0..first).chain(last + 1..clips).collect();
        let negative = if outside.len() < PAIRS {
            positive.clone()
        } else {
            sample(rng, outside.len(), PAIRS)
                .into_iter()
                .map(|i| outside[i])
                .collect()
        };
        Self {
            scores,
            positive,
            negative,
        }
    }

    /// From the ratings of several people for the relevant clips (QVHighlights): a clip's label is
    /// their sum. The best relevant clip is paired with the worst, and a random relevant clip with
    /// a random one outside.
    ///
    /// `clip_ids` and `ratings` go together; what is only in one of them is left out. Clips after
    /// the last one of the video have no label and stand for the last one in pairs.
    pub fn from_ratings(
        clip_ids: &[usize],
        ratings: &[Vec<f32>],
        clips: usize,
        rng: &mut (impl Rng + ?Sized),
    ) -> Self {
        if clips == 0 {
            return Self::default();
        }
        let mut scores = vec![0.0; clips];
        let mut ranked: Vec<(usize, f32)> = clip_ids
            .iter()
            .zip(ratings)
            .map(|(&clip, ratings)| (clip, ratings.iter().sum()))
            .collect();
        for &(clip, score) in ranked.iter().filter(|(clip, _)| *clip < clips) {
            scores[clip] = score;
        }
        if ranked.is_empty() {
            return Self {
                scores,
                ..Self::default()
            };
        }
        let any = ranked[sample(rng, ranked.len(), 1).index(0)].0;
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (worst, best) = (ranked[0].0, ranked[ranked.len() - 1].0);
        let outside: Vec<usize> = (0..clips).filter(|c| !clip_ids.contains(c)).collect();
        let (easy_positive, easy_negative) = if outside.is_empty() {
            (best, worst)
        } else {
            (any, outside[sample(rng, outside.len(), 1).index(0)])
        };
        let inside = |clip: usize| clip.min(clips - 1);
        Self {
            scores,
            positive: vec![inside(best), inside(easy_positive)],
            negative: vec![inside(worst), easy_negative],
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    fn rng() -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(3)
    }

    fn span(start: f64, end: f64) -> TimeSpan {
        TimeSpan { start, end }
    }

    #[test]
    fn a_window_by_hand() {
        // 5 clips of 2 s; [2, 6] covers clips 1 and 2.
        let labels = SaliencyLabels::from_window(span(2.0, 6.0), 10.0, 5, &mut rng());
        assert_eq!(labels.scores, [0.0, 1.0, 1.0, 0.0, 0.0]);
        let mut positive = labels.positive.clone();
        positive.sort_unstable();
        assert_eq!(positive, [1, 2]);
        assert!(labels.negative.iter().all(|n| [0, 3, 4].contains(n)));
        assert_ne!(labels.negative[0], labels.negative[1]);
    }

    #[test]
    fn windows_at_the_edges() {
        let all = SaliencyLabels::from_window(span(0.0, 10.0), 10.0, 3, &mut rng());
        assert_eq!(all.scores, [1.0; 3]);
        assert_eq!(all.positive, all.negative, "nothing is outside");
        let behind = SaliencyLabels::from_window(span(50.0, 60.0), 10.0, 3, &mut rng());
        assert_eq!(behind.scores, [0.0, 0.0, 1.0]);
        assert_eq!(behind.positive, [2, 2]);
        let none = SaliencyLabels::from_window(span(0.0, 1.0), 10.0, 0, &mut rng());
        assert_eq!(none, SaliencyLabels::default());
        // A duration of zero gives no clip length to divide by.
        let zero = SaliencyLabels::from_window(span(0.0, 1.0), 0.0, 2, &mut rng());
        assert_eq!(zero.scores.len(), 2);
    }

    #[test]
    fn ratings_by_hand() {
        let ratings = vec![
            vec![4.0, 4.0, 3.0],
            vec![1.0, 0.0, 0.0],
            vec![2.0, 2.0, 2.0],
        ];
        let labels = SaliencyLabels::from_ratings(&[1, 2, 9], &ratings, 4, &mut rng());
        assert_eq!(labels.scores, [0.0, 11.0, 1.0, 0.0]);
        assert_eq!((labels.positive[0], labels.negative[0]), (1, 2));
        assert!([1, 2, 3].contains(&labels.positive[1]));
        assert!([0, 3].contains(&labels.negative[1]));
        let empty = SaliencyLabels::from_ratings(&[], &[], 2, &mut rng());
        assert_eq!(empty.scores, [0.0, 0.0]);
        assert!(empty.positive.is_empty());
    }
}
