//! Where the rows of a mixture come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dataset::{BadRows, Dataset, GroupBy};
use super::draw::hash;
use crate::schema::{RowError, RowFault, RowLimits, Sample};
use crate::synthetic::{RowsConfig, WorldRows, WorldTask};
use crate::video::FrameBuffer;
use crate::{DataError, MediaLimits};

/// One source of a mixture: a JSONL file or clips of the synthetic world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name in logs and errors; default: its path, or `world`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The JSONL file. Either this or `world`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Folder that media paths are relative to; that of the file by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Rows made of the synthetic world.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world: Option<RowsConfig>,
    /// How many times an epoch uses it.
    #[serde(default = "one")]
    pub repeat: f64,
    /// Factor on its share.
    #[serde(default = "one")]
    pub weight: f64,
    /// Only the first N good rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Its boxes, times and tracks are answered in words, without task tokens (paper, Table 11
    /// "textualised"), whatever the style of the prompts.
    #[serde(default)]
    pub textual: bool,
    /// Packed turns: a block-diagonal attention mask keeps the turns of a row from attending to each
    /// other, so that no question can be answered from the answers before it.
    #[serde(default, alias = "apart")]
    pub packed_turns: bool,
}

fn one() -> f64 {
    1.0
}

impl SourceConfig {
    /// A file, once an epoch.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: Some(path.into()),
            ..Self::empty()
        }
    }

    /// Clips of the world, once an epoch.
    pub fn world(rows: RowsConfig) -> Self {
        Self {
            world: Some(rows),
            ..Self::empty()
        }
    }

    fn empty() -> Self {
        Self {
            name: None,
            path: None,
            root: None,
            world: None,
            repeat: one(),
            weight: one(),
            limit: None,
            textual: false,
            packed_turns: false,
        }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        match (&self.name, &self.path) {
            (Some(name), _) => name.clone(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "world".into(),
        }
    }
}

/// How sources are opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Which rows may share a batch.
    pub group_by: GroupBy,
    /// Limits on rows of files.
    pub rows: RowLimits,
    /// The first bad row is fatal.
    pub strict: bool,
    /// Frames the model reads, the measure of clips of the world.
    pub frames: usize,
    /// Side of the frames the model reads in pixels.
    pub side: usize,
}

/// A row and, where it is not in a file, its video.
#[derive(Debug, Clone)]
pub struct Row {
    /// Line in the file, or number of the clip, 1-based.
    pub line: u64,
    /// The row.
    pub sample: Sample,
    /// Its frames, if they are no file.
    pub video: Option<Arc<FrameBuffer>>,
}

/// Rows of one source, with random access.
#[derive(Debug)]
pub enum Rows {
    /// Of a JSONL file.
    File(Dataset),
    /// Drawn when they are asked for.
    World(Box<WorldRows>),
}

/// A source that is open.
#[derive(Debug)]
pub struct Source {
    name: PathBuf,
    root: PathBuf,
    rows: Rows,
    group: String,
    textual: bool,
    packed_turns: bool,
    bad: BadRows,
}

impl Source {
    /// Opens a source; every row of a file is checked.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] unless it is either a file or a world, those of
    /// [`Dataset::open`] and [`WorldRows::new`].
    pub fn open(config: &SourceConfig, options: &OpenOptions) -> Result<Self, DataError> {
        let invalid = |reason: &str| DataError::InvalidConfig {
            what: "source",
            reason: format!("`{}`: {reason}", config.name()),
        };
        let (rows, group) = match (&config.path, &config.world) {
            (Some(path), None) => {
                let data = Dataset::open_first(
                    path,
                    config.root.as_deref(),
                    options.group_by,
                    options.rows,
                    options.strict,
                    config.limit,
                )?;
                (Rows::File(data), String::new())
            }
            (None, Some(world)) => {
                if config.root.is_some() {
                    return Err(invalid("`root` goes with a file"));
                }
                let mut world = world.clone();
                let group = world_group(&world.tasks, options.group_by);
                world.rows = world.rows.min(config.limit.unwrap_or(u64::MAX));
                let rows = WorldRows::new(world, options.frames, options.side)?;
                (Rows::World(Box::new(rows)), group)
            }
            (Some(_), Some(_)) => return Err(invalid("it is both a file and a world")),
            (None, None) => return Err(invalid("it needs a `path` or a `world`")),
        };
        let name = match &config.path {
            Some(path) => path.clone(),
            None => config.name().into(),
        };
        Ok(Self {
            name,
            root: match &rows {
                Rows::File(data) => data.root().into(),
                Rows::World(_) => PathBuf::new(),
            },
            bad: match &rows {
                Rows::File(data) => data.bad_rows().clone(),
                Rows::World(_) => BadRows::default(),
            },
            rows,
            group,
            textual: config.textual,
            packed_turns: config.packed_turns,
        })
    }

    /// The rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The file, or the name of a world.
    pub fn path(&self) -> &Path {
        &self.name
    }

    /// Folder media paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether its answers are text only.
    pub fn textual(&self) -> bool {
        self.textual
    }

    /// Whether its turns do not attend to each other.
    pub fn packed_turns(&self) -> bool {
        self.packed_turns
    }

    /// Rows that were rejected when it was opened.
    pub fn bad_rows(&self) -> &BadRows {
        &self.bad
    }

    /// Groups and their numbers of rows. All rows of a world are one group: what a clip can be
    /// asked is known when it is drawn.
    pub fn groups(&self) -> Vec<(&str, u64)> {
        match &self.rows {
            Rows::File(data) => data.groups().map(|(g, n)| (g, n as u64)).collect(),
            Rows::World(rows) => vec![(self.group.as_str(), rows.len())],
        }
    }

    /// Changes when its rows or answers change.
    pub fn fingerprint(&self) -> u64 {
        let rows = match &self.rows {
            Rows::File(data) => data.fingerprint(),
            Rows::World(rows) => {
                let text = format!("{:?} {:?}", rows.config(), rows.world().config());
                text.bytes().fold(1, |h, b| hash(&[h, u64::from(b)]))
            }
        };
        if self.textual { hash(&[rows, 1]) } else { rows }
    }

    /// The `row`-th row of a group.
    ///
    /// # Errors
    /// As [`Dataset::get`] and [`WorldRows::row`].
    pub fn get(&self, group: &str, row: u64, limits: &MediaLimits) -> Result<Row, DataError> {
        match &self.rows {
            Rows::File(data) => {
                let (line, sample) = data.get(group, row as usize)?;
                Ok(Row {
                    line,
                    sample,
                    video: None,
                })
            }
            Rows::World(rows) => {
                let line = row + 1;
                let (sample, video) = rows.row(row, limits).map_err(|e| {
                    let reason = e.to_string();
                    DataError::Row(self.row_error(line, RowFault::Prepare { reason }))
                })?;
                Ok(Row {
                    line,
                    sample,
                    video: Some(Arc::new(video)),
                })
            }
        }
    }

    pub(super) fn row_error(&self, line: u64, fault: RowFault) -> RowError {
        RowError {
            file: self.name.clone(),
            line,
            fault,
        }
    }
}

fn world_group(tasks: &[WorldTask], by: GroupBy) -> String {
    let mut group = String::from("video");
    if by == GroupBy::MediaAndTasks {
        let mut names: Vec<&str> = tasks
            .iter()
            .filter(|t| t.calls_head())
            .map(|t| t.name())
            .collect();
        names.sort_unstable();
        for name in names {
            group.push(':');
            group.push_str(name);
        }
    }
    group
}
