//! The metrics against independent implementations written from their definitions.

use proptest::prelude::*;
use tpo_heads::mask::metric::track::{Got10kSequence, LasotSequence};
use tpo_heads::mask::metric::{
    BitMask, BoundaryTolerance, DecayBins, MetricStatistics, contour_accuracy, region_similarity,
};
use tpo_heads::temporal::metric::{highlight, iou, retrieval};

/// Average precision by its definition: recall grows by one window's share at every hit, weighted
/// by the best precision from there on.
fn naive_moment_ap(predicted: &[([f64; 2], f64)], truth: &[[f64; 2]], t: f64) -> f64 {
    let mut order: Vec<usize> = (0..predicted.len()).collect();
    order.sort_by(|a, b| predicted[*b].1.total_cmp(&predicted[*a].1).then(a.cmp(b)));
    let mut free = vec![true; truth.len()];
    let mut hits = Vec::new();
    for p in order {
        let overlap = |i: usize| iou(predicted[p].0, truth[i]);
        let mut best: Option<usize> = None;
        for (i, free) in free.iter().enumerate() {
            let better = |b: usize| overlap(i) > overlap(b);
            if *free && overlap(i) >= t && best.is_none_or(better) {
                best = Some(i);
            }
        }
        if let Some(i) = best {
            free[i] = false;
        }
        hits.push(best.is_some());
    }
    let precision =
        |rank: usize| hits[..=rank].iter().filter(|h| **h).count() as f64 / (rank + 1) as f64;
    let best_from = |r: usize| (r..hits.len()).map(precision).fold(0.0, f64::max);
    let ranks = (0..hits.len()).filter(|r| hits[*r]);
    ranks.map(best_from).sum::<f64>() / truth.len() as f64
}

/// The mean over positive clips of the best precision at their rank or below; scores are distinct.
fn naive_highlight_ap(scores: &[f64], positive: &[bool]) -> f64 {
    let n = positive.iter().filter(|p| **p).count();
    if n == 0 || n == positive.len() {
        return (n > 0) as u8 as f64;
    }
    let above = |t: f64, only: bool| {
        let clips = scores.iter().zip(positive);
        clips.filter(|(s, p)| **s >= t && (**p || !only)).count() as f64
    };
    let precision = |t: f64| above(t, true) / above(t, false);
    let best = |t: f64| {
        let lower = scores.iter().filter(|s| **s <= t);
        lower.map(|s| precision(*s)).fold(0.0, f64::max)
    };
    let positives = scores.iter().zip(positive).filter(|(_, p)| **p);
    positives.map(|(s, _)| best(*s)).sum::<f64>() / n as f64
}

/// F by comparing every pair of contour pixels.
fn naive_f(truth: &BitMask, result: &BitMask, radius: usize) -> f64 {
    let (h, w) = truth.size();
    let contour = |m: &BitMask| -> Vec<(i64, i64)> {
        let differs = |y: usize, x: usize, yy: usize, xx: usize| {
            yy < h && xx < w && m.get(y, x) != m.get(yy, xx)
        };
        (0..h * w)
            .map(|i| (i / w, i % w))
            .filter(|&(y, x)| {
                differs(y, x, y, x + 1) || differs(y, x, y + 1, x) || differs(y, x, y + 1, x + 1)
            })
            .map(|(y, x)| (y as i64, x as i64))
            .collect()
    };
    let (t, r) = (contour(truth), contour(result));
    if t.is_empty() || r.is_empty() {
        return (t.is_empty() && r.is_empty()) as u8 as f64;
    }
    let near = |from: &[(i64, i64)], to: &[(i64, i64)]| {
        let close = |a: &&(i64, i64)| {
            let distance = |b: &(i64, i64)| (a.0 - b.0).pow(2) + (a.1 - b.1).pow(2);
            to.iter().any(|b| distance(b) <= (radius * radius) as i64)
        };
        from.iter().filter(close).count() as f64 / from.len() as f64
    };
    let (p, r) = (near(&r, &t), near(&t, &r));
    if p + r == 0.0 {
        0.0
    } else {
        2.0 * p * r / (p + r)
    }
}

fn window() -> impl Strategy<Value = [f64; 2]> {
    (0.0..100.0f64, 0.1..60.0f64).prop_map(|(start, length)| [start, start + length])
}

/// Centre and radii of ellipses, in shares of the image: noise has contours everywhere.
fn blobs() -> impl Strategy<Value = Vec<(f64, f64, f64, f64)>> {
    proptest::collection::vec((0.0..1.0, 0.0..1.0, 0.02..0.4, 0.02..0.4), 0..4)
}

fn paint(h: usize, w: usize, blobs: &[(f64, f64, f64, f64)]) -> BitMask {
    BitMask::from_fn(h, w, |y, x| {
        blobs.iter().any(|(cy, cx, ry, rx)| {
            let dy = (y as f64 / h as f64 - cy) / ry;
            let dx = (x as f64 / w as f64 - cx) / rx;
            dy * dy + dx * dx < 1.0
        })
    })
}

/// A box, and the shift of the prediction from it.
type Shifted = (f64, f64, f64, f64, f64, f64);

fn shifted() -> impl Strategy<Value = Vec<Shifted>> {
    let side = || 1.0..30.0f64;
    let shift = || -9.0..9.0f64;
    let one = (1.0..50.0f64, 1.0..50.0f64, side(), side(), shift(), shift());
    proptest::collection::vec(one, 1..30)
}

