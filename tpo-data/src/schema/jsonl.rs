//! Streaming JSON lines: one row at a time, every fault with its line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::sample::Sample;
use super::validate::Problem;
use crate::DataError;

/// Bounds on one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowLimits {
    /// Longest line in bytes. Default 8 MiB: a track of 500 masks of a crowded scene is below 1.
    pub max_line_bytes: usize,
}

impl Default for RowLimits {
    fn default() -> Self {
        Self {
            max_line_bytes: 8 << 20,
        }
    }
}

/// A bad row: which, and why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}:{line}: {fault}", file.display())]
pub struct RowError {
    /// The JSONL file.
    pub file: PathBuf,
    /// Line number, 1-based.
    pub line: u64,
    /// What is wrong.
    pub fault: RowFault,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowFault {
    /// The line is longer than the limit; it was skipped without being read into memory.
    #[error(
        "the line is longer than {limit} bytes; raise RowLimits::max_line_bytes if it is meant to be"
    )]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("byte {at} of the line is not UTF-8; save the file as UTF-8")]
    Utf8 {
        /// 0-based byte of the line.
        at: usize,
    },
    /// Not JSON, or not a row: unknown fields, wrong types, missing fields.
    #[error("column {column}: {reason}")]
    Json {
        /// 1-based column.
        column: usize,
        /// What the parser said.
        reason: String,
    },
    /// It parses but is not valid.
    #[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// Everything wrong with it.
        problems: Vec<Problem>,
    },
    /// Its media could not be read.
    #[error("{reason}")]
    Media {
        /// What went wrong.
        reason: String,
    },
    /// It could not be turned into a training item.
    #[error("{reason}")]
    Prepare {
        /// What went wrong.
        reason: String,
    },
}

/// Parses one line; semantic checks are [`Sample::problems`].
///
/// # Errors
/// [`RowFault::TooLong`], [`RowFault::Utf8`], [`RowFault::Json`].
pub fn parse_row(line: &[u8], limits: &RowLimits) -> Result<Sample, RowFault> {
    if line.len() > limits.max_line_bytes {
        return Err(RowFault::TooLong {
            limit: limits.max_line_bytes,
        });
    }
    let text = std::str::from_utf8(line).map_err(|e| RowFault::Utf8 {
        at: e.valid_up_to(),
    })?;
    serde_json::from_str(text).map_err(|e| RowFault::Json {
        column: e.column(),
        reason: strip_position(&e.to_string()),
    })
}

/// serde_json ends with its own line and column, which would be line 1.
fn strip_position(message: &str) -> String {
    let cut = message.rsplit_once(" at line ");
    cut.map_or(message, |(reason, _)| reason).into()
}

/// Writes one row and a line feed.
///
/// # Errors
/// [`std::io::Error`] of the writer.
pub fn write_row(sample: &Sample, out: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, sample)?;
    out.write_all(b"\n")
}

/// Lines of bounded length with their numbers and offsets.
#[derive(Debug)]
pub struct LineReader<R> {
    reader: R,
    limit: usize,
    line: u64,
    offset: u64,
    buffer: Vec<u8>,
}

/// A line as [`LineReader`] found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// 1-based.
    pub number: u64,
    /// Its first byte in the file.
    pub offset: u64,
    /// The bytes without the line end; `None` when there are more than the limit.
    pub bytes: Option<&'a [u8]>,
}

impl<R: BufRead> LineReader<R> {
    /// Reads lines of at most `limit` bytes; longer ones are skipped without being kept.
    pub fn new(reader: R, limit: usize) -> Self {
        Self {
            reader,
            limit,
            line: 0,
            offset: 0,
            buffer: Vec::new(),
        }
    }

