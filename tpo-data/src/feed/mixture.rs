//! What a feed, or a stage of a recipe, reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::augment::AugmentConfig;
use crate::FrameSampling;
use crate::synthetic::RowsConfig;

/// Most times that an epoch uses a source.
const MOST_REPEATS: u64 = 1_000_000;

/// Sources of training samples and how they are mixed.
///
/// The share of a source in an epoch is proportional to
/// `weight · (rows · repeat)^(1/temperature)`: temperature 1 is in proportion to size, a large one
/// evens the sources out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureSpec {
    /// Exponent `1/temperature` on the sizes of the sources.
    pub temperature: f64,
    /// Which frames of a video; absent: as the model's chat (`input.sampling` of `tpo.json`). `middle` of
    /// equal parts, `rand` for one of each part at random, drawn anew every epoch from the seed of the
    /// run, `linspace` from the first frame to the last; `fps0.5` for so many a second, or `upto1.0` for
    /// so many but at most as many as the model reads, which give every video its own number of frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<FrameSampling>,
    /// Random changes of pictures and clips; absent: none, as in the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augment: Option<AugmentConfig>,
    /// The sources.
    pub sources: Vec<SourceSpec>,
}

impl Default for MixtureSpec {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            sampling: None,
            augment: None,
            sources: Vec::new(),
        }
    }
}

/// One dataset: a JSONL file, or clips of the synthetic world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSpec {
    /// Name in logs, unique in the mixture.
    pub name: String,
    /// File of annotations, one JSON object a line. Relative paths count from the working
    /// directory. Either this or `synthetic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<PathBuf>,
    /// Directory that the media paths of the annotations count from; absent: that of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<PathBuf>,
    /// Directory of features of the temporal head that were computed before, by the names of the videos:
    /// `abc.npz` (or `.npy`, `.safetensors`) for `abc.mp4`; of queries in `text/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<PathBuf>,
    /// Clips of the synthetic world in place of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<RowsConfig>,
    /// Boxes, times and tracks are answered in words, without task tokens: the ablation of the
    /// paper's Table 11.
    pub textual: bool,
    /// Turns of a row do not see each other: each is asked as if it were the only one about its
    /// clip, for the price of one row. Without it a question may be answered from the answers
    /// before it, and teaches little.
    #[serde(alias = "apart")]
    pub packed_turns: bool,
    /// Factor on the share of this source.
    pub weight: f64,
    /// How often each row comes in an epoch.
    pub repeat: u64,
    /// Only the first so many good rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl Default for SourceSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            annotations: None,
            media: None,
            features: None,
            synthetic: None,
            textual: false,
            packed_turns: false,
            weight: 1.0,
            repeat: 1,
            limit: None,
        }
    }
}

impl SourceSpec {
    /// A file, named by its path, once an epoch.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            name: path.display().to_string(),
            annotations: Some(path),
            ..Self::default()
        }
    }

    /// Clips of the world, named `world`, once an epoch.
    pub fn world(rows: RowsConfig) -> Self {
        Self {
            name: "world".into(),
            synthetic: Some(rows),
            ..Self::default()
        }
    }

    fn problems(&self, frames: usize, side: usize) -> Vec<String> {
        let mut problems = Vec::new();
        match (&self.annotations, &self.synthetic) {
            (None, None) => problems.push(": needs `annotations` (a file) or `synthetic`".into()),
            (Some(_), Some(_)) => {
                problems.push(": `annotations` and `synthetic` exclude each other".into());
            }
            _ => {}
        }
        if let Some(rows) = &self.synthetic {
            let found = rows.problems(frames, side);
            problems.extend(found.into_iter().map(|p| format!(".synthetic.{p}")));
            if i64::try_from(rows.seed).is_err() {
                problems.push(".synthetic.seed must be below 2^63".into());
            }
            if self.media.is_some() {
                problems.push(": `media` goes with `annotations`".into());
            }
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            problems.push(format!(
                ".weight is {}; must be above 0 and finite (leave the source out instead)",
                self.weight
            ));
        }
        if self.repeat == 0 || self.limit == Some(0) {
            problems.push(": `repeat` and `limit` must be at least 1".into());
        }
        if self.repeat > MOST_REPEATS {
            problems.push(format!(
                ".repeat is {}; must be at most {MOST_REPEATS}",
                self.repeat
            ));
        }
        problems
    }
}

impl MixtureSpec {
    /// These sources in proportion to their sizes.
    pub fn of(sources: Vec<SourceSpec>) -> Self {
        Self {
            sources,
            ..Self::default()
        }
    }

    /// Everything that is out of range, for a model that reads `frames` frames of `side` pixels; `at`
    /// is where this mixture stands.
    pub fn problems(&self, at: &str, (frames, side): (usize, usize)) -> Vec<String> {
        let mut problems = Vec::new();
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            problems.push(format!(
                "{at}.temperature is {}; must be above 0 and finite",
                self.temperature
            ));
        }
        let augment = self.augment.iter().flat_map(AugmentConfig::problems);
        problems.extend(augment.map(|p| format!("{at}.augment: {p}")));
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
            let found = source.problems(frames, side);
            problems.extend(found.into_iter().map(|p| format!("{at}{p}")));
        }
        problems
    }
}
