//! The checkpoints of a run.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::{Disk, FileSystem};
use super::draft::Draft;
use super::open::SavedCheckpoint;
use crate::error::{Result, TrainError};
use crate::recipe::{CheckpointSpec, Goal};

/// Which checkpoints stay when a new one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many; at least one always stays.
    pub last: usize,
    /// The one with the best score too.
    pub best: Option<Goal>,
}

impl Retention {
    /// All of them.
    pub const ALL: Self = Self {
        last: usize::MAX,
        best: None,
    };
}

impl From<&CheckpointSpec> for Retention {
    fn from(spec: &CheckpointSpec) -> Self {
        Self {
            last: spec.keep_last,
            best: spec.keep_best.as_ref().map(|b| b.goal),
        }
    }
}

/// A directory that looks like a checkpoint and is none.
#[derive(Debug)]
pub struct Skipped {
    /// The directory.
    pub dir: PathBuf,
    /// What is wrong with it.
    pub error: TrainError,
}

/// A directory of checkpoints.
#[derive(Debug)]
pub struct CheckpointStore {
    dir: PathBuf,
    retention: Retention,
    disk: Box<dyn Disk>,
    lock: Mutex<Option<File>>,
}

impl CheckpointStore {
    /// The store in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>, retention: Retention) -> Self {
        Self {
            dir: dir.into(),
            retention,
            disk: Box::new(FileSystem),
            lock: Mutex::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn on(disk: impl Disk + 'static, dir: &Path, retention: Retention) -> Self {
        Self {
            dir: dir.into(),
            retention,
            disk: Box::new(disk),
            lock: Mutex::default(),
        }
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name of the checkpoint after `step` optimizer steps.
    pub fn name(step: u64) -> String {
        format!("step-{step:08}")
    }

    /// Keeps other processes from writing here until this store is dropped; [`CheckpointStore::begin`]
    /// does it too.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Checkpoint`] when another process writes here.
    pub fn claim(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir).map_err(TrainError::io("creating", &self.dir))?;
        self.lock()
    }

    /// Starts a checkpoint after `step` optimizer steps of the run, in the stage of that name.
    /// Leftovers of processes that were killed are removed.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Checkpoint`] when another process writes here.
    pub fn begin(&self, step: u64, stage: &str) -> Result<Draft<'_>> {
        self.claim()?;
        self.sweep(true);
        Draft::new(self, step, stage)
    }

    /// The whole checkpoints in the order of their steps; sizes are checked, sums are not. The
    /// second list says what was passed over.
    ///
    /// # Errors
    /// [`TrainError::Io`] when the directory cannot be read. One that does not exist is empty.
    pub fn list(&self) -> Result<(Vec<SavedCheckpoint>, Vec<Skipped>)> {
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for dir in self.directories()? {
            match SavedCheckpoint::open_unverified(&dir) {
                Ok(checkpoint) => found.push(checkpoint),
                Err(error) => skipped.push(Skipped { dir, error }),
            }
        }
        found.sort_by_key(|c| c.manifest().step);
        Ok((found, skipped))
    }

    /// The newest checkpoint whose files are all as they were written, or `None`. What was passed
    /// over on the way is in the second value.
    ///
    /// # Errors
    /// As [`CheckpointStore::list`].
    pub fn newest(&self) -> Result<(Option<SavedCheckpoint>, Vec<Skipped>)> {
        self.sweep(false);
        let (found, mut skipped) = self.list()?;
        for checkpoint in found.into_iter().rev() {
            match checkpoint.verify() {
                Ok(()) => return Ok((Some(checkpoint), skipped)),
                Err(error) => skipped.push(Skipped {
                    dir: checkpoint.dir().into(),
                    error,
                }),
            }
        }
        Ok((None, skipped))
    }

    /// The checkpoint with the best score, or `None` when none has one.
    ///
    /// # Errors
    /// As [`CheckpointStore::list`].
    pub fn best(&self, goal: Goal) -> Result<Option<SavedCheckpoint>> {
        Ok(best(&self.list()?.0, goal).cloned())
    }

    /// Removes the checkpoints that need not be kept, now that one of step `newest` is there. Those
    /// of later steps stay: a run that is behind them has passed over them, so they are damaged, or
    /// they are another's.
    pub(super) fn prune(&self, newest: u64) {
        let Ok((mut found, _)) = self.list() else {
            return;
        };
        found.retain(|c| c.manifest().step <= newest);
        let best = self
            .retention
            .best
            .and_then(|goal| best(&found, goal))
            .map(|c| c.manifest().step);
        let old = found.len().saturating_sub(self.retention.last.max(1));
        for checkpoint in &found[..old] {
            let manifest = checkpoint.manifest();
            if manifest.stage_end || Some(manifest.step) == best {
                continue;
            }
            // Renamed first, so that it is not half a checkpoint while it goes.
            let aside = self
                .dir
                .join(format!(".{}.gone.tmp", Self::name(manifest.step)));
            let removed = std::fs::rename(checkpoint.dir(), &aside)
                .and_then(|()| std::fs::remove_dir_all(&aside));
            if let Err(error) = removed {
                tracing::warn!(dir = %checkpoint.dir().display(), %error, "cannot be removed");
            }
        }
    }

    fn lock(&self) -> Result<()> {
        let mut lock = self.lock.lock().unwrap_or_else(|e| e.into_inner());
        if lock.is_some() {
            return Ok(());
        }
        let path = self.dir.join(".lock");
        let file = File::create(&path).map_err(TrainError::io("creating", &path))?;
        match file.try_lock() {
            Ok(()) => *lock = Some(file),
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::Checkpoint {
                    path: self.dir.clone(),
                    why: "another process writes checkpoints here; end it, or choose another \
                          directory"
                        .into(),
                });
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot be locked");
            }
        }
        Ok(())
    }

    /// Removes what killed processes left. A checkpoint that was moved aside to be replaced comes
    /// back if its replacement did not arrive.
    fn sweep(&self, drafts_too: bool) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((step, rest)) = name
                .strip_prefix('.')
                .and_then(|n| n.split_once('.'))
                .filter(|(step, _)| step.starts_with("step-"))
            else {
                continue;
            };
            let place = self.dir.join(step);
            // What cannot be removed is tried again the next time.
            if rest == "old" && !place.exists() {
                let _ = std::fs::rename(entry.path(), place);
            } else if drafts_too {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn directories(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(TrainError::io("reading", &self.dir)(e)),
        };
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(TrainError::io("reading", &self.dir))?;
            let is_step = entry.file_name().to_string_lossy().starts_with("step-");
            if is_step && entry.path().is_dir() {
                dirs.push(entry.path());
            }
        }
        Ok(dirs)
    }
}

/// Ties go to the newer one; scores that are no number do not count.
fn best(found: &[SavedCheckpoint], goal: Goal) -> Option<&SavedCheckpoint> {
    let score = |c: &SavedCheckpoint| match goal {
        Goal::Max => c.manifest().score,
        Goal::Min => c.manifest().score.map(|s| -s),
    };
    found
        .iter()
        .filter_map(|c| Some((score(c).filter(|s| s.is_finite())?, c)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
