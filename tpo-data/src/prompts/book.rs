//! Wordings of questions and answers per kind of annotation.
//!
//! The families are the paper's (Tables 20–23: temporal 5, tracking 10, spatial 10, referring
//! segmentation 7), in other words with the same meaning. The paper does not publish the
//! sentences around the tokens of an answer; these are ours. Highlight detection shares the
//! temporal family, as in the paper.

/// Ways to ask one kind of question and to answer it.
///
/// Questions hold `{query}` or `{box}`, answers hold `{call}` once: the call of the head, or its answer
/// as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// Questions.
    pub questions: &'static [&'static str],
    /// Answers.
    pub answers: &'static [&'static str],
}

/// All families.
pub const FAMILIES: [Family; 5] = [BOX, MOMENT, TRACKING, SEGMENTATION, OTHER];

/// Boxes.
pub(super) const BOX: Family = Family {
    name: "box",
    questions: &[
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
    answers: &[
        "It is at {call}.",
        "Here it is: {call}.",
        "The location is {call}.",
    ],
};

/// Moments, with or without ratings.
pub(super) const MOMENT: Family = Family {
    name: "moment",
    questions: &[
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
    answers: &[
        "It happens in {call}.",
        "The described moment is {call}.",
        "The matching segment is {call}.",
    ],
};

/// Tracks of what is in a box of the question.
pub(super) const TRACKING: Family = Family {
    name: "tracking",
    questions: &[
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
    answers: &[
        "Its track is {call}.",
        "The object moves along {call}.",
        "Here is its path: {call}.",
    ],
};

/// Tracks of what is named.
pub(super) const SEGMENTATION: Family = Family {
    name: "segmentation",
    questions: &[
        "Give the motion path of {query} in the video.",
        "Show where {query} moves in the video.",
        "Generate the tracking trajectory of {query}.",
        "Please visualise the track of {query} in this video.",
        "Show the trajectory that {query} follows in the video.",
        "Can you give the tracking path of {query}?",
        "Generate the path along which {query} moves.",
    ],
    answers: &[
        "Its track is {call}.",
        "Here is the trajectory: {call}.",
        "The path is {call}.",
    ],
};

/// Your own tasks.
pub(super) const OTHER: Family = Family {
    name: "other",
    questions: &["{query}"],
    answers: &["{call}"],
};

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
        let count = |family: Family| family.questions.len();
        assert_eq!(
            [MOMENT, TRACKING, BOX, SEGMENTATION].map(count),
            [5, 10, 10, 7]
        );
    }

    #[test]
    fn every_question_has_its_slot_and_every_answer_its_call() {
        for Family {
            name,
            questions,
            answers,
        } in FAMILIES
        {
            let slot = if name == "tracking" {
                "{box}"
            } else {
                "{query}"
            };
            for question in questions {
                assert_eq!(question.matches('{').count(), 1, "{question}");
                assert!(question.contains(slot), "{question}");
            }
            for answer in answers {
                assert_eq!(answer.matches('{').count(), 1, "{answer}");
                assert!(answer.contains("{call}"), "{answer}");
            }
        }
    }

    #[test]
    fn filling_is_one_pass() {
        let slots = [("query", "a {box} {query}"), ("box", "B")];
        assert_eq!(
            fill("{query}: {box} {x} {", &slots),
            "a {box} {query}: B {x} {"
        );
    }
}
