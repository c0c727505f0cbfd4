//! Ranking of predicted spans.

use burn::config::Config;
use tpo_core::geometry::{ScoredSpan, TimeSpan};

use super::temporal_nms;

/// How spans are made presentable.
#[derive(Config, Debug, PartialEq)]
pub struct DecodeConfig {
    /// Starts and ends are rounded to multiples of so many seconds, half to even; `None` keeps
    /// four decimals (reference: 1 s).
    #[config(default = "Some(1.0)")]
    pub round_seconds: Option<f64>,
    /// Spans that overlap a better one by more than this IoU are dropped; `None` keeps all
    /// (reference).
    pub nms: Option<f64>,
    /// At most so many spans.
    #[config(default = 100)]
    pub max_spans: usize,
    /// Spans below this probability are dropped. With a threshold the answer may be empty.
    #[config(default = 0.0)]
    pub min_score: f64,
}

/// Ranks predicted spans.
///
/// `spans` are (centre, width), 0–1, with their foreground probability. They become seconds,
/// confined to the video, sorted by probability (equals in order), rounded to four decimals and
/// then to multiples of [`DecodeConfig::round_seconds`], all in f32 as in the reference.
pub fn rank_spans(
    spans: impl IntoIterator<Item = ([f32; 2], f32)>,
    duration: f64,
    config: &DecodeConfig,
) -> Vec<ScoredSpan> {
    let length = duration as f32;
    let mut ranked: Vec<([f32; 2], f32)> = spans
        .into_iter()
        .map(|([centre, width], score)| {
            let ends = [centre - 0.5 * width, centre + 0.5 * width];
            (ends.map(|t| (t * length).max(0.0).min(length)), score)
        })
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let seconds = |t: f32| {
        let t = round_decimals(t, 4);
        match config.round_seconds {
            Some(step) if step > 0.0 => f64::from(round_to_multiple(t as f32, step as f32)),
            _ => t,
        }
    };
    let ranked: Vec<ScoredSpan> = ranked
        .into_iter()
        .map(|([start, end], score)| ScoredSpan {
            span: TimeSpan {
                start: seconds(start),
                end: seconds(end),
            },
            score: round_decimals(score, 4),
        })
        .filter(|s| s.score >= config.min_score)
        .collect();
    match config.nms {
        Some(threshold) => temporal_nms(&ranked, threshold, config.max_spans),
        None => ranked.into_iter().take(config.max_spans).collect(),
    }
}

/// `round(t / step) · step`, half to even.
pub fn round_to_multiple(t: f32, step: f32) -> f32 {
    (t / step).round_ties_even() * step
}

/// The decimal number of so many places nearest to `x`.
pub fn round_decimals(x: f32, places: usize) -> f64 {
    // Through text, as the reference does it: scaling would round twice.
    let exact = f64::from(x);
    format!("{exact:.places$}").parse().unwrap_or(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_order_and_rounding_by_hand() {
        // Of 10 s: [2, 6] and [-1, 3.5].
        let spans = [([0.4f32, 0.4], 0.25f32), ([0.125, 0.45], 0.5)];
        let plain = DecodeConfig::new().with_round_seconds(None);
        let ranked = rank_spans(spans, 10.0, &plain);
        assert_eq!((ranked[0].span.start, ranked[0].span.end), (0.0, 3.5));
        assert_eq!(ranked[0].score, 0.5);
        assert_eq!((ranked[1].span.start, ranked[1].span.end), (2.0, 6.0));
        let whole = rank_spans(spans, 10.0, &DecodeConfig::new());
        assert_eq!(whole[0].span.end, 4.0, "3.5 rounds to the even 4");
        let strict = DecodeConfig::new().with_min_score(0.3);
        assert_eq!(rank_spans(spans, 10.0, &strict).len(), 1);
        let none = DecodeConfig::new().with_min_score(0.9);
        assert!(rank_spans(spans, 10.0, &none).is_empty());
    }

    #[test]
    fn rounding() {
        assert_eq!(round_to_multiple(0.5, 1.0), 0.0);
        assert_eq!(round_to_multiple(1.5, 1.0), 2.0);
        assert_eq!(round_to_multiple(5.0, 2.0), 4.0);
        assert_eq!(round_to_multiple(7.0, 2.0), 8.0);
        assert_eq!(round_decimals(0.123_45, 4), 0.1235);
        assert_eq!(round_decimals(2.0, 4), 2.0);
    }
}
