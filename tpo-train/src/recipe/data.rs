//! What a stage learns from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Sources of training samples and how they are mixed.
///
/// A source is drawn with probability proportional to `weight · (rows · repeat)^(1/temperature)`:
/// temperature 1 is in proportion to size, a large one evens the sources out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSpec {
    /// Exponent `1/temperature` on the sizes of the sources.
    #[serde(default = "one")]
    pub temperature: f64,
    /// The sources.
    pub sources: Vec<SourceSpec>,
}

/// One data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// Name in logs, unique in the mixture.
    pub name: String,
    /// File of annotations, one JSON object a line. Relative paths count from the working
    /// directory. Either this or `synthetic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<PathBuf>,
    /// Directory that the media paths of the annotations count from; absent: that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<PathBuf>,
    /// Samples made up from a seed in place of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticSpec>,
    /// Factor on the probability of this source.
    #[serde(default = "one")]
    pub weight: f64,
    /// How often each row comes in an epoch.
    #[serde(default = "one_u64")]
    pub repeat: u64,
    /// Only the first so many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Moving shapes with known boxes, spans and masks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticSpec {
    /// Which task the samples pose: `region`, `temporal`, `mask` or `chat`.
    pub task: String,
    /// Number of samples.
    pub rows: u64,
    /// Seed of the samples; another one than the run's, so that the data stay the same when the
    /// run's changes.
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

fn one_u64() -> u64 {
    1
}

impl MixtureSpec {
    /// Appends what is out of range; `at` is where in the recipe this mixture is.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            problems.push(format!(
                "{at}.temperature is {}; must be above 0 and finite",
                self.temperature
            ));
        }
        if self.sources.is_empty() {
            problems.push(format!(
                "{at}.sources is empty: there is nothing to learn from"
            ));
        }
        for (i, source) in self.sources.iter().enumerate() {
            let at = format!("{at}.sources[{i}] `{}`", source.name);
            if source.name.is_empty() {
                problems.push(format!("{at}.name is empty"));
            } else if self.sources[..i].iter().any(|s| s.name == source.name) {
                problems.push(format!("{at}: an earlier source has this name"));
            }
            match (&source.annotations, &source.synthetic) {
                (None, None) => {
                    problems.push(format!("{at}: needs `annotations` (a file) or `synthetic`"))
                }
                (Some(_), Some(_)) => problems.push(format!(
                    "{at}: `annotations` and `synthetic` exclude each other"
                )),
                _ => {}
            }
            if source.synthetic.as_ref().is_some_and(|s| s.rows == 0) {
                problems.push(format!("{at}.synthetic.rows is 0; must be at least 1"));
            }
            if !(source.weight.is_finite() && source.weight > 0.0) {
                problems.push(format!(
                    "{at}.weight is {}; must be above 0 and finite (leave the source out instead)",
                    source.weight
                ));
            }
            if source.repeat == 0 || source.limit == Some(0) {
                problems.push(format!("{at}: `repeat` and `limit` must be at least 1"));
            }
        }
    }
}
