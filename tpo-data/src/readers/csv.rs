//! Comma-separated values with quotes (RFC 4180), as far as the annotation files need it.

use std::collections::HashMap;
use std::path::Path;

use super::{bad, read_text};
use crate::DataError;

/// A table with named columns.
pub(super) struct Table {
    columns: HashMap<String, usize>,
    /// Rows with the line they begin on.
    pub(super) rows: Vec<(usize, Vec<String>)>,
}

impl Table {
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let mut rows = split(&read_text(path)?).into_iter();
        let (_, header) = rows
            .next()
            .ok_or_else(|| bad(path, "line 1", "no header"))?;
        Ok(Self {
            columns: header
                .into_iter()
                .enumerate()
                .map(|(i, name)| (name.trim().to_string(), i))
                .collect(),
            rows: rows.collect(),
        })
    }

    /// Column of the first of `names` that exists.
    pub(super) fn column(&self, path: &Path, names: &[&str]) -> Result<usize, DataError> {
        names
            .iter()
            .find_map(|n| self.columns.get(*n).copied())
            .ok_or_else(|| bad(path, "line 1", format!("no column {}", names.join(" or "))))
    }
}

/// Rows of fields; a quoted field may hold commas, doubled quotes and line ends.
pub(super) fn split(text: &str) -> Vec<(usize, Vec<String>)> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut line, mut first_line) = (false, 1, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                if row != [""] {
                    rows.push((first_line, std::mem::take(&mut row)));
                }
                row.clear();
                first_line = line;
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push((first_line, row));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_by_hand() {
        let rows = split("a,b\r\n\"x, \"\"y\"\"\nz\",2\n\n,\n3,4");
        let fields: Vec<(usize, Vec<&str>)> = rows
            .iter()
            .map(|(n, r)| (*n, r.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            fields,
            [
                (1, vec!["a", "b"]),
                (2, vec!["x, \"y\"\nz", "2"]),
                (5, vec!["", ""]),
                (6, vec!["3", "4"]),
            ]
        );
    }
}
