//! Where the rows of a mixture come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::FeedConfig;
use super::dataset::{BadRows, Dataset};
use super::draw::hash;
use super::facts::ClipSource;
use super::mixture::SourceSpec;
use crate::schema::{RowError, RowFault, Sample};
use crate::synthetic::WorldRows;
use crate::{DataError, MediaLimits};

/// The group of rows about videos; all rows of a world are of it.
pub(super) const VIDEO: &str = "video";

/// A row, and where its media are.
pub(super) struct Row {
    /// Line in the file, or number of the clip, 1-based.
    pub line: u64,
    pub sample: Sample,
    pub media: ClipSource,
}

#[derive(Debug)]
enum Rows {
    File(Dataset),
    /// Drawn when they are asked for.
    World(Box<WorldRows>),
}

/// Rows of a file or of the synthetic world, with random access.
#[derive(Debug)]
pub struct Source {
    name: PathBuf,
    rows: Rows,
    pub(super) textual: bool,
    pub(super) packed_turns: bool,
}

impl Source {
    /// Opens a source of a mixture without problems; every row of a file is checked.
    pub(super) fn open(spec: &SourceSpec, config: &FeedConfig) -> Result<Self, DataError> {
        let (name, rows) = match &spec.synthetic {
            Some(rows) => {
                let mut rows = rows.clone();
                rows.rows = rows.rows.min(spec.limit.unwrap_or(u64::MAX));
                let frames = &config.frames;
                let world = WorldRows::new(rows, frames.num_frames, frames.side())?;
                ((&spec.name).into(), Rows::World(Box::new(world)))
            }
            None => {
                let path = spec.annotations.clone().unwrap_or_default();
                let data = Dataset::open(path.clone(), spec, config)?;
                (path, Rows::File(data))
            }
        };
        Ok(Self {
            name,
            rows,
            textual: spec.textual,
            packed_turns: spec.packed_turns,
        })
    }

    /// The file, or the name of a world.
    pub fn path(&self) -> &Path {
        &self.name
    }

    /// Tasks of heads that its answers call: none where they are text only.
    pub fn tasks(&self) -> Vec<&str> {
        match &self.rows {
            _ if self.textual => Vec::new(),
            Rows::File(data) => data.tasks().collect(),
            Rows::World(world) => {
                let tasks = world.config().tasks.iter();
                tasks.filter(|t| t.calls_head()).map(|t| t.name()).collect()
            }
        }
    }

    /// Rows of a file that were rejected when it was opened.
    pub(super) fn bad_rows(&self) -> Option<&BadRows> {
        match &self.rows {
            Rows::File(data) => Some(data.bad_rows()),
            Rows::World(_) => None,
        }
    }

    /// Kinds of media, `video`, `image` and `text`, with the numbers of rows of each that there is.
    pub(super) fn groups(&self) -> Vec<(&'static str, u64)> {
        match &self.rows {
            Rows::File(data) => data.groups(),
            Rows::World(world) => vec![(VIDEO, world.config().rows)],
        }
    }

    /// Number of rows of a group.
    pub(super) fn rows_of(&self, group: &str) -> u64 {
        let groups = self.groups().into_iter();
        groups.filter(|(g, _)| *g == group).map(|(_, n)| n).sum()
    }

    /// Changes when its rows or answers change.
    pub(super) fn fingerprint(&self) -> u64 {
        let rows = match &self.rows {
            Rows::File(data) => data.fingerprint(),
            Rows::World(world) => {
                let text = format!("{:?} {:?}", world.config(), world.world().config());
                text.bytes().fold(1, |h, b| hash(&[h, u64::from(b)]))
            }
        };
        if self.textual { hash(&[rows, 1]) } else { rows }
    }

    /// The `row`-th row of a group.
    pub(super) fn get(
        &self,
        group: &str,
        row: u64,
        limits: &MediaLimits,
    ) -> Result<Row, DataError> {
        match &self.rows {
            Rows::File(data) => {
                let (line, sample) = data.get(group, row as usize)?;
                let media = ClipSource::Folder {
                    root: data.root().into(),
                    limits: limits.clone(),
                };
                Ok(Row {
                    line,
                    sample,
                    media,
                })
            }
            Rows::World(world) => {
                let line = row + 1;
                let (sample, video) = world.row(row, limits).map_err(|e| {
                    let reason = e.to_string();
                    self.row_error(line, RowFault::Prepare { reason })
                })?;
                Ok(Row {
                    line,
                    sample,
                    media: ClipSource::Memory(Arc::new(video)),
                })
            }
        }
    }

    pub(super) fn row_error(&self, line: u64, fault: RowFault) -> DataError {
        DataError::Row(RowError {
            file: self.name.clone(),
            line,
            fault,
        })
    }
}
