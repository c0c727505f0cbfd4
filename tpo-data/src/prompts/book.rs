//! Wordings of questions and answers per kind of annotation.
//!
//! The families are the paper's (Tables 20–23: temporal 5, tracking 10, spatial 10, referring
//! segmentation 7), in other words with the same meaning. The paper does not publish the
//! sentences around the tokens of an answer; these are ours. Highlight detection shares the
//! temporal family, as in the paper.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Ways to ask one kind of question and to answer it.
///
/// Questions may hold `{query}` and `{box}`, answers `{query}` and must hold `{call}` once: the
/// call of the head, or its answer as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Questions.
    pub questions: Vec<String>,
    /// Answers.
    pub answers: Vec<String>,
}

/// Families by name.
///
/// An annotation uses the family named like its task; otherwise `box`, `moment`, `tracking`
/// (there is a box in the question) or `segmentation`, by its kind; otherwise, for your own
/// heads, `other`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptBook {
    /// The families.
    pub families: BTreeMap<String, Family>,
}

/// (name, questions, answers).
type Entry = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const FAMILIES: [Entry; 5] = [
    (
        "box",
        &[
            "Where is {query}?",
            "Can you find {query}?",
            "Can you detect {query}?",
            "Can you locate {query}?",
            "Please find {query}.",
            "Please detect {query}.",
            "Please locate {query}.",
            "Find {query}.",
            "Detect {query}.",
            "Locate {query}.",
        ],
        &[
            "It is at {call}.",
            "Here it is: {call}.",
            "The location is {call}.",
        ],
    ),
    (
        "moment",
        &[
            "Find the part of the video that shows the following, and say at which second it \
             starts and ends: {query}",
            "Detect the video segment that matches this description and report its start and end \
             time: {query}",
            "Locate what is described here in the video and give the timestamps of its beginning \
             and its end: {query}",
            "The following sentence belongs to one moment of the video. When does that moment \
             start, and when does it end? {query}",
            "Which segment of the video fits this text? Answer with its first and last second: \
             {query}",
        ],
        &[
            "It happens in {call}.",
            "The described moment is {call}.",
            "The matching segment is {call}.",
        ],
    ),
    (
        "tracking",
        &[
            "Track the object that starts at {box}.",
            "Follow the object from its first position {box} through the video.",
            "The object is at {box} in the first frame. Where does it go?",
            "Please keep track of the object inside {box}.",
            "Monitor the object whose initial box is {box} in all frames.",
            "Trace the path of the object that is first seen at {box}.",
            "Given the initial box {box}, give the boxes of the object over time.",
            "Starting from {box}, tell where the object is in each frame.",
            "Can you track what is at {box} at the beginning of the video?",
            "Watch the object at {box} and report its sequence of boxes.",
        ],
        &[
            "Its track is {call}.",
            "The object moves along {call}.",
            "Here is its path: {call}.",
        ],
    ),
    (
        "segmentation",
        &[
            "Give the motion path of {query} in the video.",
            "Show where {query} moves in the video.",
            "Generate the tracking trajectory of {query}.",
            "Please visualise the track of {query} in this video.",
            "Show the trajectory that {query} follows in the video.",
            "Can you give the tracking path of {query}?",
            "Generate the path along which {query} moves.",
        ],
        &[
            "Its track is {call}.",
            "Here is the trajectory: {call}.",
            "The path is {call}.",
        ],
    ),
    ("other", &["{query}"], &["{call}"]),
];

impl Default for PromptBook {
    fn default() -> Self {
        let texts = |list: &[&str]| list.iter().map(|t| t.to_string()).collect();
        Self {
            families: FAMILIES
                .iter()
                .map(|(name, questions, answers)| {
                    let family = Family {
                        questions: texts(questions),
                        answers: texts(answers),
                    };
                    (name.to_string(), family)
                })
                .collect(),
        }
    }
}

impl PromptBook {
    /// Checks every family.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a family without questions or answers, an answer without
    /// exactly one `{call}`, a question with neither `{query}` nor `{box}`, or an unknown slot.
    pub fn validate(&self) -> Result<(), DataError> {
        let fail = |name: &str, why: String| DataError::InvalidConfig {
            what: "prompt book",
            reason: format!("family `{name}`: {why}"),
        };
        for (name, family) in &self.families {
            if family.questions.is_empty() || family.answers.is_empty() {
                return Err(fail(name, "it needs questions and answers".into()));
            }
            for q in &family.questions {
                if !q.contains("{query}") && !q.contains("{box}") {
                    return Err(fail(
                        name,
                        format!("`{q}` has neither {{query}} nor {{box}}"),
                    ));
                }
                if let Some(slot) = unknown_slot(q, &["query", "box"]) {
                    return Err(fail(name, format!("unknown slot {{{slot}}} in `{q}`")));
                }
            }
            for a in &family.answers {
                if a.matches("{call}").count() != 1 {
                    return Err(fail(name, format!("`{a}` must hold {{call}} once")));
                }
                if let Some(slot) = unknown_slot(a, &["query", "call"]) {
                    return Err(fail(name, format!("unknown slot {{{slot}}} in `{a}`")));
                }
            }
        }
        Ok(())
    }
}

/// The first `{name}` that is none of `known`.
fn unknown_slot<'a>(text: &'a str, known: &[&str]) -> Option<&'a str> {
    text.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
        .find(|name| !known.contains(name))
}

/// Fills the slots `{name}` of a template in one pass, so that braces in a value are text.
pub fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let tail = &rest[open..];
        let found = slots.iter().find(|(name, _)| {
            tail[1..]
                .strip_prefix(name)
                .is_some_and(|t| t.starts_with('}'))
        });
        match found {
            Some((name, value)) => {
                out.push_str(value);
                rest = &tail[name.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &tail[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_counts_its_templates() {
        let book = PromptBook::default();
        book.validate().unwrap();
        let count = |name: &str| book.families[name].questions.len();
        assert_eq!(
            ["moment", "tracking", "box", "segmentation"].map(count),
            [5, 10, 10, 7]
        );
    }

    #[test]
    fn filling_is_one_pass() {
        let slots = [("query", "a {box} {query}"), ("box", "B")];
        assert_eq!(
            fill("{query}: {box} {x} {", &slots),
            "a {box} {query}: B {x} {"
        );
    }

    #[test]
    fn bad_families_are_errors() {
        for (q, a) in [
            ("Where?", "{call}"),
            ("{query} {what}", "{call}"),
            ("{query}", "no"),
            ("{query}", "{call} {call}"),
        ] {
            let mut book = PromptBook::default();
            let family = Family {
                questions: vec![q.into()],
                answers: vec![a.into()],
            };
            book.families.insert("x".into(), family);
            assert!(book.validate().is_err(), "{q} {a}");
        }
    }
}
