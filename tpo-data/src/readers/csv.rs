//! Tables in files of comma-separated values.

use std::collections::HashMap;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Trim};

use super::{bad, read_text};
use crate::DataError;

/// A table with named columns.
pub(super) struct Table {
    columns: HashMap<String, usize>,
    /// Rows with the line they begin on; their fields have no white space around them.
    pub(super) rows: Vec<(u64, StringRecord)>,
}

impl Table {
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let text = read_text(path)?;
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        // Rows may be shorter than the header: a reader says which field it misses.
        let mut builder = ReaderBuilder::new();
        let builder = builder.flexible(true).trim(Trim::All);
        let mut reader = builder.from_reader(text.as_bytes());
        let failed = |e: csv::Error| bad(path, "table", e.to_string());
        let header = reader.headers().map_err(failed)?;
        if header.is_empty() {
            return Err(bad(path, "line 1", "no header"));
        }
        let columns = header.iter().map(String::from).zip(0..).collect();
        let rows = reader.records().map(|row| -> Result<_, DataError> {
            let row = row.map_err(failed)?;
            Ok((row.position().map_or(0, csv::Position::line), row))
        });
        Ok(Self {
            columns,
            rows: rows.collect::<Result<_, _>>()?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let text = "\u{FEFF} a,b\r\n\"x, \"\"y\"\"\nz\",2 \n,\n3";
        std::fs::write(&path, text).unwrap();
        let table = Table::read(&path).unwrap();
        let fields: Vec<(u64, Vec<&str>)> = table
            .rows
            .iter()
            .map(|(n, r)| (*n, r.iter().collect()))
            .collect();
        assert_eq!(
            fields,
            [
                (2, vec!["x, \"y\"\nz", "2"]),
                (4, vec!["", ""]),
                (5, vec!["3"]),
            ]
        );
        assert_eq!(table.column(&path, &["c", "a"]).unwrap(), 0);
        assert!(table.column(&path, &["c"]).is_err());
        std::fs::write(&path, "").unwrap();
        assert!(Table::read(&path).is_err());
    }
}
