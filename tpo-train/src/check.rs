//! Saying what is out of range in a recipe.

use std::fmt::Display;

/// Checks the values at one place of a recipe: `stages[0].adamw.epsilon is 0; must be ..`.
pub(crate) struct Check<'a> {
    at: &'a str,
    problems: &'a mut Vec<String>,
}

impl<'a> Check<'a> {
    /// Checks values at `at`, noting what is wrong in `problems`.
    pub(crate) fn new(at: &'a str, problems: &'a mut Vec<String>) -> Self {
        Self { at, problems }
    }

    /// Notes the value at `key` unless it `holds`.
    pub(crate) fn must(&mut self, holds: bool, key: &str, value: impl Display, must: &str) {
        if !holds {
            let at = self.at;
            self.problems
                .push(format!("{at}.{key} is {value}; must be {must}"));
        }
    }

    /// A number that must be above 0; `hint` says what to do instead.
    pub(crate) fn positive(&mut self, key: &str, value: f64, hint: &str) {
        let must = format!("above 0 and finite{hint}");
        self.must(value.is_finite() && value > 0.0, key, value, &must);
    }

    /// A number that must not be below 0.
    pub(crate) fn not_negative(&mut self, key: &str, value: f64) {
        let holds = value.is_finite() && value >= 0.0;
        self.must(holds, key, value, "0 or more and finite");
    }

    /// The decay of an average.
    pub(crate) fn below_one(&mut self, key: &str, value: f64) {
        let holds = (0.0..1.0).contains(&value);
        self.must(holds, key, value, "at least 0 and below 1");
    }

    /// A count that must not be 0.
    pub(crate) fn not_zero(&mut self, key: &str, count: u64) {
        self.must(count > 0, key, count, "at least 1");
    }
}
