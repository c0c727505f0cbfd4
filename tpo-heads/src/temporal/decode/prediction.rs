//! What the temporal heads answer.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::ScoredSpan;
use tpo_core::head::{Drawing, Shape};

/// When something happens, and how worth watching every clip is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemporalPrediction {
    /// Spans in seconds, the most likely first.
    pub spans: Vec<ScoredSpan>,
    /// Highlight curve: one value per clip, higher is more salient. Unbounded.
    pub saliency: Vec<f32>,
    /// Seconds between the starts of two clips.
    pub clip_seconds: f64,
    /// Duration of the video in seconds.
    pub duration: f64,
}

impl TemporalPrediction {
    /// The most likely span.
    pub fn best(&self) -> Option<&ScoredSpan> {
        self.spans.first()
    }

    /// The most salient clip; the first of equals.
    pub fn highlight(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (clip, score) in self.saliency.iter().enumerate() {
            if best.is_none_or(|b| *score > self.saliency[b]) {
                best = Some(clip);
            }
        }
        best
    }

    /// The best span in words, all spans and the curve as shapes.
    pub fn drawing(&self) -> Drawing {
        let text = match self.best() {
            Some(best) => format!("{:.1} to {:.1} s", best.span.start, best.span.end),
            None => "at no time".into(),
        };
        Drawing::text(text)
            .with(Shape::Spans(self.spans.clone()))
            .with(Shape::Curve {
                step: self.clip_seconds,
                values: self.saliency.clone(),
            })
    }
}
