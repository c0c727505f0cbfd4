//! What changed between two recipes, for a run that resumes.

use std::fmt;

use toml::Value;

use super::Recipe;
use super::read::{KeyPath, Step};

/// A value that differs between two recipes.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Where: `stages[0].batch_size`.
    pub key: String,
    /// What it was, as TOML; `None` when it was not there.
    pub before: Option<String>,
    /// What it is; `None` when it is gone.
    pub now: Option<String>,
    /// Whether a run may continue with it: it changes what is reported or kept, not what is learnt,
    /// or a stage that has not begun.
    pub harmless: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |v: &Option<String>| v.clone().unwrap_or_else(|| "(absent)".into());
        write!(
            f,
            "{}: {} → {}",
            self.key,
            text(&self.before),
            text(&self.now)
        )
    }
}

impl Recipe {
    /// What differs in `now`, for a run that is in stage number `stage` (0-based).
    pub fn changes(&self, now: &Recipe, stage: usize) -> Vec<Change> {
        let table = |r: &Recipe| Value::try_from(r).unwrap_or(Value::Boolean(false));
        let mut changes = Vec::new();
        compare(
            &KeyPath::default(),
            Some(&table(self)),
            Some(&table(now)),
            &mut |path, before, now| {
                changes.push(Change {
                    key: path.to_string(),
                    before: before.map(Value::to_string),
                    now: now.map(Value::to_string),
                    harmless: harmless(path, stage),
                });
            },
        );
        changes
    }
}

fn harmless(path: &KeyPath, stage: usize) -> bool {
    match path.0.as_slice() {
        // A checkpoint of other weights lacks what the run would look for.
        [Step::Key(top), Step::Key(field), ..] if top == "checkpoints" => field != "weights",
        [Step::Key(top), ..] if matches!(top.as_str(), "name" | "logging") => true,
        [Step::Key(top), Step::Index(i), ..] if top == "stages" && *i > stage => true,
        [Step::Key(top), Step::Index(_), Step::Key(field), ..] if top == "stages" => {
            matches!(
                field.as_str(),
                "evaluate_every"
                    | "evaluation"
                    | "checkpoint_every"
                    | "heads_must_fire_within"
                    | "strict"
            )
        }
        // The files may have moved; what they hold is checked by the dataset's fingerprint.
        [Step::Key(top), Step::Key(field), ..] if top == "model" => field == "start",
        _ => false,
    }
}

fn compare(
    path: &KeyPath,
    before: Option<&Value>,
    now: Option<&Value>,
    found: &mut impl FnMut(&KeyPath, Option<&Value>, Option<&Value>),
) {
    let step = |step: Step| {
        let mut path = path.clone();
        path.0.push(step);
        path
    };
    match (before, now) {
        (Some(Value::Table(a)), Some(Value::Table(b))) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                compare(&step(Step::Key(key.clone())), a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b)))
            if a.iter().chain(b).any(Value::is_table) =>
        {
            for i in 0..a.len().max(b.len()) {
                compare(&step(Step::Index(i)), a.get(i), b.get(i), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found(path, a, b),
    }
}
