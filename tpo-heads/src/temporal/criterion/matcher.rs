//! One-to-one matching of predicted spans to true ones.

use burn::tensor::{FloatDType, Tensor};
use tpo_core::geometry::{TimeSpan, assignment};

use super::MatchCosts;
use crate::HeadsError;
use crate::temporal::model::CgDetrOutput;

/// Per sample pairs (query, true span), queries ascending.
pub type Matches = Vec<Vec<(usize, usize)>>;

/// Matches of all layers.
#[derive(Debug, Clone)]
pub struct Matched {
    /// Per layer.
    pub matches: Vec<Matches>,
    /// Per layer the percentage of matched queries that are called background; 0 without matches.
    pub class_error: Vec<f32>,
}

/// Matches every decoder layer with the truth by least summed cost. Spans and logits of the whole
/// batch come to the host in one transfer; costs are in f64 (the reference rounds one of them to
/// bf16).
///
/// # Errors
/// [`HeadsError::NotFinite`] when a span or logit is not finite.
pub fn match_spans(
    output: &CgDetrOutput,
    targets: &[Vec<[f32; 2]>],
    costs: &MatchCosts,
) -> Result<Matched, HeadsError> {
    let [layers, batch, queries, _] = output.spans.dims();
    let both = Tensor::cat(vec![output.spans.clone(), output.logits.clone()], 3).detach();
    let flat = finite(both.cast(FloatDType::F32), "spans and logits")?;
    let sample = queries * 4;
    let mut out = Matched {
        matches: Vec::with_capacity(layers),
        class_error: Vec::with_capacity(layers),
    };
    for layer in flat.chunks_exact(batch * sample) {
        let mut matches = Vec::with_capacity(batch);
        let (mut wrong, mut all) = (0usize, 0usize);
        for (rows, truth) in layer.chunks_exact(sample).zip(targets) {
            let cost: Vec<Vec<f64>> = rows
                .chunks_exact(4)
                .map(|row| truth.iter().map(|t| cost(row, t, costs)).collect())
                .collect();
            let pairs = if truth.is_empty() {
                Vec::new()
            } else {
                assignment::assign(&cost)?
            };
            all += pairs.len();
            wrong += pairs
                .iter()
                .filter(|(q, _)| rows[q * 4 + 3] > rows[q * 4 + 2])
                .count();
            matches.push(pairs);
        }
        out.matches.push(matches);
        out.class_error
            .push(100.0 * wrong as f32 / all.max(1) as f32);
    }
    Ok(out)
}

/// `row` is centre, width, foreground logit, background logit.
fn cost(row: &[f32], truth: &[f32; 2], costs: &MatchCosts) -> f64 {
    let at = |i: usize| f64::from(row[i]);
    let truth = [f64::from(truth[0]), f64::from(truth[1])];
    let foreground = 1.0 / (1.0 + (at(3) - at(2)).exp());
    let l1 = (at(0) - truth[0]).abs() + (at(1) - truth[1]).abs();
    costs.span * l1 - costs.giou * generalised_iou([at(0), at(1)], truth) - costs.class * foreground
}

/// Of two spans (centre, width).
fn generalised_iou(a: [f64; 2], b: [f64; 2]) -> f64 {
    let span = |s: [f64; 2]| TimeSpan {
        start: s[0] - s[1] / 2.0,
        end: s[0] + s[1] / 2.0,
    };
    let (a, b) = (span(a), span(b));
    let inter = (a.end.min(b.end) - a.start.max(b.start)).max(0.0);
    let union = a.duration() + b.duration() - inter;
    let hull = a.end.max(b.end) - a.start.min(b.start);
    if hull > 0.0 && union > 0.0 {
        inter / union - (hull - union) / hull
    } else {
        // Two points: the same one, or two with nothing but a gap between them.
        if hull > 0.0 { -1.0 } else { 1.0 }
    }
}

/// The values of a tensor, all of them finite.
pub(in crate::temporal) fn finite<const D: usize>(
    tensor: Tensor<D>,
    what: &str,
) -> Result<Vec<f32>, HeadsError> {
    let values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(first) => Err(HeadsError::NotFinite {
            place: "temporal head",
            what: what.into(),
            count: values.iter().filter(|v| !v.is_finite()).count(),
            first,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_by_hand() {
        // Spans [0, 0.5] and [0.25, 0.75]: IoU 1/3, no gap; L1 0.25; probability 1/2.
        let row = [0.25, 0.5, 1.0, 1.0];
        let found = cost(&row, &[0.5, 0.5], &MatchCosts::new());
        assert!((found - (2.5 - 1.0 / 3.0 - 2.0)).abs() < 1e-9, "{found}");
        assert_eq!(generalised_iou([0.5, 0.0], [0.5, 0.0]), 1.0);
        // [0, 0.2] and [0.8, 1]: hull 1, union 0.4.
        assert!((generalised_iou([0.1, 0.2], [0.9, 0.2]) + 0.6).abs() < 1e-9);
    }
}
