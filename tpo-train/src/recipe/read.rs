//! Reading a recipe with every problem in one go.
//!
//! A deserializer stops at the first mistake. So the recipe is read again and again: each mistake
//! is noted and taken out of the table, until what is left is a recipe. Its values are then
//! checked as well.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::extends::{Place, Places, layers, merged};
use super::{Recipe, overrides};
use crate::error::{Result, TrainError};
use crate::suggest::near;

/// Most mistakes that are noted; a text with more is hardly meant to be a recipe.
const MAX_PROBLEMS: usize = 100;

/// A step into a table or list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A key path such as `stages[0].schedule.floor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyPath(pub(super) Vec<Step>);

impl KeyPath {
    fn join(&self, key: &str) -> Self {
        let mut path = self.clone();
        path.0.push(Step::Key(key.into()));
        path
    }
}

impl KeyPath {
    /// The path with which `text` begins, up to the first blank.
    fn at_start_of(text: &str) -> Self {
        let word = text.split([' ', ':']).next().unwrap_or_default();
        let mut path = Self::default();
        for part in word.split('.') {
            let mut pieces = part.split('[');
            path.0
                .extend(pieces.next().map(|key| Step::Key(key.to_string())));
            path.0.extend(
                pieces
                    .filter_map(|p| p.trim_end_matches(']').parse().ok())
                    .map(Step::Index),
            );
        }
        path
    }
}

impl std::fmt::Display for KeyPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// See [`Recipe::read`].
pub(super) fn recipe<S: AsRef<str>>(text: &str, origin: &str, overrides: &[S]) -> Result<Recipe> {
    let layers = layers(text, origin)?;
    let mut table = merged(&layers);
    let places = Places::new(&layers, table.clone());

    let mut problems = Vec::new();
    if !overrides.is_empty() {
        let defaults = repaired::<Recipe>(table.clone()).0;
        let defaults = defaults.and_then(|r| Table::try_from(r).ok());
        for text in overrides {
            if let Err(why) = overrides::apply(text.as_ref(), &mut table, defaults.as_ref()) {
                problems.push(format!("override `{}`: {why}", text.as_ref()));
            }
        }
    }
    let (recipe, mistakes) = repaired::<Recipe>(table);
    let mut found: Vec<(Option<Place>, String)> = Vec::new();
    for (path, message) in &mistakes {
        found.push((
            places.of(path),
            if path.0.is_empty() {
                message.clone()
            } else {
                format!("{path}: {message}")
            },
        ));
    }
    if let Some(recipe) = &recipe {
        // Not what only stands in for something that was taken out.
        let repaired: Vec<String> = mistakes.iter().map(|(p, _)| p.to_string()).collect();
        for problem in recipe.problems() {
            let path = KeyPath::at_start_of(&without_names(&problem));
            let place = path.to_string();
            if !repaired
                .iter()
                .any(|r| !r.is_empty() && place.starts_with(r))
            {
                found.push((places.of(&path), problem));
            }
        }
    }
    found.sort_by_key(|(place, _)| *place);
    problems.extend(found.into_iter().map(|(place, problem)| match place {
        Some(place) => format!("{}: {problem}", places.show(place)),
        None => problem,
    }));
    match recipe {
        Some(recipe) if problems.is_empty() => Ok(recipe),
        _ => Err(TrainError::InvalidRecipe {
            origin: origin.to_string(),
            problems,
        }),
    }
}

/// Reads a table, taking out what does not fit; the second value says what that was.
pub(super) fn repaired<T: DeserializeOwned>(table: Table) -> (Option<T>, Vec<(KeyPath, String)>) {
    let mut root = Value::Table(table);
    let mut mistakes: Vec<(KeyPath, String)> = Vec::new();
    for _ in 0..MAX_PROBLEMS {
        let (path, message) = match attempt::<T>(&root) {
            Ok(value) => return (Some(value), mistakes),
            Err(mistake) => mistake,
        };
        if let Some(field) = quoted(&message, "missing field ") {
            let missing = path.join(field);
            // Taken out a moment ago, and noted then.
            if !mistakes.iter().any(|(p, _)| *p == missing) {
                mistakes.push((missing.clone(), "is missing".into()));
            }
            if !stand_in::<T>(&mut root, &path, field) {
                break;
            }
            continue;
        }
        mistakes.push((path.clone(), explained(&message)));
        if !remove(&mut root, &path) {
            break;
        }
    }
    (None, mistakes)
}

