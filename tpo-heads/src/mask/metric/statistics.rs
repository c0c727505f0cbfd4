//! Mean, recall and decay of a score over the frames of one object.

use serde::{Deserialize, Serialize};

/// How the four quarters of the frames are cut for the decay.
///
/// The official code keeps the indices in eight bits, so that sequences of more than 256 scored
/// frames wrap around; up to 255 scored frames all three agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecayBins {
    /// What the official code gives under numpy 2: indices wrap at 256, ends as well.
    #[default]
    Official,
    /// What it gave under numpy 1: only indices wrap.
    OfficialNumpy1,
    /// Without wrapping: the intended quarters.
    Exact,
}

/// Mean, recall and decay as in DAVIS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MetricStatistics {
    /// Mean over the frames; `None` without a number.
    pub mean: Option<f64>,
    /// Share of frames strictly above 0.5.
    pub recall: Option<f64>,
    /// Mean of the first quarter minus mean of the last; quarters share their end points. `None`
    /// where a quarter is empty.
    pub decay: Option<f64>,
}

impl MetricStatistics {
    /// Statistics of the values of all scored frames; NaN is left out of means and is not above
    /// 0.5.
    pub fn new(values: &[f64], bins: DecayBins) -> Self {
        let n = values.len();
        let above = values.iter().filter(|v| **v > 0.5).count();
        let quarter = |i: usize| {
            let wrap = |id: usize| {
                if bins == DecayBins::Exact {
                    id
                } else {
                    id % 256
                }
            };
            let end = wrap(edge(n, i + 1)) + 1;
            let end = if bins == DecayBins::Official {
                wrap(end)
            } else {
                end
            };
            let start = wrap(edge(n, i));
            values.get(start..end.min(n)).and_then(nan_mean)
        };
        Self {
            mean: nan_mean(values),
            recall: (n > 0).then(|| above as f64 / n as f64),
            decay: if n == 0 {
                None
            } else {
                quarter(0).zip(quarter(3)).map(|(first, last)| first - last)
            },
        }
    }
}

/// `round(linspace(1, n, 5)[i] + 1e-10) - 1`, halves to even.
fn edge(n: usize, i: usize) -> usize {
    let at = if i == 4 {
        n as f64
    } else {
        1.0 + i as f64 * ((n as f64 - 1.0) / 4.0)
    };
    (at + 1e-10).round_ties_even() as usize - 1
}

fn nan_mean(values: &[f64]) -> Option<f64> {
    let known = values.iter().filter(|v| !v.is_nan()).count();
    let zeroed: Vec<f64> = values
        .iter()
        .map(|v| if v.is_nan() { 0.0 } else { *v })
        .collect();
    (known > 0).then(|| crate::numeric::sum(&zeroed) / known as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let s = MetricStatistics::new(&[1.0, 0.5, 0.75, 0.25, 0.0], DecayBins::Official);
        assert_eq!((s.mean, s.recall), (Some(0.5), Some(0.4)));
        // Quarters of five frames: 0..=1 and 3..=4.
        assert_eq!(s.decay, Some(0.75 - 0.125));
        let one = MetricStatistics::new(&[0.6], DecayBins::Official);
        assert_eq!(
            (one.mean, one.recall, one.decay),
            (Some(0.6), Some(1.0), Some(0.0))
        );
        let none = MetricStatistics::new(&[], DecayBins::Official);
        assert_eq!((none.mean, none.recall, none.decay), (None, None, None));
        let nan = MetricStatistics::new(&[f64::NAN, 1.0], DecayBins::Official);
        assert_eq!((nan.mean, nan.recall), (Some(1.0), Some(0.5)));
    }

    #[test]
    fn long_sequences_wrap_in_the_official_code_only() {
        let falling: Vec<f64> = (0..300).map(|i| 1.0 - i as f64 / 299.0).collect();
        let decay = |bins| MetricStatistics::new(&falling, bins).decay;
        let exact = decay(DecayBins::Exact).unwrap();
        assert!((exact - 224.0 / 299.0).abs() < 1e-3, "{exact}");
        // The last quarter is 224..=299; wrapped, 224..44 is empty.
        assert_eq!(decay(DecayBins::Official), None);
    }
}
