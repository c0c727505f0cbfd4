//! What is compared: a TOML file beside the recipes it names.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Outcome;

/// A study: variants of one training, each with several seeds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Seeds of heads, tokens and order.
    pub seeds: Vec<u64>,
    /// The run that every variant starts from the end of.
    pub start: PathBuf,
    /// What every variant is judged by.
    pub evaluation: Evaluation,
    /// In the order of the table.
    pub variants: Vec<Variant>,
    /// What the rows are compared for.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Where the file lies; paths count from here.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// Questions about clips that training never shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Clips of the held-out split.
    pub clips: u64,
    /// Seed of the world.
    pub world: u64,
}

/// One row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Short name, of folders too.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Its recipe.
    pub recipe: PathBuf,
    /// Changes of the recipe, as on the command line of `train`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Tasks whose head it trains: region, temporal, mask. Others are not scored.
    #[serde(default)]
    pub heads: Vec<String>,
    /// Whether places and times are read from words.
    #[serde(default)]
    pub textual: bool,
    /// The paper's own figures of this row.
    #[serde(default)]
    pub paper: Option<String>,
}

/// That one variant scores higher than another.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// In words.
    pub claim: String,
    /// The paper's figures.
    pub paper: String,
    /// Name of the variant that should be ahead.
    pub ahead: String,
    /// Name of the variant it is compared with.
    pub behind: String,
    /// The score: task/name.
    pub score: String,
}

impl Study {
    /// Reads a study.
    pub fn open(path: &Path) -> Outcome<Self> {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
        let mut study: Self = toml::from_str(&text).map_err(|e| named(&e))?;
        study.folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let bad = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
        for (i, variant) in study.variants.iter().enumerate() {
            if variant.name.is_empty() || variant.name.contains(bad) {
                return Err(named(&format!(
                    "variants[{i}].name `{}` names a folder; use letters, digits and hyphens",
                    variant.name
                ))
                .into());
            }
            if study.variants[..i].iter().any(|v| v.name == variant.name) {
                return Err(named(&format!("there are two variants `{}`", variant.name)).into());
            }
        }
        for claim in &study.claims {
            for name in [&claim.ahead, &claim.behind] {
                if !study.variants.iter().any(|v| v.name == *name) {
                    return Err(named(&format!(
                        "the claim `{}` is about a variant `{name}` that is not there",
                        claim.claim
                    ))
                    .into());
                }
            }
        }
        if study.seeds.is_empty() || study.variants.is_empty() || study.evaluation.clips == 0 {
            return Err(named(&"needs a seed, a variant and a clip to judge by").into());
        }
        Ok(study)
    }
}
