//! How questions are worded. Everything here is part of a run's protocol.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tpo_data::prompts::{FAMILIES, fill};

use super::item::Ask;

/// Most tokens of an answer to the published prompts (reference: `max_new_tokens` 200).
pub const PUBLISHED_NEW_TOKENS: usize = 200;

/// Wordings of multiple choice by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PromptProtocol {
    /// As VideoChat-TPO was evaluated: `[/INST]Best Option: (`, no system text
    Published,
    /// As VideoChat2 was evaluated on MVBench: a system text, `[/INST] Best option:(`
    #[cfg_attr(feature = "cli", value(name = "videochat2"))]
    VideoChat2,
    /// As MLVU's script asks: a system text, `Best Option: (`
    Mlvu,
    /// As LLaVA's evaluations ask: `A. ..`, `Answer with the option's letter from the given choices directly.`
    Direct,
    /// As this project's training data words it
    Plain,
}

/// Wordings of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// In front of multiple-choice prompts.
    pub choice_system: String,
    /// A multiple-choice question; slots `{question}` and `{options}`, one option a line as
    /// `(A) text`.
    pub choice_question: String,
    /// Whether an option is `A. text` instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub choice_dotted: bool,
    /// The beginning of its answer, given to the model.
    pub choice_prefix: String,
    /// Whether that follows the question without a space.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub choice_joined: bool,
    /// Put in front of the first line of what the model says, before it is read.
    pub choice_return: String,
    /// Questions of annotations without one, by [family](FAMILIES): `box`, `moment`,
    /// `tracking`, `segmentation`; slots `{query}` and `{box}`.
    pub templates: BTreeMap<String, String>,
}

impl Prompts {
    /// The wordings of this name.
    pub fn of(protocol: PromptProtocol) -> Self {
        match protocol {
            PromptProtocol::Published => Self::published(),
            PromptProtocol::VideoChat2 => Self::videochat2(),
            PromptProtocol::Mlvu => Self::mlvu(),
            PromptProtocol::Direct => Self::direct(),
            PromptProtocol::Plain => Self::plain(),
        }
    }

    /// The multiple-choice prompt of VideoChat-TPO's published evaluation, `generate_answer`: the
    /// answer begins right after `[/INST]`, and there is no system text. Question and options are
    /// worded as VideoChat2's.
    pub fn published() -> Self {
        Self {
            choice_system: String::new(),
            choice_prefix: "Best Option: (".into(),
            choice_joined: true,
            ..Self::videochat2()
        }
    }

    /// The multiple-choice prompt of VideoChat2's MVBench evaluation.
    pub fn videochat2() -> Self {
        Self {
            choice_system: "Carefully watch the video and pay attention to the cause and sequence \
                            of events, the detail and movement of objects, and the action and pose \
                            of persons. Based on your observations, select the best option that \
                            accurately addresses the question.\n"
                .into(),
            choice_question:
                "Question: {question}\nOptions:\n{options}\nOnly give the best option.".into(),
            choice_prefix: "Best option:(".into(),
            choice_return: "(".into(),
            ..Self::plain()
        }
    }

    /// The multiple-choice prompt of MLVU's script; question and options are worded as VideoChat2's.
    pub fn mlvu() -> Self {
        Self {
            choice_system:
                "Carefully watch this video and pay attention to every detail. Based on \
                            your observations, select the best option that accurately addresses \
                            the question.\n"
                    .into(),
            choice_prefix: "Best Option: (".into(),
            ..Self::videochat2()
        }
    }

    /// Multiple choice as LLaVA was trained to read it, and LLaVA-OneVision was evaluated on image
    /// benchmarks and Perception Test.
    pub fn direct() -> Self {
        Self {
            choice_question:
                "{question}\n{options}\nAnswer with the option's letter from the given \
                              choices directly."
                    .into(),
            choice_dotted: true,
            ..Self::plain()
        }
    }

    /// Multiple choice as this project's training data words it; the first question of each of its
    /// [families](FAMILIES).
    pub fn plain() -> Self {
        let templates = FAMILIES.iter().filter_map(|family| {
            let first = family.questions.first()?;
            Some((family.name.to_string(), first.to_string()))
        });
        Self {
            choice_system: String::new(),
            choice_question: "{question}\nOptions:\n{options}".into(),
            choice_dotted: false,
            choice_prefix: String::new(),
            choice_joined: false,
            choice_return: String::new(),
            templates: templates.collect(),
        }
    }

    /// A multiple-choice question.
    pub fn multiple_choice(&self, question: &str, options: &[String]) -> Ask {
        let lines: Vec<String> = ('A'..='Z')
            .zip(options)
            .map(|(letter, option)| {
                if self.choice_dotted {
                    format!("{letter}. {option}")
                } else {
                    format!("({letter}) {option}")
                }
            })
            .collect();
        let slots = [("question", question), ("options", &lines.join("\n"))];
        Ask {
            text: fill(&self.choice_question, &slots),
            system: self.choice_system.clone(),
            answer_prefix: self.choice_prefix.clone(),
            answer_joined: self.choice_joined,
            ..Ask::default()
        }
    }

    /// The answer to a multiple-choice question as the benchmark reads it.
    pub fn choice_answer(&self, said: &str) -> String {
        let line = said.trim().split('\n').next().unwrap_or_default();
        format!("{}{line}", self.choice_return)
    }

    /// The question of a family about `query`; `{box}` stays. `None` without such a family.
    pub fn question(&self, family: &str, query: &str) -> Option<String> {
        Some(fill(self.templates.get(family)?, &[("query", query)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_by_hand() {
        let options = ["Ran {question}.".to_string(), "Sat.".to_string()];
        let asked = Prompts::videochat2().multiple_choice("What?", &options);
        let expected = "Question: What?\nOptions:\n(A) Ran {question}.\n(B) Sat.\nOnly give the \
                        best option.";
        assert_eq!(asked.text, expected);
        let plain = Prompts::plain();
        let asked = plain.multiple_choice("W?", &options[1..]);
        assert_eq!(asked.text, "W?\nOptions:\n(A) Sat.");
        assert_eq!(
            Prompts::published().choice_answer(" B) Sat.\nIt sat."),
            "(B) Sat."
        );
        assert_eq!(plain.choice_answer("(B) Sat."), "(B) Sat.");
        let asked = Prompts::direct().multiple_choice("Which?", &options);
        let expected = "Which?\nA. Ran {question}.\nB. Sat.\nAnswer with the option's letter from \
                        the given choices directly.";
        assert_eq!(
            (asked.text.as_str(), asked.answer_prefix.as_str()),
            (expected, "")
        );
        assert_eq!(
            plain.question("box", "a {box}").unwrap(),
            "Where is a {box}?"
        );
        assert_eq!(plain.question("none", "a"), None);
    }
}
