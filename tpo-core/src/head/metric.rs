//! What a head's answers are worth, as named means.

/// A metric of a head over some answers.
///
/// Metrics of several batches are joined by their counts, so that a mean over a dataset is the
/// mean over its answers whatever the batches were.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMetric {
    /// Name in logs, for example `acc@0.5`.
    pub name: String,
    /// Mean over `count` answers.
    pub mean: f64,
    /// Answers it is the mean of.
    pub count: usize,
}

impl HeadMetric {
    /// The mean of one value per answer; no metric when there is none.
    pub fn mean_of(name: &str, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (sum, count) = values
            .into_iter()
            .fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
        (count > 0).then(|| Self {
            name: name.into(),
            mean: sum / count as f64,
            count,
        })
    }

    /// The means of the named values of many answers, in the order in which the names first occur.
    pub fn means_of<'n>(answers: impl IntoIterator<Item = Vec<(&'n str, f64)>>) -> Vec<Self> {
        let mut found: Vec<(&str, Vec<f64>)> = Vec::new();
        for (name, value) in answers.into_iter().flatten() {
            match found.iter_mut().find(|(n, _)| *n == name) {
                Some((_, values)) => values.push(value),
                None => found.push((name, vec![value])),
            }
        }
        let means = found.into_iter();
        means
            .filter_map(|(name, values)| Self::mean_of(name, values))
            .collect()
    }

    /// The share of answers for which something holds; no metric when there is none.
    pub fn share_of(name: &str, holds: impl IntoIterator<Item = bool>) -> Option<Self> {
        Self::mean_of(name, holds.into_iter().map(|h| f64::from(u8::from(h))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_hand() {
        let mean = HeadMetric::mean_of("mean_iou", [0.25, 0.5, 0.75]).unwrap();
        assert_eq!((mean.mean, mean.count), (0.5, 3));
        let share = HeadMetric::share_of("acc@0.5", [true, false, true, true]).unwrap();
        assert_eq!((share.mean, share.count), (0.75, 4));
        assert_eq!(HeadMetric::mean_of("none", []), None);
    }
}
