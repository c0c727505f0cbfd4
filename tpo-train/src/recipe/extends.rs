//! Recipes of several files: `extends` and `every_stage`, and where a value of such a recipe stands.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::map::Entry;
use toml::{Spanned, Table, Value};

use super::read::{KeyPath, Step};
use crate::error::{Result, TrainError};

/// The key that names the recipe below this one.
const EXTENDS: &str = "extends";
/// The table of what every stage has unless it says otherwise.
const EVERY_STAGE: &str = "every_stage";
/// Keys of which a table has one: the one given takes the place of the others.
const ONE_OF: [&[&str]; 3] = [
    &["steps", "epochs"],
    &["preset", "sizes", "directory"],
    &["annotations", "synthetic"],
];

/// One text of a recipe.
pub(super) struct Layer {
    /// Names it in messages; the folder that its `extends` counts from, if it is a path.
    origin: String,
    text: String,
    table: Table,
}

impl Layer {
    fn new(text: String, origin: String) -> Result<Self> {
        match toml::from_str(&text) {
            Ok(table) => Ok(Self {
                origin,
                text,
                table,
            }),
            Err(e) => Err(TrainError::Recipe {
                origin,
                message: e.to_string().trim_end().to_string(),
            }),
        }
    }

    fn invalid(&self, key: &str, why: &str) -> TrainError {
        let at = self.table.get_key_value(key).and_then(|_| {
            let spans = DeTable::parse(&self.text).ok()?;
            let start = spans.get_ref().get_key_value(key)?.0.span().start;
            Some(format!("line {}: ", line_at(&self.text, start)?))
        });
        TrainError::InvalidRecipe {
            origin: self.origin.clone(),
            problems: vec![format!("{}{key}: {why}", at.unwrap_or_default())],
        }
    }
}