fn attempt<T: DeserializeOwned>(root: &Value) -> Result<T, (KeyPath, String)> {
    serde_path_to_error::deserialize(root.clone()).map_err(|e| {
        let steps = e.path().iter().filter_map(|segment| {
            use serde_path_to_error::Segment;
            match segment {
                Segment::Seq { index } => Some(Step::Index(*index)),
                Segment::Map { key } => Some(Step::Key(key.clone())),
                // Not a place in the text.
                Segment::Enum { .. } | Segment::Unknown => None,
            }
        });
        let path = KeyPath(steps.collect());
        (path, e.inner().message().trim_end().to_string())
    })
}

/// The first word in backticks after `start`.
fn quoted<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.split('`').nth(1)
}

/// A parser's message, with the nearest name when it is about an unknown one.
fn explained(message: &str) -> String {
    for start in ["unknown field ", "unknown variant "] {
        let Some(wrong) = quoted(message, start) else {
            continue;
        };
        let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        let what = start.trim_start_matches("unknown ").trim_end();
        let what = if what == "field" { "key" } else { "value" };
        let list = known.join(", ");
        return match near(wrong, known.iter().copied()) {
            Some(near) => format!("unknown {what} `{wrong}`, did you mean `{near}`? Known: {list}"),
            None => format!("unknown {what} `{wrong}`; known: {list}"),
        };
    }
    message.to_string()
}

/// Puts something at `parent.field` with which reading gets further.
fn stand_in<T: DeserializeOwned>(root: &mut Value, parent: &KeyPath, field: &str) -> bool {
    let place = parent.join(field);
    let mut candidates = vec![
        Value::String("x".into()),
        Value::Integer(1),
        Value::Float(1.0),
        Value::Boolean(false),
        Value::Array(Vec::new()),
        Value::Table(Table::new()),
    ];
    let mut next = 0;
    while next < candidates.len() {
        let mut trial = root.clone();
        let Some(Value::Table(table)) = at_mut(&mut trial, parent) else {
            return false;
        };
        table.insert(field.to_string(), candidates[next].clone());
        next += 1;
        match attempt::<T>(&trial) {
            // The place itself does not like the candidate.
            Err((path, message)) if path == place && !message.starts_with("missing field") => {
                // An enum: the first of its variants, bare or with a value.
                if let Some(variant) = message
                    .starts_with("unknown variant")
                    .then(|| message.split('`').nth(3))
                    .flatten()
                    && candidates.len() < 10
                {
                    candidates.push(Value::String(variant.into()));
                    let table = Table::from_iter([(variant.to_string(), Value::Integer(1))]);
                    candidates.push(Value::Table(table));
                }
            }
            _ => {
                *root = trial;
                return true;
            }
        }
    }
    false
}

pub(super) fn at_mut<'a>(root: &'a mut Value, path: &KeyPath) -> Option<&'a mut Value> {
    path.0
        .iter()
        .try_fold(root, |value, step| match (value, step) {
            (Value::Table(table), Step::Key(key)) => table.get_mut(key),
            (Value::Array(array), Step::Index(index)) => array.get_mut(*index),
            _ => None,
        })
}

fn remove(root: &mut Value, path: &KeyPath) -> bool {
    let Some((last, parent)) = path.0.split_last() else {
        return false;
    };
    match (at_mut(root, &KeyPath(parent.to_vec())), last) {
        (Some(Value::Table(table)), Step::Key(key)) => table.remove(key).is_some(),
        // A list is not shortened: that would shift the places of what comes after.
        (Some(Value::Array(_)), Step::Index(_)) => remove(root, &KeyPath(parent.to_vec())),
        _ => false,
    }
}

/// `` stages[0] `heads`.groups[1] `lora`.patterns `` as `stages[0].groups[1].patterns`.
fn without_names(problem: &str) -> String {
    let mut out = String::with_capacity(problem.len());
    let mut rest = problem;
    while let Some(at) = rest.find("] `") {
        let name = &rest[at + 3..];
        let Some(end) = name.find('`') else {
            break;
        };
        out.push_str(&rest[..=at]);
        rest = &name[end + 1..];
    }
    out.push_str(rest);
    out
}
