//! A JSONL file with random access: offsets of its good rows in memory, rows on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::draw::hash;
use crate::DataError;
use crate::schema::{Media, RowError, RowLimits, Sample, SampleReader, parse_row};

/// Which rows may share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// Rows of one kind of media: video, image or text.
    #[default]
    Media,
    /// As `Media`, and rows that call the same heads: then a step runs no head for one row only.
    MediaAndTasks,
}

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
pub struct Dataset {
    path: PathBuf,
    root: PathBuf,
    file: Mutex<File>,
    limits: RowLimits,
    groups: BTreeMap<String, Vec<Place>>,
    tasks: BTreeSet<String>,
    bad: BadRows,
    fingerprint: u64,
}

impl Dataset {
    /// Opens and checks a file. Media paths are relative to `root`, or to the folder of the file.
    ///
    /// # Errors
    /// [`DataError::Io`]; with `strict` also [`DataError::Row`] for the first bad row.
    pub fn open(
        path: impl AsRef<Path>,
        root: Option<&Path>,
        group_by: GroupBy,
        limits: RowLimits,
        strict: bool,
    ) -> Result<Self, DataError> {
        Self::open_first(path, root, group_by, limits, strict, None)
    }

    /// As [`Dataset::open`], of the file's first `most` good rows; what comes after is not read.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_first(
        path: impl AsRef<Path>,
        root: Option<&Path>,
        group_by: GroupBy,
        limits: RowLimits,
        strict: bool,
        most: Option<u64>,
    ) -> Result<Self, DataError> {
        let path = path.as_ref();
        let io = |source| DataError::Io {
            path: path.into(),
            source,
        };
        let mut reader = SampleReader::open(path, limits)?;
        let (mut groups, mut bad) = (BTreeMap::<String, Vec<Place>>::new(), BadRows::default());
        let mut fingerprint = 0;
        let mut tasks = BTreeSet::new();
        let mut last: Option<(u64, u64, Option<String>)> = None;
        // The length of a row is known when the next one begins.
        let mut close = |last: &mut Option<(u64, u64, Option<String>)>, end: u64| {
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
            if most.is_some_and(|n| good >= n) {
                break;
            }
            let group = match row {
                Ok(sample) => {
                    good += 1;
                    for annotation in &sample.annotations {
                        if !tasks.contains(&annotation.task) {
                            tasks.insert(annotation.task.clone());
                        }
                    }
                    Some(group_of(&sample, group_by))
                }
                Err(row) if strict => return Err(DataError::Row(row)),
                Err(row) => {
                    bad.push(row);
                    None
                }
            };
            last = Some((line, offset, group));
        }
        let file = File::open(path).map_err(io)?;
        close(&mut last, file.metadata().map_err(io)?.len());
        let root = root
            .map(Path::to_path_buf)
            .or_else(|| path.parent().map(Path::to_path_buf))
            .unwrap_or_default();
        Ok(Self {
            path: path.into(),
            root,
            file: Mutex::new(file),
            limits,
            groups,
            tasks,
            bad,
            fingerprint,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder media paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Number of good rows.
    pub fn len(&self) -> usize {
        self.groups.values().map(Vec::len).sum()
    }

    /// Whether there is no good row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    pub fn groups(&self) -> impl Iterator<Item = (&str, usize)> {
        self.groups.iter().map(|(g, rows)| (g.as_str(), rows.len()))
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
        let sample = parse_row(line, &self.limits)
            .map_err(|fault| DataError::Row(self.row_error(u64::from(place.line), fault)))?;
        Ok((u64::from(place.line), sample))
    }

    fn row_error(&self, line: u64, fault: crate::schema::RowFault) -> RowError {
        RowError {
            file: self.path.clone(),
            line,
            fault,
        }
    }
}

fn group_of(sample: &Sample, by: GroupBy) -> String {
    let media = match &sample.media {
        None => "text",
        Some(m) if m.is_video() => "video",
        Some(Media { .. }) => "image",
    };
    let mut group = media.to_string();
    if by == GroupBy::MediaAndTasks {
        let mut tasks: Vec<&str> = sample.annotations.iter().map(|a| a.task.as_str()).collect();
        tasks.sort_unstable();
        tasks.dedup();
        for task in tasks {
            group.push(':');
            group.push_str(task);
        }
    }
    group
}
