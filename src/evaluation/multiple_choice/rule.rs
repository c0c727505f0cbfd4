//! The rules by which benchmarks read an answer.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// How an answer is compared with the right option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum ChoiceRule {
    /// MVBench's rule, as in the reference implementation of its authors: the first word of the
    /// answer, without full stops, is part of the first word of the right option (`"(A)"`), or
    /// the other way round; case does not matter. An answer without any letter (empty, or `"("`)
    /// is counted right by this rule: such answers are tallied as unreadable.
    #[cfg_attr(feature = "cli", value(name = "mvbench"))]
    MvBench,
    /// Video-MME's rule, as in its evaluation script: known openings ("The best answer is") are
    /// removed, then the first capital A–D counts. Its list misses two commas, so that "Best
    /// option: C" is read as B; kept. Answers without a letter leave the denominator.
    VideoMme,
    /// MLVU's rule, as in its script: the capital before the first `)`, or an answer that is nothing
    /// but the letter. The `(` that a prompt gives does not count.
    Mlvu,
    /// The option letter at the beginning, after "Best option: (", "Answer:" and the like; anything
    /// else is wrong. For answers that follow the prompt, and stricter than both scripts.
    Letter,
}

/// Openings of Video-MME's script; two pairs are joined there by missing commas.
const VIDEO_MME_OPENINGS: [&str; 6] = [
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
];

#[allow(
    clippy::unwrap_used,
    reason = "a constant expression that a test compiles"
)]
static LETTER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)^\s*(?:(?:the\s+)?(?:best|correct)?\s*(?:option|answer|choice)\s*(?:is)?\s*:?\s*)?[(\[]?\s*([a-z])\s*(?:[)\].,:]|$)",
    )
    .unwrap()
});

impl ChoiceRule {
    /// The option letter in an answer, in upper case, or `None` where the rule sees none.
    pub fn letter(self, answer: &str) -> Option<char> {
        match self {
            Self::MvBench => answer
                .split(' ')
                .next()?
                .chars()
                .find(char::is_ascii_alphabetic)
                .map(|c| c.to_ascii_uppercase()),
            Self::VideoMme => {
                let mut text = answer.trim().to_string();
                for opening in VIDEO_MME_OPENINGS {
                    text = text.replace(opening, "");
                }
                text.chars().find(|c| ('A'..='D').contains(c))
            }
            Self::Mlvu => {
                let letter = match answer.split_once(')') {
                    Some((before, _)) => before.chars().next_back(),
                    None => {
                        let mut said = answer.trim().trim_start_matches('(').chars();
                        said.next().filter(|_| said.next().is_none())
                    }
                };
                letter.filter(char::is_ascii_uppercase)
            }
            Self::Letter => LETTER
                .captures(answer)?
                .get(1)?
                .as_str()
                .chars()
                .next()
                .map(|c| c.to_ascii_uppercase()),
        }
    }

    /// Whether `answer` is counted right where `truth` is the right option: `"(A) text"` or `"A"`.
    pub fn is_correct(self, answer: &str, truth: &str) -> bool {
        match self {
            Self::MvBench => {
                let (answer, truth) = (answer.to_lowercase(), truth.to_lowercase());
                let first = |s: &str| s.split(' ').next().unwrap_or_default().to_string();
                let (answer, truth) = (first(&answer), first(&truth));
                truth.contains(&answer.replace('.', "")) || answer.contains(&truth)
            }
            Self::VideoMme => {
                let letter = self.letter(answer);
                letter.is_some_and(|l| truth.trim() == l.to_string())
            }
            Self::Mlvu | Self::Letter => {
                let letter = self.letter(answer);
                letter.is_some() && letter == self.letter(truth)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mvbench_as_its_script() {
        let right = |a, t| ChoiceRule::MvBench.is_correct(a, t);
        for answer in [
            "(A) Ate it.",
            "(A)",
            "A",
            "a.",
            "A. Ate it",
            "(a) no",
            "(A).",
            "A)",
        ] {
            assert!(right(answer, "(A) Ate it."), "{answer}");
        }
        for answer in [
            "(B) Ate it.",
            "B",
            "Ate it",
            "The answer is (A)",
            "A, sure",
            "Best option: (A)",
        ] {
            assert!(!right(answer, "(A) Ate it."), "{answer}");
        }
        // The script's quirks: an answer of nothing, or of a bracket, is part of every option.
        assert!(right("", "(A) x") && right("(", "(B) x") && right("...", "(C) x"));
        assert_eq!(ChoiceRule::MvBench.letter("("), None);
        assert_eq!(ChoiceRule::MvBench.letter("(b) x"), Some('B'));
    }

    #[test]
    fn video_mme_as_its_script() {
        let letter = |a| ChoiceRule::VideoMme.letter(a);
        assert_eq!(letter("C. Berries."), Some('C'));
        assert_eq!(letter("The best answer is: D"), Some('D'));
        assert_eq!(letter("The answer is (B)."), Some('B'));
        assert_eq!(letter("Best option: C"), Some('B'));
        assert_eq!(letter("Answer: D"), Some('A'));
        assert_eq!(letter("the option c"), None);
        assert!(ChoiceRule::VideoMme.is_correct("C. Berries", "C"));
        assert!(!ChoiceRule::VideoMme.is_correct("", "C"));
    }

    #[test]
    fn mlvu_as_its_script() {
        let right = |a, t| ChoiceRule::Mlvu.is_correct(a, t);
        for answer in ["B) Ran.", "(B) Ran.", "B", " (B", "It is (B)", "B) or (A)"] {
            assert!(right(answer, "(B) Ran."), "{answer}");
        }
        for answer in ["", "(", ")", "b)", "B. Ran", "Ran.", "B )", "A) or B)"] {
            assert!(!right(answer, "(B) Ran."), "{answer}");
        }
        assert_eq!(ChoiceRule::Mlvu.letter("b) x"), None);
    }

    #[test]
    fn the_letter_rule_wants_a_letter_at_the_beginning() {
        let letter = |a| ChoiceRule::Letter.letter(a);
        for answer in [
            "C",
            " c.",
            "(C)",
            "(C) Berries",
            "Best option: (C)",
            "Best Option: (C",
            "Answer: C.",
            "The answer is C",
            "[c]",
            "The best answer is: (C)",
            "C, because",
        ] {
            assert_eq!(letter(answer), Some('C'), "{answer}");
        }
        for answer in ["", "(", "Cats", "I think C", "Both A and B"] {
            assert_eq!(letter(answer), None, "{answer}");
        }
        assert!(ChoiceRule::Letter.is_correct("Best option: (B) y", "(B) y"));
        assert!(!ChoiceRule::Letter.is_correct("", ""));
    }
}
