//! Time spans in seconds.

use serde::{Deserialize, Serialize};

use crate::error::{CoreError, Result};

/// A span of time `[start, end]` in seconds from the beginning of the video.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimeSpan {
    /// Start in seconds.
    pub start: f64,
    /// End in seconds, not before the start.
    pub end: f64,
}

/// A span with the confidence of the model, 0–1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScoredSpan {
    /// The span.
    pub span: TimeSpan,
    /// Foreground probability.
    pub score: f64,
}

impl TimeSpan {
    /// Checks that both ends are finite, not negative and in order.
    pub fn new(start: f64, end: f64) -> Result<Self> {
        let why = if !start.is_finite() || !end.is_finite() {
            "an end is not a finite number"
        } else if start < 0.0 {
            "it starts before the video"
        } else if end < start {
            "it ends before it starts"
        } else {
            return Ok(Self { start, end });
        };
        Err(CoreError::InvalidSpan { start, end, why })
    }

    /// Length in seconds.
    pub fn duration(&self) -> f64 {
        self.end - self.start
    }

    /// Temporal intersection over union; 0 when the union is empty.
    pub fn iou(&self, other: &Self) -> f64 {
        let inter = (self.end.min(other.end) - self.start.max(other.start)).max(0.0);
        let union = self.duration() + other.duration() - inter;
        if union > 0.0 { inter / union } else { 0.0 }
    }

    /// The part inside `[0, duration]`.
    pub fn clamped(&self, duration: f64) -> Self {
        let start = self.start.clamp(0.0, duration.max(0.0));
        Self {
            start,
            end: self.end.clamp(start, duration.max(start)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_and_rules_by_hand() {
        let a = TimeSpan::new(1.0, 4.0).unwrap();
        let b = TimeSpan::new(3.0, 6.0).unwrap();
        assert!((a.iou(&b) - 0.2).abs() < 1e-12);
        assert_eq!(TimeSpan::new(2.0, 2.0).unwrap().iou(&a), 0.0);
        assert!(TimeSpan::new(3.0, 2.0).is_err());
        assert!(TimeSpan::new(-1.0, 2.0).is_err());
        assert!(TimeSpan::new(0.0, f64::NAN).is_err());
        let c = TimeSpan {
            start: -2.0,
            end: 99.0,
        }
        .clamped(10.0);
        assert_eq!((c.start, c.end), (0.0, 10.0));
    }
}
