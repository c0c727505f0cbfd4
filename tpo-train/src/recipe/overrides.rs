//! `key=value` from a command line.

use toml::{Table, Value};

use super::extends::displace;
use super::read::{KeyPath, Step, at_mut};
use crate::suggest::near;

/// Sets one value. Its type is that of the value it replaces, in `table` or else in `defaults`
/// (the recipe with every default written out).
pub(super) fn apply(text: &str, table: &mut Table, defaults: Option<&Table>) -> Result<(), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("has no `=`; write key=value, for example seed=7")?;
    let (key, value) = (key.trim(), value.trim());
    let mut root = Value::Table(std::mem::take(table));
    let outcome = set(&mut root, key, value, defaults);
    if let Value::Table(back) = root {
        *table = back;
    }
    outcome
}

fn set(root: &mut Value, key: &str, value: &str, defaults: Option<&Table>) -> Result<(), String> {
    // Names of list members and keys are looked up where all of them are: in the defaults.
    let full = defaults.map_or_else(|| root.clone(), |t| Value::Table(t.clone()));
    let path = locate(&full, key).or_else(|why| {
        let path = locate(root, key).ok();
        path.filter(|p| at_mut(root, p).is_some()).ok_or(why)
    })?;
    let like = at_mut(&mut full.clone(), &path)
        .cloned()
        .or_else(|| at_mut(root, &path).cloned());
    let new = typed(value, like.as_ref())?;

    let Some((Step::Key(last), parents)) = path.0.split_last() else {
        let Some(place) = at_mut(root, &path) else {
            return Err("names a member of a list that the recipe does not write out".into());
        };
        *place = new;
        return Ok(());
    };
    // Tables on the way that only the defaults have.
    let mut place = root;
    for step in parents {
        place = match (place, step) {
            (Value::Table(table), Step::Key(key)) => table
                .entry(key.clone())
                .or_insert_with(|| Value::Table(Table::new())),
            (Value::Array(array), Step::Index(index)) => {
                array.get_mut(*index).ok_or("is past the end of a list")?
            }
            _ => return Err("goes through a value that is neither table nor list".into()),
        };
    }
    let Value::Table(place) = place else {
        return Err("goes through a value that is not a table".into());
    };
    displace(place, |key| key == last);
    place.insert(last.clone(), new);
    Ok(())
}

/// Translates `stages.heads.groups[0].learning_rate`. The last key may be one that is not there:
/// optional values are written out only when they are set.
fn locate(root: &Value, key: &str) -> Result<KeyPath, String> {
    let dotted = key.replace('[', ".").replace(']', "");
    let parts: Vec<&str> = dotted.split('.').collect();
    let mut path = KeyPath::default();
    let mut value = Some(root);
    for part in &parts {
        if part.is_empty() {
            return Err("has an empty key".into());
        }
        match value {
            Some(Value::Table(table)) => {
                // An optional key may be filled, whatever others are called; an unknown one is found when
                // the recipe is read.
                value = table.get(*part);
                path.0.push(Step::Key((*part).into()));
            }
            Some(Value::Array(array)) => {
                let names = || array.iter().filter_map(|v| v.get("name")?.as_str());
                let at = match part.parse::<usize>() {
                    Ok(index) => index,
                    Err(_) => array
                        .iter()
                        .position(|v| v.get("name").and_then(Value::as_str) == Some(part))
                        .ok_or_else(|| match near(part, names()) {
                            Some(near) => format!("no `{part}` in {path}, did you mean `{near}`?"),
                            None => format!(
                                "no `{part}` in {path}; it has: {}",
                                names().collect::<Vec<_>>().join(", ")
                            ),
                        })?,
                };
                if at >= array.len() {
                    return Err(format!("{path} has {} members, no [{at}]", array.len()));
                }
                value = array.get(at);
                path.0.push(Step::Index(at));
            }
            Some(other) => {
                return Err(format!(
                    "{path} is a {} and has no `{part}`",
                    other.type_str()
                ));
            }
            None => path.0.push(Step::Key((*part).into())),
        }
    }
    Ok(path)
}

/// Reads `text` as a value of the type of `like`; without one as TOML, and as a string when it is
/// not TOML.
fn typed(text: &str, like: Option<&Value>) -> Result<Value, String> {
    let literal = || -> Option<Value> {
        toml::from_str::<Table>(&format!("value = {text}"))
            .ok()?
            .remove("value")
    };
    let wrong = |what: &str| {
        Err(format!(
            "`{text}` is not {what}, as the value it replaces is"
        ))
    };
    match like {
        Some(Value::String(_)) => Ok(match literal() {
            Some(Value::String(quoted)) => Value::String(quoted),
            _ => Value::String(text.to_string()),
        }),
        Some(Value::Float(_)) => match text.parse::<f64>() {
            Ok(x) => Ok(Value::Float(x)),
            Err(_) => wrong("a number"),
        },
        Some(Value::Integer(_)) => match literal() {
            Some(Value::Integer(n)) => Ok(Value::Integer(n)),
            _ => wrong("an integer"),
        },
        Some(Value::Boolean(_)) => match text {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => wrong("true or false"),
        },
        Some(Value::Array(old)) => match literal() {
            Some(new @ Value::Array(_)) => Ok(new),
            // `a,b` in place of `["a","b"]`, for shells.
            _ if !old.iter().any(Value::is_table) && !text.starts_with('[') => text
                .split(',')
                .map(|item| typed(item.trim(), old.first()))
                .collect::<Result<_, _>>()
                .map(Value::Array),
            _ => wrong("a list"),
        },
        Some(Value::Table(_)) => match literal() {
            Some(new @ Value::Table(_)) => Ok(new),
            _ => wrong("a table such as { steps = 10 }"),
        },
        _ => Ok(literal().unwrap_or_else(|| Value::String(text.to_string()))),
    }
}