    /// The next line, or `None` at the end.
    ///
    /// # Errors
    /// [`std::io::Error`] of the reader.
    pub fn next_line(&mut self) -> std::io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let start = self.offset;
        // A line end does not count, and has at most two bytes.
        let most = (self.limit as u64).saturating_add(2);
        let mut part = self.reader.by_ref().take(most);
        let mut seen = part.read_until(b'\n', &mut self.buffer)? as u64;
        if seen == 0 {
            return Ok(None);
        }
        if self.buffer.pop_if(|byte| *byte == b'\n').is_none() && seen == most {
            seen += self.reader.skip_until(b'\n')? as u64;
        }
        self.buffer.pop_if(|byte| *byte == b'\r');
        self.offset += seen;
        self.line += 1;
        Ok(Some(Line {
            number: self.line,
            offset: start,
            bytes: Some(self.buffer.as_slice()).filter(|line| line.len() <= self.limit),
        }))
    }
}

/// Rows of a JSONL file. A bad row is an `Err` and the next call continues after it; the semantic
/// checks of [`Sample::problems`] are included. Blank lines are skipped.
#[derive(Debug)]
pub struct SampleReader<R> {
    lines: LineReader<R>,
    file: PathBuf,
    limits: RowLimits,
    ended: bool,
}

impl SampleReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn open(path: impl AsRef<Path>, limits: RowLimits) -> Result<Self, DataError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(DataError::io(path))?;
        Ok(Self::new(
            BufReader::with_capacity(1 << 18, file),
            path,
            limits,
        ))
    }
}

impl<R: BufRead> SampleReader<R> {
    /// Reads rows; `file` is named in errors.
    pub fn new(reader: R, file: impl Into<PathBuf>, limits: RowLimits) -> Self {
        Self {
            // One byte of a byte-order mark's three is not worth a special limit.
            lines: LineReader::new(reader, limits.max_line_bytes),
            file: file.into(),
            limits,
            ended: false,
        }
    }

    /// The next row with its line number and byte offset; an invalid row is an error.
    ///
    /// # Errors
    /// The outer error is of the file and ends the reading; the inner one is of the row.
    #[allow(clippy::type_complexity)]
    pub fn next_row(&mut self) -> Option<Result<(u64, u64, Result<Sample, RowError>), DataError>> {
        Some(self.next_checked()?.map(|(line, offset, row)| {
            let row = row.and_then(|(sample, problems)| {
                if problems.is_empty() {
                    return Ok(sample);
                }
                Err(RowError {
                    file: self.file.clone(),
                    line,
                    fault: RowFault::Invalid { problems },
                })
            });
            (line, offset, row)
        }))
    }

    /// As [`SampleReader::next_row`], with the row and what is wrong with it side by side.
    ///
    /// # Errors
    /// As [`SampleReader::next_row`]; the inner error is of a line that is no row at all.
    #[allow(clippy::type_complexity)]
    pub fn next_checked(
        &mut self,
    ) -> Option<Result<(u64, u64, Result<(Sample, Vec<Problem>), RowError>), DataError>> {
        while !self.ended {
            let line = match self.lines.next_line() {
                Ok(line) => line?,
                Err(e) => {
                    self.ended = true;
                    return Some(Err(DataError::io(&self.file)(e)));
                }
            };
            let (number, offset) = (line.number, line.offset);
            let too_long = RowFault::TooLong {
                limit: self.limits.max_line_bytes,
            };
            let bytes = line
                .bytes
                .map(|bytes| match bytes.strip_prefix(b"\xEF\xBB\xBF") {
                    Some(rest) if number == 1 => rest,
                    _ => bytes,
                });
            if bytes.is_some_and(|bytes| bytes.iter().all(u8::is_ascii_whitespace)) {
                continue;
            }
            let row = bytes
                .ok_or(too_long)
                .and_then(|bytes| parse_row(bytes, &self.limits))
                .map(|sample| {
                    let problems = sample.problems();
                    (sample, problems)
                })
                .map_err(|fault| RowError {
                    file: self.file.clone(),
                    line: number,
                    fault,
                });
            return Some(Ok((number, offset, row)));
        }
        None
    }
}

impl<R: BufRead> Iterator for SampleReader<R> {
    type Item = Result<(u64, Sample), DataError>;

    /// As [`SampleReader::next_row`], a bad row as [`DataError::Row`].
    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.next_row()? {
            Ok((line, _, Ok(sample))) => Ok((line, sample)),
            Ok((_, _, Err(row))) => Err(DataError::Row(row)),
            Err(e) => Err(e),
        })
    }
}
