//! What a stage learns from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tpo_data::feed::{
    AugmentConfig, FeedConfig, FramesConfig, MixtureConfig, OrderConfig, SourceConfig,
};
use tpo_data::synthetic::RowsConfig;
use tpo_data::{DataError, FrameSampling};

/// Sources of training samples and how they are mixed.
///
/// The share of a source in an epoch is proportional to
/// `weight · (rows · repeat)^(1/temperature)`: temperature 1 is in proportion to size, a large one
/// evens the sources out. See [`tpo_data::feed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSpec {
    /// Exponent `1/temperature` on the sizes of the sources.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Which frames of a video: `middle` of equal parts, `rand` for one of each part at random,
    /// or `fps0.5` for so many a second.
    #[serde(default = "middle")]
    pub sampling: FrameSampling,
    /// Random changes of pictures and clips; absent: none, as in the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<AugmentConfig>,
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
    /// Clips of the synthetic world in place of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<RowsConfig>,
    /// Boxes, times and tracks are answered in words, without task tokens: the ablation of the
    /// paper's Table 11.
    #[serde(default)]
    pub textual: bool,
    /// Turns of a row do not see each other: each is asked as if it were the only one about its
    /// clip, for the price of one row. Without it a question may be answered from the answers
    /// before it, and teaches little.
    #[serde(default, alias = "apart")]
    pub packed_turns: bool,
    /// Factor on the share of this source.
    #[serde(default = "one")]
    pub weight: f64,
    /// How often each row comes in an epoch.
    #[serde(default = "one_u64")]
    pub repeat: u64,
    /// Only the first so many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

fn middle() -> FrameSampling {
    FrameSampling::Middle
}

fn one() -> f64 {
    1.0
}

fn one_u64() -> u64 {
    1
}

/// Frames and pixels of a model that a world can surely be drawn for; the model itself is not
/// known where a recipe is read.
const ANY_MODEL: (usize, usize) = (16, 64);

impl MixtureSpec {
    /// The same sources for a [`Feed`](tpo_data::feed::Feed). `frames` is what the model reads; its
    /// rule for picking frames is replaced by this mixture's.
    pub fn feed(&self, order: OrderConfig, frames: FramesConfig) -> FeedConfig {
        FeedConfig {
            sources: self.sources.iter().map(SourceSpec::feed).collect(),
            mixture: MixtureConfig {
                temperature: self.temperature,
                epoch_size: None,
            },
            order,
            frames: FramesConfig {
                sampling: self.sampling,
                ..frames
            },
            augment: self.augment.clone().unwrap_or_default(),
            ..FeedConfig::default()
        }
    }

    /// Appends what is out of range; `at` is where in the recipe this mixture is.
    pub(crate) fn problems(&self, at: &str, problems: &mut Vec<String>) {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            problems.push(format!(
                "{at}.temperature is {}; must be above 0 and finite",
                self.temperature
            ));
        }
        if let Some(augment) = &self.augment
            && let Err(DataError::InvalidConfig { reason, .. }) = augment.validate()
        {
            problems.push(format!("{at}.augment: {reason}"));
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
            if let Some(rows) = &source.synthetic {
                let (frames, side) = ANY_MODEL;
                let found = rows.problems(frames, side);
                problems.extend(found.into_iter().map(|p| format!("{at}.synthetic.{p}")));
                if i64::try_from(rows.seed).is_err() {
                    problems.push(format!("{at}.synthetic.seed must be below 2^63"));
                }
                if source.media.is_some() {
                    problems.push(format!("{at}: `media` goes with `annotations`"));
                }
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

impl SourceSpec {
    fn feed(&self) -> SourceConfig {
        SourceConfig {
            name: Some(self.name.clone()),
            path: self.annotations.clone(),
            root: self.media.clone(),
            world: self.synthetic.clone(),
            repeat: self.repeat as f64,
            weight: self.weight,
            limit: self.limit,
            textual: self.textual,
            packed_turns: self.packed_turns,
        }
    }
}
