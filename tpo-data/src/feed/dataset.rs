//! A JSONL file with random access: offsets of its good rows in memory, rows on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::FeedConfig;
use super::draw::hash;
use super::mixture::SourceSpec;
use super::source::VIDEO;
use crate::DataError;
use crate::schema::{RowError, RowLimits, Sample, SampleReader, parse_row};

/// Bad rows: how many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BadRows {
    /// All of them.
    pub count: u64,
    /// The first [`BadRows::KEPT`].
    pub first: Vec<RowError>,
}

impl BadRows {
    /// How many are listed.
    pub const KEPT: usize = 1000;

    /// Counts one, and lists it if there is room.
    pub fn push(&mut self, row: RowError) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(row);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    length: u32,
    line: u32,
}

/// A JSONL file of the schema. Opening reads and checks every row once; then rows are read one
/// by one. Takes 16 bytes per row.
#[derive(Debug)]
pub(super) struct Dataset {
    path: PathBuf,
    root: PathBuf,
    file: Mutex<File>,
    limits: RowLimits,
    groups: BTreeMap<&'static str, Vec<Place>>,
    tasks: BTreeSet<String>,
    bad: BadRows,
    fingerprint: u64,
}

impl Dataset {
    /// Opens the file of a source and checks its rows up to the last one wanted.
    ///
    /// # Errors
    /// [`DataError::Io`]; with `strict` also [`DataError::Row`] for the first bad row.
    pub fn open(path: PathBuf, spec: &SourceSpec, config: &FeedConfig) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: path.clone(),
            source,
        };
        let mut reader = SampleReader::open(&path, config.rows)?;
        let (mut groups, mut bad) = (BTreeMap::<_, Vec<Place>>::new(), BadRows::default());
        let mut fingerprint = 0;
        let mut tasks = BTreeSet::new();
        let mut last: Option<(u64, u64, Option<&'static str>)> = None;
        // The length of a row is known when the next one begins.
        let mut close = |last: &mut Option<(u64, u64, Option<&'static str>)>, end: u64| {
            if let Some((line, offset, Some(group))) = last.take() {
                fingerprint = hash(&[fingerprint, offset, end]);
                groups.entry(group).or_default().push(Place {
                    offset,
                    length: (end - offset).min(u64::from(u32::MAX)) as u32,
                    line: line.min(u64::from(u32::MAX)) as u32,
                });
            }
        };
        let mut good = 0;
        while let Some(row) = reader.next_row() {
            let (line, offset, row) = row?;
            close(&mut last, offset);
            if spec.limit.is_some_and(|n| good >= n) {
                break;
            }
            let group = match row {
                Ok(sample) => {
                    good += 1;
                    tasks.extend(sample.annotations.iter().map(|a| a.task.clone()));
                    Some(group_of(&sample))
                }
                Err(row) if config.loader.strict => return Err(DataError::Row(row)),
                Err(row) => {
                    bad.push(row);
                    None
                }
            };
            last = Some((line, offset, group));
        }
        let file = File::open(&path).map_err(io)?;
        close(&mut last, file.metadata().map_err(io)?.len());
        let folder = || path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Self {
            root: spec.media.clone().unwrap_or_else(folder),
            path,
            file: Mutex::new(file),
            limits: config.rows,
            groups,
            tasks,
            bad,
            fingerprint,
        })
    }

    /// Folder media paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Rows that were rejected.
    pub fn bad_rows(&self) -> &BadRows {
        &self.bad
    }

    /// Tasks of the annotations of its good rows.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.iter().map(String::as_str)
    }

    /// Groups and their numbers of rows.
    pub fn groups(&self) -> Vec<(&'static str, u64)> {
        let groups = self.groups.iter();
        groups.map(|(g, rows)| (*g, rows.len() as u64)).collect()
    }

    /// Changes when rows are added, removed or change their length.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The `row`-th row of a group with its line number.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Row`] when the file changed since it was opened.
    pub fn get(&self, group: &str, row: usize) -> Result<(u64, Sample), DataError> {
        let place = self.groups.get(group).and_then(|g| g.get(row));
        let place = *place.ok_or_else(|| DataError::InvalidConfig {
            what: "row",
            reason: format!("row {row} of group `{group}` of {}", self.path.display()),
        })?;
        let mut bytes = vec![0; place.length as usize];
        {
            let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
            file.seek(SeekFrom::Start(place.offset))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|source| DataError::Io {
                    path: self.path.clone(),
                    source,
                })?;
        }
        let mut line = bytes.as_slice();
        // Blank lines may follow before the next row.
        while let Some((last, rest)) = line.split_last()
            && last.is_ascii_whitespace()
        {
            line = rest;
        }
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        let line_number = u64::from(place.line);
        let sample = parse_row(line, &self.limits).map_err(|fault| RowError {
            file: self.path.clone(),
            line: line_number,
            fault,
        });
        Ok((line_number, sample.map_err(DataError::Row)?))
    }
}

/// Rows of one kind of media may share a batch.
fn group_of(sample: &Sample) -> &'static str {
    match &sample.media {
        None => "text",
        Some(media) if media.is_video() => VIDEO,
        Some(_) => "image",
    }
}
