//! Everything that decides the numbers of a run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::AnswerForm;
use super::item::ItemKind;
use super::prompts::Prompts;

/// Version of what this module does with answers; part of every protocol.
pub const VERSION: u32 = 1;

/// Who calls the head of a question whose task is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Places where two protocols differ: `path: before, now`.
pub fn differences(before: &Value, now: &Value) -> Vec<String> {
    fn walk(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => {
                let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let at = match path {
                        "" => key.clone(),
                        _ => format!("{path}.{key}"),
                    };
                    let of = |v: &serde_json::Map<String, Value>| {
                        v.get(key).cloned().unwrap_or(Value::Null)
                    };
                    walk(&at, &of(a), &of(b), found);
                }
            }
            (a, b) if a == b => {}
            (a, b) => {
                let short = |v: &Value| {
                    let text = v.to_string();
                    match text.char_indices().nth(60) {
                        Some((cut, _)) => format!("{}..", &text[..cut]),
                        None => text,
                    }
                };
                found.push(format!("{path}: {} then, {} now", short(a), short(b)));
            }
        }
    }
    let mut found = Vec::new();
    walk("", before, now, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