proptest! {
    #[test]
    fn moment_average_precision(
        truth in proptest::collection::vec(window(), 1..6),
        mut predicted in proptest::collection::vec((window(), 0.0..1.0f64), 0..12),
        exact in proptest::collection::vec((0usize..6, 0usize..12), 0..4),
    ) {
        for (t, p) in exact {
            if let (Some(t), Some(p)) = (truth.get(t), predicted.get_mut(p)) {
                p.0 = *t;
            }
        }
        let thresholds = [0.3, 0.5, 0.75, 0.95];
        let got = retrieval::average_precision(&predicted, &truth, &thresholds);
        for (t, got) in thresholds.iter().zip(got) {
            let naive = naive_moment_ap(&predicted, &truth, *t);
            prop_assert!((got - naive).abs() < 1e-12, "{got} {naive}");
        }
        if let Some((first, _)) = predicted.first() {
            let best = truth.iter().map(|t| iou(*first, *t)).fold(0.0, f64::max);
            let got = retrieval::best_iou(*first, &truth).unwrap();
            prop_assert!((got - best).abs() < 1e-12);
        }
    }

    #[test]
    fn highlight_average_precision(
        clips in proptest::collection::vec(any::<bool>(), 1..60),
        seed in any::<u64>(),
    ) {
        // Distinct scores in a random order.
        let mut scores: Vec<f64> = (0..clips.len()).map(|i| i as f64 - 7.5).collect();
        let mut state = seed | 1;
        for i in (1..scores.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            scores.swap(i, (state % (i as u64 + 1)) as usize);
        }
        let got = highlight::average_precision(&scores, &clips);
        let naive = naive_highlight_ap(&scores, &clips);
        prop_assert!((got - naive).abs() < 1e-12, "{got} {naive}");
    }

    #[test]
    fn region_and_contour(
        h in 1usize..40,
        w in 1usize..90,
        a in blobs(),
        b in blobs(),
        radius in 0usize..6,
    ) {
        let (a, b) = (paint(h, w, &a), paint(h, w, &b));
        let count = |f: fn(bool, bool) -> bool| {
            (0..h * w).filter(|i| f(a.get(i / w, i % w), b.get(i / w, i % w))).count() as f64
        };
        let (inter, union) = (count(|a, b| a && b), count(|a, b| a || b));
        let j = if union == 0.0 { 1.0 } else { inter / union };
        prop_assert_eq!(region_similarity(&a, &b).unwrap(), j);
        let f = contour_accuracy(&a, &b, BoundaryTolerance::Pixels(radius)).unwrap().f;
        let naive = naive_f(&a, &b, radius);
        prop_assert!((f - naive).abs() < 1e-12, "{f} {naive}");
    }

    #[test]
    fn statistics_of_short_sequences(values in proptest::collection::vec(0.0..1.0f64, 1..255)) {
        let n = values.len();
        let s = MetricStatistics::new(&values, DecayBins::Official);
        prop_assert_eq!(s, MetricStatistics::new(&values, DecayBins::Exact));
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        prop_assert!((s.mean.unwrap() - mean(&values)).abs() < 1e-12);
        let recall = values.iter().filter(|v| **v > 0.5).count() as f64 / n as f64;
        prop_assert_eq!(s.recall, Some(recall));
        // Quarters end at i (n - 1) / 4, rounded with halves up (the code adds 1e-10).
        let at = |i: usize| (2 * i * (n - 1) + 4) / 8;
        let decay = mean(&values[..=at(1)]) - mean(&values[at(3)..]);
        prop_assert!((s.decay.unwrap() - decay).abs() < 1e-12, "{n}: {:?} {decay}", s.decay);
    }

    #[test]
    fn tracks(boxes in shifted()) {
        let truth: Vec<[f64; 4]> = boxes.iter().map(|b| [b.0, b.1, b.2, b.3]).collect();
        let predicted: Vec<[f64; 4]> =
            boxes.iter().map(|b| [b.0 + b.4, b.1 + b.5, b.2, b.3]).collect();
        let overlap = |i: usize| {
            let (_, _, w, h, dx, dy) = boxes[i];
            let inter = (w - dx.abs()).max(0.0) * (h - dy.abs()).max(0.0);
            inter / (2.0 * w * h - inter)
        };
        let n = boxes.len();
        let lasot = LasotSequence {
            name: "s".into(),
            truth: truth.clone(),
            predicted: predicted.clone(),
            absent: vec![],
        };
        let got = lasot.score().unwrap();
        for i in 0..n {
            let right = if i == 0 { 1.0 } else { overlap(i) };
            prop_assert!((got.overlap[i] - right).abs() < 1e-9);
        }
        let within = |i: &usize| *i == 0 || boxes[*i].4.hypot(boxes[*i].5) <= 5.0;
        let within = (0..n).filter(within).count() as f64 / n as f64;
        prop_assert!((got.precision_curve[5] - within).abs() < 1e-9);
        prop_assert!(got.success_curve.windows(2).all(|p| p[0] >= p[1]));
        prop_assert!(got.normalised_curve.windows(2).all(|p| p[0] <= p[1]));
        let got10k = Got10kSequence {
            name: "s".into(),
            truth,
            predicted,
            cover: vec![],
            resolution: None,
        };
        let ao = got10k.score().unwrap().ao;
        let right = (1..n).map(overlap).sum::<f64>() / (n - 1) as f64;
        let near = |ao: f64| (ao - right).abs() < 1e-9;
        prop_assert_eq!(n == 1, ao.is_none());
        prop_assert!(ao.is_none_or(near));
    }
}
