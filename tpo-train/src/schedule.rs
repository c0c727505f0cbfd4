//! Learning rate as a function of the step.

use serde::{Deserialize, Serialize};

use crate::check::Check;

/// How the learning rate falls after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Decay {
    /// Half a cosine, from 1 to 0 (paper, Table 17).
    #[default]
    Cosine,
    /// A straight line from 1 to 0.
    Linear,
    /// Stays at 1.
    Constant,
}

/// Linear warm-up, then decay, never below a floor.
///
/// With `N` steps in all, `w = ceil(warmup_ratio · N)` of them warm-up, the factor of 0-based step
/// `s` is
///
/// ```text
/// s < w :  max(floor, s / w)
/// s ≥ w :  max(floor, ½ (1 + cos(π (s − w) / (N − w))))      for Decay::Cosine
/// ```
///
/// The floor **clamps**: it cuts the curve off and does not rescale it, in the warm-up too, so that
/// the first step already learns. This is the rule of the VideoChat2 trainer, on which the
/// reference implementation rests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrSchedule {
    /// What follows the warm-up.
    pub decay: Decay,
    /// Share of all steps that is warm-up, 0–1.
    pub warmup_ratio: f64,
    /// Smallest factor, 0–1.
    pub floor: f64,
}

impl Default for LrSchedule {
    /// Cosine without warm-up, down to zero.
    fn default() -> Self {
        Self {
            decay: Decay::Cosine,
            warmup_ratio: 0.0,
            floor: 0.0,
        }
    }
}

impl LrSchedule {
    /// Number of warm-up steps among `total` optimizer steps.
    pub fn warmup_steps(&self, total: u64) -> u64 {
        let steps = (self.warmup_ratio * total as f64).ceil();
        // A float-to-integer cast saturates, and takes NaN to zero.
        (steps as u64).min(total)
    }

    /// Factor on the learning rate at 0-based optimizer step `step` of `total`. Steps past the
    /// end get the value of the end of the curve.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        let warmup = self.warmup_steps(total);
        let factor = if step < warmup {
            step as f64 / warmup as f64
        } else {
            let progress = match total - warmup {
                0 => 1.0,
                rest => ((step - warmup) as f64 / rest as f64).min(1.0),
            };
            match self.decay {
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Linear => 1.0 - progress,
                Decay::Constant => 1.0,
            }
        };
        factor.max(self.floor)
    }

    /// Appends what is out of range; `at` is where in the plan this schedule is.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let mut check = Check::new(at, problems);
        for (field, value) in [("warmup_ratio", self.warmup_ratio), ("floor", self.floor)] {
            check.must((0.0..=1.0).contains(&value), field, value, "within 0 and 1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(schedule: LrSchedule, expected: &[f64]) {
        for (step, want) in expected.iter().enumerate() {
            let got = schedule.factor(step as u64, expected.len() as u64);
            assert!(
                (got - want).abs() < 1e-12,
                "step {step}: {got}, want {want}"
            );
        }
    }

    #[test]
    fn the_references_six_steps() {
        let schedule = LrSchedule {
            decay: Decay::Cosine,
            warmup_ratio: 0.2,
            floor: 0.05,
        };
        // ceil(0.2 · 6) = ceil(1.2)
        assert_eq!(schedule.warmup_steps(6), 2);
        // Quarters of the half cosine: (1 ± √½) / 2
        close(
            schedule,
            &[0.05, 0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627],
        );
    }

    #[test]
    fn the_floor_clamps_and_does_not_rescale() {
        let schedule = LrSchedule {
            decay: Decay::Linear,
            warmup_ratio: 0.0,
            floor: 0.4,
        };
        // Rescaled, the second would be 0.4 + 0.6 · 0.75 = 0.85.
        close(schedule, &[1.0, 0.75, 0.5, 0.4]);
    }

    #[test]
    fn ends_and_degenerate_lengths() {
        let cosine = LrSchedule::default();
        assert_eq!(cosine.factor(0, 10), 1.0);
        assert!(cosine.factor(10, 10).abs() < 1e-12);
        assert_eq!(cosine.factor(10, 10), cosine.factor(u64::MAX, 10));
        assert!(cosine.factor(0, 0).abs() < 1e-12);
        let all_warmup = LrSchedule {
            decay: Decay::Constant,
            warmup_ratio: 1.0,
            floor: 0.0,
        };
        close(all_warmup, &[0.0, 0.25, 0.5, 0.75]);
        assert_eq!(all_warmup.factor(4, 4), 1.0);
    }

    #[test]
    fn out_of_range_is_reported_and_does_not_panic() {
        let bad = LrSchedule {
            decay: Decay::Cosine,
            warmup_ratio: f64::NAN,
            floor: 1.5,
        };
        assert_eq!(bad.warmup_steps(10), 0);
        let mut problems = Vec::new();
        bad.problems("schedule", &mut problems);
        assert_eq!(
            problems,
            [
                "schedule.warmup_ratio is NaN; must be within 0 and 1",
                "schedule.floor is 1.5; must be within 0 and 1",
            ]
        );
        let huge = LrSchedule {
            warmup_ratio: 7.0,
            ..LrSchedule::default()
        };
        assert_eq!(huge.warmup_steps(10), 10);
    }
}
