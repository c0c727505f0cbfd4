//! Post-processing of predicted windows as CG-DETR's evaluation does it per dataset.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::ScoredSpan;

use super::rank::{round_decimals, round_to_multiple};

/// What stays where it is when a window is made longer or shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepSide {
    /// The start.
    Left,
    /// The middle.
    Center,
    /// The end.
    Right,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowStep {
    /// Confine start and end.
    #[serde(rename = "clip_ts")]
    ClipTimes,
    /// Round start and end to multiples of the clip length, half to even.
    #[serde(rename = "round_multiple")]
    RoundMultiple,
    /// Confine the length.
    #[serde(rename = "clip_window_l")]
    ClipLength,
}

/// Rules for windows in seconds, applied in the order of `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowRules {
    /// Clip length in seconds.
    pub clip_length: f64,
    /// Earliest time in seconds.
    pub min_time: f64,
    /// Latest time in seconds.
    pub max_time: f64,
    /// Shortest window in seconds.
    pub min_length: f64,
    /// Longest window in seconds.
    pub max_length: f64,
    /// What stays when the length changes.
    pub keep: KeepSide,
    /// The steps in order.
    pub steps: Vec<WindowStep>,
}

impl WindowRules {
    /// QVHighlights: 0–150 s in clips of 2 s (reference implementation).
    pub fn qvhighlights() -> Self {
        Self {
            clip_length: 2.0,
            min_time: 0.0,
            max_time: 150.0,
            min_length: 2.0,
            max_length: 150.0,
            keep: KeepSide::Left,
            steps: vec![WindowStep::ClipTimes, WindowStep::RoundMultiple],
        }
    }

    /// Any other set: whole clips and nothing else (reference implementation).
    pub fn rounding(clip_length: f64) -> Self {
        Self {
            clip_length,
            min_time: 0.0,
            max_time: 50_000.0,
            min_length: 0.0,
            max_length: 50_000.0,
            keep: KeepSide::Left,
            steps: vec![WindowStep::RoundMultiple],
        }
    }

    /// Applies the rules; scores are rounded to four decimals. Arithmetic is in f32, as in the
    /// reference, so that ties round alike.
    pub fn apply(&self, spans: &[ScoredSpan]) -> Vec<ScoredSpan> {
        spans
            .iter()
            .map(|s| {
                let mut w = [s.span.start as f32, s.span.end as f32];
                for step in &self.steps {
                    w = match step {
                        WindowStep::ClipTimes => {
                            let (low, high) = (self.min_time as f32, self.max_time as f32);
                            w.map(|t| t.max(low).min(high))
                        }
                        WindowStep::RoundMultiple => {
                            w.map(|t| round_to_multiple(t, self.clip_length as f32))
                        }
                        WindowStep::ClipLength => self.with_length(w),
                    };
                }
                let mut out = *s;
                out.span.start = w[0].into();
                out.span.end = w[1].into();
                out.score = round_decimals(s.score as f32, 4);
                out
            })
            .collect()
    }

    fn with_length(&self, [start, end]: [f32; 2]) -> [f32; 2] {
        let length = end - start;
        let (low, high) = (self.min_length as f32, self.max_length as f32);
        let new = if length < low {
            low
        } else if length > high {
            high
        } else {
            return [start, end];
        };
        match self.keep {
            KeepSide::Left => [start, start + new],
            KeepSide::Right => [end - new, end],
            KeepSide::Center => {
                let centre = (end + start) / 2.0;
                [centre - new / 2.0, centre + new / 2.0]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tpo_core::geometry::TimeSpan;

    use super::*;

    #[test]
    fn lengths_by_hand() {
        let rules = |keep| WindowRules {
            keep,
            min_length: 4.0,
            max_length: 6.0,
            steps: vec![WindowStep::ClipLength],
            ..WindowRules::rounding(1.0)
        };
        let apply = |keep, start, end| {
            let span = ScoredSpan {
                span: TimeSpan { start, end },
                score: 0.123_46,
            };
            let out = rules(keep).apply(&[span])[0];
            assert_eq!(out.score, 0.1235);
            (out.span.start, out.span.end)
        };
        assert_eq!(apply(KeepSide::Left, 1.0, 2.0), (1.0, 5.0));
        assert_eq!(apply(KeepSide::Right, 10.0, 20.0), (14.0, 20.0));
        assert_eq!(apply(KeepSide::Center, 10.0, 20.0), (12.0, 18.0));
        assert_eq!(apply(KeepSide::Center, 1.0, 6.0), (1.0, 6.0));
    }
}
