//! Marks in texts of a row: `<task:NAME>` in an answer, `<box>` in a question.
//!
//! They belong to the data, not to a model: which tokens of the vocabulary they become is
//! decided when a prompt is written.

/// Placeholder of the next box of a question.
pub const BOX_MARK: &str = "<box>";

const TASK_OPEN: &str = "<task:";

/// A mark in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark<'a> {
    /// `<task:NAME>`.
    Task(&'a str),
    /// `<box>`.
    Box,
}

/// The marks of a text in order, each with its byte range. A name is letters, digits, `_`, `-`
/// and `.`; anything else between the brackets is text.
pub fn marks(text: &str) -> Vec<(std::ops::Range<usize>, Mark<'_>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].find('<').map(|i| at + i) {
        let rest = &text[open..];
        if rest.starts_with(BOX_MARK) {
            found.push((open..open + BOX_MARK.len(), Mark::Box));
            at = open + BOX_MARK.len();
            continue;
        }
        let name = rest
            .strip_prefix(TASK_OPEN)
            .and_then(|r| r.find('>').map(|end| &r[..end]))
            .filter(|n| {
                let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
                !n.is_empty() && n.chars().all(fits)
            });
        match name {
            Some(name) => {
                let end = open + TASK_OPEN.len() + name.len() + 1;
                found.push((open..end, Mark::Task(name)));
                at = end;
            }
            None => at = open + 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_by_hand() {
        let text = "a <box> <task:mask>é<task:> <task:a b><<task:x-1.y>";
        let found: Vec<_> = marks(text)
            .into_iter()
            .map(|(r, m)| (&text[r], m))
            .collect();
        assert_eq!(
            found,
            [
                ("<box>", Mark::Box),
                ("<task:mask>", Mark::Task("mask")),
                ("<task:x-1.y>", Mark::Task("x-1.y")),
            ]
        );
    }
}