/// A text and those it extends, each before the one below it.
///
/// # Errors
/// [`TrainError::Recipe`] for a text that is not TOML; [`TrainError::InvalidRecipe`] for an
/// `extends` that names no readable file, or one that leads back to itself.
pub(super) fn layers(text: &str, origin: &str) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut next = Some((text.to_string(), PathBuf::from(origin)));
    while let Some((text, path)) = next.take() {
        let layer = Layer::new(text, path.display().to_string())?;
        seen.push(identity(&path));
        if layer.table.get(EVERY_STAGE).is_some_and(|v| !v.is_table()) {
            return Err(layer.invalid(EVERY_STAGE, "must be a table, with the keys of a stage"));
        }
        match layer.table.get(EXTENDS) {
            None => {}
            Some(Value::String(base)) => {
                let base = path.parent().unwrap_or(Path::new("")).join(base);
                if let Some(at) = seen.iter().position(|s| *s == identity(&base)) {
                    let mut circle: Vec<String> = layers[at..]
                        .iter()
                        .map(|l: &Layer| l.origin.clone())
                        .collect();
                    circle.extend([layer.origin.clone(), base.display().to_string()]);
                    let why = format!("goes in a circle: {}", circle.join(" → "));
                    return Err(layer.invalid(EXTENDS, &why));
                }
                let text = std::fs::read_to_string(&base).map_err(|e| {
                    let why = format!(
                        "{}: {e}; a relative path counts from the folder of the file that says it",
                        base.display()
                    );
                    layer.invalid(EXTENDS, &why)
                })?;
                next = Some((text, base));
            }
            Some(_) => {
                let why = "must be the path of a recipe, such as \"base.toml\"";
                return Err(layer.invalid(EXTENDS, why));
            }
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// The same for every way to write the path of a file.
fn identity(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The recipe that the texts make together, without `extends` and `every_stage`.
pub(super) fn merged(layers: &[Layer]) -> Table {
    let mut recipe = Table::new();
    for layer in layers.iter().rev() {
        merge(&mut recipe, layer.table.clone());
    }
    recipe.remove(EXTENDS);
    if let Some(Value::Table(every)) = recipe.remove(EVERY_STAGE)
        && let Some(Value::Array(stages)) = recipe.get_mut("stages")
    {
        for stage in stages.iter_mut().filter_map(Value::as_table_mut) {
            let own = std::mem::replace(stage, every.clone());
            merge(stage, own);
        }
    }
    recipe
}

/// Puts `over` onto `base`: tables key by key, lists of named tables by name, all else replaced.
fn merge(base: &mut Table, over: Table) {
    displace(base, |key| over.contains_key(key));
    for (key, new) in over {
        match base.entry(key) {
            Entry::Vacant(place) => {
                place.insert(new);
            }
            Entry::Occupied(mut place) => match (place.get_mut(), new) {
                (Value::Table(old), Value::Table(new)) => merge(old, new),
                (Value::Array(old), Value::Array(new)) if named(old) && named(&new) => {
                    merge_named(old, new);
                }
                (old, new) => *old = new,
            },
        }
    }
}

/// Takes out of a table what excludes the keys that are now given.
pub(super) fn displace(table: &mut Table, given: impl Fn(&str) -> bool) {
    for keys in ONE_OF {
        if keys.iter().any(|key| given(key)) {
            table.retain(|key, _| !keys.contains(&key) || given(key));
        }
    }
}

fn name(member: &Value) -> Option<&str> {
    member.get("name")?.as_str()
}

/// Whether all members are tables with names, no name twice.
fn named(list: &[Value]) -> bool {
    !list.is_empty()
        && list.iter().enumerate().all(|(i, member)| {
            name(member).is_some_and(|n| list[..i].iter().all(|other| name(other) != Some(n)))
        })
}

/// Known members change where they stand. A new one comes before the known one that follows it in
/// `new`, or at the end.
fn merge_named(old: &mut Vec<Value>, new: Vec<Value>) {
    let mut at = old.len();
    for member in new.into_iter().rev() {
        match old.iter().position(|o| name(o) == name(&member)) {
            Some(i) => {
                if let (Value::Table(old), Value::Table(new)) = (&mut old[i], member) {
                    merge(old, new);
                }
                at = i;
            }
            None => old.insert(at, member),
        }
    }
}

/// Where values of a merged recipe stand in its texts.
pub(super) struct Places<'a> {
    layers: &'a [Layer],
    spans: Vec<Spanned<DeTable<'a>>>,
    recipe: Value,
}

/// A line of a text of a recipe; those of the recipe itself come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    layer: usize,
    line: usize,
}

/// A step with the name of the member it leads to.
type NamedStep<'a> = (&'a Step, Option<&'a str>);

impl<'a> Places<'a> {
    /// `recipe` is what the layers make together.
    pub(super) fn new(layers: &'a [Layer], recipe: Table) -> Self {
        // All of them were read before.
        let spans = layers
            .iter()
            .map_while(|l| DeTable::parse(&l.text).ok())
            .collect();
        Self {
            layers,
            spans,
            recipe: Value::Table(recipe),
        }
    }

    /// The place of a key, or of the innermost table around it that a text holds.
    pub(super) fn of(&self, path: &KeyPath) -> Option<Place> {
        let mut at = Some(&self.recipe);
        let steps: Vec<NamedStep<'_>> = path
            .0
            .iter()
            .map(|step| {
                at = at.and_then(|value| match step {
                    Step::Key(key) => value.get(key),
                    Step::Index(index) => value.get(*index),
                });
                (
                    step,
                    at.and_then(name).filter(|_| matches!(step, Step::Index(_))),
                )
            })
            .collect();
        let every = Step::Key(EVERY_STAGE.into());
        let shared: Vec<NamedStep<'_>> = match path.0.as_slice() {
            [Step::Key(top), Step::Index(_), _, ..] if top == "stages" => {
                std::iter::once((&every, None))
                    .chain(steps[2..].iter().copied())
                    .collect()
            }
            _ => Vec::new(),
        };
        // What a stage itself says goes before `every_stage`, which counts for the two steps to it.
        let mut best: Option<(usize, usize, usize)> = None;
        for (steps, more) in [(&steps, 0), (&shared, 1)] {
            for (layer, spans) in self.spans.iter().enumerate() {
                let Some((depth, offset)) = walk(spans, steps) else {
                    continue;
                };
                if best.is_none_or(|(deepest, ..)| depth + more > deepest) {
                    best = Some((depth + more, layer, offset));
                }
            }
        }
        let (_, layer, offset) = best?;
        Some(Place {
            layer,
            line: line_at(&self.layers[layer].text, offset)?,
        })
    }

    /// The place as a message begins.
    pub(super) fn show(&self, place: Place) -> String {
        match place.layer {
            0 => format!("line {}", place.line),
            layer => format!("{}, line {}", self.layers[layer].origin, place.line),
        }
    }
}

/// How many of the steps a text has, and where the last of them begins.
fn walk(spans: &Spanned<DeTable<'_>>, steps: &[NamedStep<'_>]) -> Option<(usize, usize)> {
    let ((first, _), rest) = steps.split_first()?;
    let Step::Key(first) = first else {
        return None;
    };
    let (key, mut value) = spans.get_ref().get_key_value(first.as_str())?;
    let (mut depth, mut offset) = (1, key.span().start);
    for (step, name) in rest {
        let inner = match (value.get_ref(), step) {
            (DeValue::Table(table), Step::Key(key)) => table
                .get_key_value(key.as_str())
                .map(|(k, v)| (k.span().start, v)),
            (DeValue::Array(list), Step::Index(index)) => match name {
                Some(name) => list.iter().find(|member| {
                    let table = member.get_ref().as_table();
                    let own = table.and_then(|t| t.get("name")?.get_ref().as_str());
                    own == Some(*name)
                }),
                None => list.get(*index),
            }
            .map(|v| (v.span().start, v)),
            _ => None,
        };
        let Some((start, inner)) = inner else {
            break;
        };
        (depth, offset, value) = (depth + 1, start, inner);
    }
    Some((depth, offset))
}

/// The line of a byte, from 1.
fn line_at(text: &str, offset: usize) -> Option<usize> {
    Some(text.get(..offset)?.matches('\n').count() + 1)
}
