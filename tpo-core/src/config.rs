//! What every architecture config needs: collecting broken rules, reading a reference's JSON.

use std::fmt::Display;

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

/// Largest width or count; beyond it a file is taken to be wrong, for no known model has it.
pub const MOST: usize = 1 << 20;
/// Most layers of a kind: they are built before a weight is looked at.
pub const MOST_LAYERS: usize = 1000;

/// The rules a config breaks, each a sentence with the values found.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem.
    pub fn add(&mut self, problem: impl Display) {
        self.0.push(problem.to_string());
    }

    /// Notes `problem` unless the rule holds.
    pub fn unless(&mut self, holds: bool, problem: impl Display) {
        if !holds {
            self.add(problem);
        }
    }

    /// Sizes that must not be zero.
    pub fn not_zero(&mut self, sizes: &[(&str, usize)]) {
        for (name, size) in sizes {
            self.unless(*size != 0, format_args!("{name} must not be zero"));
        }
    }

    /// Sizes that must be from 1 to `most`.
    pub fn sizes(&mut self, sizes: &[(&str, usize)], most: usize) {
        self.not_zero(sizes);
        for (name, size) in sizes {
            self.at_most(&[(name, *size, most)]);
        }
    }

    /// Sizes that must not be above their limit.
    pub fn at_most(&mut self, sizes: &[(&str, usize, usize)]) {
        for (name, size, most) in sizes {
            self.unless(
                size <= most,
                format_args!("{name} is {size}, more than the {most} that are possible"),
            );
        }
    }

    /// One size that must be a multiple of another. A divisor of zero is left to
    /// [`Problems::not_zero`].
    pub fn multiple(&mut self, (name, size): (&str, usize), (of, divisor): (&str, usize)) {
        let holds = divisor == 0 || size.is_multiple_of(divisor);
        self.unless(
            holds,
            format_args!("{name} {size} is not a multiple of {of} {divisor}"),
        );
    }

    /// Probabilities of leaving something out: at least 0, below 1.
    pub fn dropout(&mut self, rates: &[(&str, f64)]) {
        for (name, rate) in rates {
            let holds = (0.0..1.0).contains(rate);
            self.unless(holds, format_args!("{name} {rate} must be in [0, 1)"));
        }
    }

    /// Numbers that must be finite and above zero.
    pub fn positive(&mut self, numbers: &[(&str, f64)]) {
        for (name, number) in numbers {
            let holds = number.is_finite() && *number > 0.0;
            self.unless(holds, format_args!("{name} {number} must be positive"));
        }
    }

    /// The problems as one error, if there are any.
    ///
    /// # Errors
    /// What `error` makes of them.
    pub fn into_result<E>(self, error: impl FnOnce(Vec<String>) -> E) -> Result<(), E> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(error(self.0))
        }
    }
}

/// `config` with the values that `json`, a reference's config file, gives to fields of the same
/// name. Only the fields in `required` and `optional` are looked at; a required one must be there.
///
/// # Errors
/// A required field that is missing (or null), or a value of another type, by name.
pub fn overlay<C: Serialize + DeserializeOwned>(
    config: &C,
    json: &Value,
    required: &[&str],
    optional: &[&str],
) -> serde_json::Result<C> {
    let mut fields = serde_json::to_value(config)?;
    for name in required.iter().chain(optional) {
        match json.get(name) {
            Some(value) if !value.is_null() => {
                fields[name] = value.clone();
                C::deserialize(&fields)
                    .map_err(|e| serde_json::Error::custom(format!("`{name}` is {value}: {e}")))?;
            }
            _ if required.contains(name) => {
                return Err(serde_json::Error::custom(format!("missing field `{name}`")));
            }
            _ => {}
        }
    }
    serde_json::from_value(fields)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sizes {
        dim: usize,
        rate: f64,
        own: usize,
    }

    #[test]
    fn a_file_replaces_what_it_names_and_must_name_what_is_required() {
        let base = Sizes {
            dim: 1,
            rate: 0.1,
            own: 2,
        };
        let read = |json| overlay(&base, &json, &["dim"], &["rate"]);
        let expected = Sizes {
            dim: 8,
            ..Sizes {
                dim: 1,
                rate: 0.1,
                own: 2,
            }
        };
        assert_eq!(
            read(json!({"dim": 8, "rate": null, "own": 5})).unwrap(),
            expected
        );
        assert!(
            read(json!({"rate": 0.5}))
                .unwrap_err()
                .to_string()
                .contains("`dim`")
        );
        let error = read(json!({"dim": -1, "rate": 0.5})).unwrap_err();
        assert!(error.to_string().contains("`dim` is -1: "), "{error}");
        assert!(read(json!([])).is_err());
    }

    #[test]
    fn every_broken_rule_is_named() {
        let mut problems = Problems::default();
        problems.not_zero(&[("a", 0), ("b", 1)]);
        problems.at_most(&[("c", 3, 2)]);
        problems.sizes(&[("i", 0), ("j", 1), ("k", 3)], 2);
        problems.multiple(("d", 7), ("e", 2));
        problems.multiple(("d", 7), ("e", 0));
        problems.dropout(&[("f", 1.0), ("g", 0.0)]);
        problems.positive(&[("h", f64::NAN)]);
        let found = problems.into_result(|all| all).unwrap_err();
        assert_eq!(found.len(), 7, "{found:?}");
    }
}
