//! Predictions of a run, one JSON line each, written as they come.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tpo_data::schema::LineReader;

use super::answer::{MediaInfo, Predicted};
use super::item::{Item, ItemKind};
use crate::error::{Error, Result};
use crate::files::write_whole;

/// Longest row that is read back; masks of a long video in one row.
const MAX_ROW_BYTES: usize = 1 << 30;

/// What a model answered to one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictionRow {
    /// The question.
    pub id: String,
    /// What it asks for.
    pub kind: ItemKind,
    /// The text of the question as it was asked.
    pub question: String,
    /// The text of the answer.
    #[serde(default)]
    pub answer: String,
    /// Tasks whose heads answered, in order.
    #[serde(default)]
    pub called: Vec<String>,
    /// What was read out of the answer; `null` when nothing could be.
    #[serde(default)]
    pub predicted: Option<Predicted>,
    /// What was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaInfo>,
    /// Why there is no answer: unreadable media, a prompt that is too long, towers that the head of the
    /// question needs and nobody gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PredictionRow {
    /// The question without an answer.
    pub(super) fn new(item: &Item) -> Self {
        Self {
            id: item.id.clone(),
            kind: item.kind(),
            question: item.ask.text.clone(),
            answer: String::new(),
            called: Vec::new(),
            predicted: None,
            media: None,
            error: None,
        }
    }
}

/// A file of rows that is appended to.
#[derive(Debug)]
pub(super) struct RowLog {
    path: PathBuf,
    file: File,
    pub rows: Vec<PredictionRow>,
    /// Rows that were replaced and are not in the file yet.
    replaced: bool,
}

impl RowLog {
    /// Opens the log for `items` and reads the rows it has. A line that was not written to its
    /// end is cut off.
    pub fn open(path: &Path, items: &[Item]) -> Result<Self> {
        let io = Error::evaluation_io(path);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(&io)?;
        let length = file.metadata().map_err(&io)?.len();
        let mut rows: Vec<PredictionRow> = Vec::new();
        let mut whole = 0;
        let reader = BufReader::with_capacity(1 << 18, &file);
        let mut lines = LineReader::new(reader, MAX_ROW_BYTES);
        while let Some(line) = lines.next_line().map_err(&io)? {
            let wrong = |why: String| Error::Evaluation {
                path: path.into(),
                why: format!("line {}: {why}; start over with --restart", line.number),
            };
            let Some(bytes) = line.bytes else {
                return Err(wrong("too long for a prediction".into()));
            };
            let end = line.offset + bytes.len() as u64 + 1;
            if end > length {
                break;
            }
            let row: PredictionRow =
                serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
            match items.get(rows.len()) {
                Some(item) if (item.id.as_str(), item.kind()) == (&row.id, row.kind) => {}
                Some(item) => {
                    return Err(wrong(format!(
                        "is the answer to `{}`, expected `{}`",
                        row.id, item.id
                    )));
                }
                None => return Err(wrong("there are more answers than questions".into())),
            }
            rows.push(row);
            whole = end;
        }
        if whole < length {
            file.set_len(whole).map_err(&io)?;
        }
        Ok(Self {
            path: path.into(),
            file,
            rows,
            replaced: false,
        })
    }

    /// Numbers of the questions without an answer: those that failed, then those after the last row.
    pub fn unanswered(&self, items: usize) -> Vec<usize> {
        let failed = self.rows.iter().enumerate();
        let failed = failed.filter_map(|(i, row)| row.error.is_some().then_some(i));
        failed.chain(self.rows.len()..items).collect()
    }

    /// Puts the row of a question: in place of one that failed, or after the last, which is written
    /// and handed to the system.
    pub fn put(&mut self, at: usize, row: PredictionRow) -> Result<()> {
        if let Some(failed) = self.rows.get_mut(at) {
            self.replaced |= *failed != row;
            *failed = row;
            return Ok(());
        }
        self.settle()?;
        let io = Error::evaluation_io(&self.path);
        let mut line = serde_json::to_vec(&row).map_err(|e| io(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(&io)?;
        self.file.flush().map_err(&io)?;
        self.rows.push(row);
        Ok(())
    }

    /// Writes replaced rows: the whole file anew, or not at all.
    pub fn settle(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.replaced) {
            return Ok(());
        }
        let io = Error::evaluation_io(&self.path);
        write_whole(&self.path, |out| write_rows(out, &self.rows)).map_err(&io)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = file.map_err(&io)?;
        Ok(())
    }
}

/// Writes rows as JSON lines.
pub(super) fn write_rows<T: Serialize>(out: &mut impl Write, rows: &[T]) -> io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut *out, row)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
