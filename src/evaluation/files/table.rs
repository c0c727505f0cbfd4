//! Files of one record per line: read line by line, with errors that name file and line.
//!
//! The evaluators read predictions and ground truth through [`Table`]. A [`Record`] says how its
//! samples are told apart and what its values must fulfil; everything else (broken JSON, broken
//! UTF-8, endless lines, fields nobody knows, a sample that comes twice) is dealt with here.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::hash::Hash;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tpo_data::schema::LineReader;

use crate::error::{Error, Result};

/// Why a record cannot be used, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub why: String,
    /// What to do.
    pub hint: &'static str,
}

impl Problem {
    /// A problem and what to do about it.
    pub fn new(why: impl Into<String>, hint: &'static str) -> Self {
        Self {
            why: why.into(),
            hint,
        }
    }
}

/// One line of a file.
pub trait Record: DeserializeOwned {
    /// What tells samples apart.
    type Id: Eq + Hash + Clone + Display;

    /// The sample this line is about.
    fn id(&self) -> Self::Id;

    /// What the format cannot express: order, range, finiteness.
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// How to treat lines that are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadOptions {
    /// Lines longer than this are refused, in bytes; they are never held in memory.
    pub max_line_bytes: usize,
    /// Skip and list lines that cannot be used, instead of stopping at the first.
    pub skip_bad_rows: bool,
    /// Refuse fields the format does not have, instead of listing them.
    pub deny_unknown_fields: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            max_line_bytes: 64 << 20,
            skip_bad_rows: false,
            deny_unknown_fields: false,
        }
    }
}

/// A field that rows have and their format has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownField {
    /// Path of the field.
    pub name: String,
    /// Line of its first appearance, from 1.
    pub first_line: usize,
    /// Rows that have it.
    pub rows: usize,
}

/// The rows of a file, each sample once, in the file's order.
#[derive(Debug)]
pub struct Table<T: Record> {
    /// Name of the file, for messages.
    pub file: String,
    rows: Vec<(usize, T)>,
    by_id: HashMap<T::Id, usize>,
    /// Fields that were ignored.
    pub unknown_fields: Vec<UnknownField>,
    /// Lines that were skipped, under [`ReadOptions::skip_bad_rows`].
    pub skipped: Vec<Error>,
}

