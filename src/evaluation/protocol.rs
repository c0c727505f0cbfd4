//! Everything that decides the numbers of a run.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::AnswerForm;
use super::item::ItemKind;
use super::prompts::Prompts;

/// Version of what this module does with answers; part of every protocol.
pub const VERSION: u32 = 1;

/// Who calls the head of a question whose task is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The model, by its routing token. A question whose head it does not call is a miss.
    #[default]
    Model,
    /// The run: the routing token is put at the beginning of the answer.
    Always,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataIdentity {
    /// Format, or `synthetic`.
    pub format: String,
    /// File names with the BLAKE3 of their contents; the bounds of a synthetic world.
    pub source: Value,
    /// Number of questions.
    pub questions: usize,
    /// BLAKE3 of all questions with their answers.
    pub blake3: String,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswererIdentity {
    /// A name for people: a directory, a preset.
    pub name: String,
    /// BLAKE3 of all weights.
    pub weights: String,
    /// Frames, sampling, generation.
    pub settings: Value,
}

/// Everything that decides the numbers of a run. Two runs of equal protocols give equal results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Version of this program.
    pub program: String,
    /// [`VERSION`].
    pub version: u32,
    /// The questions.
    pub data: DataIdentity,
    /// Kinds of questions that are asked; all when empty.
    pub kinds: Vec<ItemKind>,
    /// Wordings.
    pub prompts: Prompts,
    /// Who calls heads.
    pub route: Route,
    /// Where coordinates are read.
    pub answers: AnswerForm,
    /// How scores are computed, by kind of question.
    pub metrics: Vec<String>,
    /// The model.
    pub model: AnswererIdentity,
}

/// A protocol of an earlier version in the words of this one: multiple choice was `choice`.
pub(super) fn upgrade(mut protocol: Value) -> Value {
    for list in ["kinds", "metrics"] {
        let words = protocol.get_mut(list).and_then(Value::as_array_mut);
        for word in words.into_iter().flatten() {
            let rest = word.as_str().and_then(|w| w.strip_prefix("choice"));
            if let Some(rest) = rest.filter(|r| r.is_empty() || r.starts_with(": ")) {
                *word = format!("multiple_choice{rest}").into();
            }
        }
    }
    protocol
}

/// Places where two protocols differ: `path: before, now`.
pub fn differences(before: &Value, now: &Value) -> Vec<String> {
    let short = |v: Option<&Value>| {
        let text = v.unwrap_or(&Value::Null).to_string();
        match text.char_indices().nth(60) {
            Some((cut, _)) => format!("{}..", &text[..cut]),
            None => text,
        }
    };
    let mut found = Vec::new();
    compare("", ".", Some(before), Some(now), &mut |path, a, b| {
        // What is not there counts as null.
        if a.or(b).is_some_and(|v| !v.is_null()) {
            found.push(format!("{path}: {} then, {} now", short(a), short(b)));
        }
    });
    found
}

/// Hears where two values differ, and what is there.
type Difference<'a> = dyn FnMut(&str, Option<&Value>, Option<&Value>) + 'a;

/// Calls `found` with every place where two JSON values differ and what is there; the names on the
/// way to it are joined by `join`.
pub(crate) fn compare(
    path: &str,
    join: &str,
    a: Option<&Value>,
    b: Option<&Value>,
    found: &mut Difference<'_>,
) {
    match (a, b) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let at = match path {
                    "" => key.clone(),
                    _ => format!("{path}{join}{key}"),
                };
                compare(&at, join, x.get(key), y.get(key), found);
            }
        }
        _ if a == b => {}
        _ => found(path, a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn multiple_choice_was_choice() {
        let before =
            json!({"kinds": ["choice"], "metrics": ["choice: multiple choice", "text: ."]});
        let now = json!({
            "kinds": ["multiple_choice"],
            "metrics": ["multiple_choice: multiple choice", "text: ."],
        });
        assert_eq!(upgrade(before), now);
        assert_eq!(upgrade(now.clone()), now);
        let kind: ItemKind = serde_json::from_str("\"choice\"").unwrap();
        assert_eq!(kind, ItemKind::MultipleChoice);
    }

    #[test]
    fn differences_name_their_place() {
        let a = json!({"route": "model", "data": {"questions": 3, "format": "x"}, "v": 1});
        let b = json!({"route": "always", "data": {"questions": 3, "format": "x"}});
        assert_eq!(
            differences(&a, &b),
            [
                "route: \"model\" then, \"always\" now",
                "v: 1 then, null now"
            ]
        );
        assert!(differences(&a, &a).is_empty());
    }
}