impl<T: Record> Table<T> {
    /// Reads a file of JSON lines. Blank lines are allowed, a byte order mark as well.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::file(path))?;
        let name = path.display().to_string();
        Self::from_reader(BufReader::with_capacity(1 << 16, file), &name, options)
    }

    /// As [`Table::read`], from any source; `name` stands for the file in messages.
    pub fn from_reader(reader: impl BufRead, name: &str, options: &ReadOptions) -> Result<Self> {
        let mut table = Self::empty(name);
        let mut unknown: BTreeMap<String, UnknownField> = BTreeMap::new();
        let mut lines = LineReader::new(reader, options.max_line_bytes);
        let io = Error::file(Path::new(name));
        while let Some(line) = lines.next_line().map_err(&io)? {
            let number = line.number as usize;
            match table.line(line.bytes, number, options, &mut unknown) {
                Ok(()) => {}
                Err(e) if options.skip_bad_rows => table.skipped.push(e),
                Err(e) => return Err(e),
            }
        }
        table.unknown_fields = unknown.into_values().collect();
        Ok(table)
    }

    /// Rows in memory, as if they were the lines of a file.
    pub(crate) fn from_rows(name: &str, rows: Vec<T>) -> Result<Self> {
        let mut table = Self::empty(name);
        for (i, row) in rows.into_iter().enumerate() {
            table.push(i + 1, row)?;
        }
        Ok(table)
    }

    fn empty(name: &str) -> Self {
        Self {
            file: name.into(),
            rows: Vec::new(),
            by_id: HashMap::new(),
            unknown_fields: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads a line; `None` for one that is too long.
    fn line(
        &mut self,
        bytes: Option<&[u8]>,
        line: usize,
        options: &ReadOptions,
        unknown: &mut BTreeMap<String, UnknownField>,
    ) -> Result<()> {
        let Some(bytes) = bytes else {
            let problem = Problem::new(
                format!("the line is longer than {} bytes", options.max_line_bytes),
                "a row is one sample on one line; raise the limit if it is right",
            );
            return Err(self.bad(line, problem));
        };
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let why = format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1);
            self.bad(line, Problem::new(why, "write the file as UTF-8"))
        })?;
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) if line == 1 => rest,
            _ => text,
        };
        if text.trim().is_empty() {
            return Ok(());
        }
        let mut ignored = Vec::new();
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed = serde_ignored::deserialize(&mut json, |path| ignored.push(path.to_string()));
        let record: T = parsed
            .and_then(|record| json.end().map(|()| record))
            .map_err(|e| self.bad(line, json_problem(&e, text)))?;
        if let (true, Some(field)) = (options.deny_unknown_fields, ignored.first()) {
            let problem = Problem::new(
                format!("the format has no field `{field}`"),
                "remove it, correct its name, or read without strict",
            );
            return Err(self.bad(line, problem));
        }
        self.push(line, record)?;
        for name in ignored {
            unknown
                .entry(name.clone())
                .or_insert(UnknownField {
                    name,
                    first_line: line,
                    rows: 0,
                })
                .rows += 1;
        }
        Ok(())
    }

    fn push(&mut self, line: usize, record: T) -> Result<()> {
        record.check().map_err(|problem| self.bad(line, problem))?;
        let id = record.id();
        if let Some(first) = self.by_id.get(&id) {
            let first = self.rows[*first].0;
            let problem = Problem::new(
                format!("sample {id} is already on line {first}"),
                "keep one of them",
            );
            return Err(self.bad(line, problem));
        }
        self.by_id.insert(id, self.rows.len());
        self.rows.push((line, record));
        Ok(())
    }

    fn bad(&self, line: usize, problem: Problem) -> Error {
        Error::Row {
            file: self.file.clone(),
            line,
            why: problem.why,
            hint: problem.hint.into(),
        }
    }

    /// An error about the row of a sample, for rules that need more than the row itself.
    pub fn problem(&self, id: &T::Id, problem: Problem) -> Error {
        let line = self.by_id.get(id).map_or(0, |i| self.rows[*i].0);
        self.bad(line, problem)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().map(|(_, r)| r)
    }

    /// The row of a sample.
    pub fn get(&self, id: &T::Id) -> Option<&T> {
        self.by_id.get(id).map(|i| &self.rows[*i].1)
    }

    /// Which samples both tables have, and which only one of them.
    ///
    /// # Errors
    /// [`Error::Unmatched`] under `strict` unless every sample has its counterpart.
    pub fn compare<U: Record<Id = T::Id>>(
        &self,
        truth: &Table<U>,
        strict: bool,
    ) -> Result<Matched> {
        let without_truth = self.only(|id| truth.get(id).is_none());
        let matched = Matched {
            matched: self.len() - without_truth.len(),
            without_prediction: truth.only(|id| self.get(id).is_none()),
            without_truth,
        };
        if strict {
            matched.require_complete(&self.file, &truth.file)?;
        }
        Ok(matched)
    }

    fn only(&self, wanted: impl Fn(&T::Id) -> bool) -> Vec<String> {
        let ids = self.iter().map(Record::id).filter(wanted);
        ids.map(|id| id.to_string()).collect()
    }
}

/// Which samples of predictions and ground truth belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// Samples both sides have: these are scored.
    pub matched: usize,
    /// Samples of the ground truth nobody predicted.
    pub without_prediction: Vec<String>,
    /// Predictions without ground truth.
    pub without_truth: Vec<String>,
}

impl Matched {
    /// Whether every sample has its counterpart.
    pub fn is_complete(&self) -> bool {
        self.without_prediction.is_empty() && self.without_truth.is_empty()
    }

    /// An error unless every sample has its counterpart.
    pub fn require_complete(&self, predictions: &str, truth: &str) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let first = |ids: &[String]| ids.first().cloned().unwrap_or_else(|| "none".into());
        Err(Error::Unmatched {
            predictions: predictions.into(),
            truth: truth.into(),
            matched: self.matched,
            without_prediction: self.without_prediction.len(),
            first_without_prediction: first(&self.without_prediction),
            without_truth: self.without_truth.len(),
            first_without_truth: first(&self.without_truth),
        })
    }
}

/// The identity of a sample in files that number or name them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged, expecting = "an id must be an integer or a string")]
pub enum SampleId {
    /// A number.
    Number(i64),
    /// A name.
    Name(String),
}

impl Display for SampleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

/// Reads a file that is one JSON value; `hint` says what it must be.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, hint: &str) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::file(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Row {
        file: path.display().to_string(),
        line: e.line(),
        why: e.to_string(),
        hint: hint.into(),
    })
}

/// Words for a JSON error of one line.
fn json_problem(error: &serde_json::Error, text: &str) -> Problem {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    let why = format!("column {}: {message}", error.column());
    if error.is_data() {
        return Problem::new(
            why,
            "correct the field; the format's fields are in the help",
        );
    }
    let hint = if text.contains("NaN") || text.contains("Infinity") {
        "JSON has no NaN or Infinity: a score was not finite when the file was written"
    } else if text.trim_start().starts_with('[') {
        "a row is one object on one line; write a list as one line per element"
    } else if error.is_eof() {
        "the row is cut off; write it again"
    } else {
        "a row is one JSON object on one line"
    };
    Problem::new(why, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        qid: SampleId,
        score: f64,
    }
    impl Record for Sample {
        type Id = SampleId;
        fn id(&self) -> SampleId {
            self.qid.clone()
        }
        fn check(&self) -> Result<(), Problem> {
            if self.score < 0.0 {
                return Err(Problem::new("negative", "be positive"));
            }
            Ok(())
        }
    }

    fn read(bytes: &[u8], options: &ReadOptions) -> Result<Table<Sample>> {
        Table::from_reader(BufReader::with_capacity(7, bytes), "f.jsonl", options)
    }

    fn line_of(error: &Error) -> usize {
        match error {
            Error::Row { line, .. } => *line,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn rows_are_read_in_order_with_blank_lines_and_a_mark() {
        let text =
            b"\xef\xbb\xbf{\"qid\":1,\"score\":2}\r\n\n  \n{\"qid\":\"a\",\"score\":1,\"x\":[1]}";
        let table = read(text, &ReadOptions::default()).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table.get(&SampleId::Name("a".into())).unwrap().score, 1.0);
        assert_eq!(
            table.unknown_fields,
            [UnknownField {
                name: "x".into(),
                first_line: 4,
                rows: 1
            }]
        );
    }

    #[test]
    fn every_broken_line_is_an_error_with_its_number() {
        let good = b"{\"qid\":1,\"score\":2}\n".as_slice();
        for bad in [
            b"{\"qid\":2,\"score\":NaN}".as_slice(),
            b"{\"qid\":2,\"score\":1e999}",
            b"{\"qid\":2,\"score\":-1}",
            b"{\"qid\":1,\"score\":1}",
            b"{\"qid\":2.5,\"score\":1}",
            b"{\"qid\":2}",
            b"{\"qid\":2,\"score\":1} x",
            b"{\"qid\":2,\"score\":\"\xff\"}",
            b"{\"qid\":2,\"sc",
            b"[1]",
            b"\0\0",
        ] {
            let text = [good, b"\n", bad, b"\n{\"qid\":9,\"score\":2}\n"].concat();
            let error = read(&text, &ReadOptions::default()).unwrap_err();
            assert_eq!(line_of(&error), 3, "{error}");
            let skip = ReadOptions {
                skip_bad_rows: true,
                ..Default::default()
            };
            let table = read(&text, &skip).unwrap();
            assert_eq!((table.len(), table.skipped.len()), (2, 1), "{error}");
        }
    }

    #[test]
    fn long_lines_are_passed_over_and_not_held() {
        let long = format!("{{\"qid\":2,\"score\":{}}}\n", "1".repeat(500));
        let text = format!("{long}{{\"qid\":3,\"score\":1}}\n");
        let options = ReadOptions {
            max_line_bytes: 100,
            skip_bad_rows: true,
            ..Default::default()
        };
        let table = read(text.as_bytes(), &options).unwrap();
        assert_eq!((table.len(), line_of(&table.skipped[0])), (1, 1));
        // A line of exactly the limit with its line feed is fine.
        let exact = "{\"qid\":3,\"score\":1}\n";
        let options = ReadOptions {
            max_line_bytes: exact.len() - 1,
            ..Default::default()
        };
        assert_eq!(read(exact.as_bytes(), &options).unwrap().len(), 1);
    }

    #[test]
    fn strictness_and_comparison() {
        let strict = ReadOptions {
            deny_unknown_fields: true,
            ..Default::default()
        };
        assert!(read(b"{\"qid\":1,\"score\":1,\"z\":0}", &strict).is_err());
        let a = read(b"{\"qid\":1,\"score\":1}\n{\"qid\":2,\"score\":1}", &strict).unwrap();
        let b = read(b"{\"qid\":2,\"score\":1}\n{\"qid\":3,\"score\":1}", &strict).unwrap();
        let matched = a.compare(&b, false).unwrap();
        assert_eq!(
            matched,
            Matched {
                matched: 1,
                without_prediction: vec!["3".into()],
                without_truth: vec!["1".into()]
            }
        );
        let error = a.compare(&b, true).unwrap_err().to_string();
        assert!(
            error.contains("first: 3") && error.contains("first: 1"),
            "{error}"
        );
        assert!(a.compare(&a, true).is_ok());
    }
}
