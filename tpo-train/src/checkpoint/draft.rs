//! A checkpoint that is being written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::Serialize;
use tpo_core::weights::{DtypePolicy, KeyRules, TensorSource, module_tensors, write_tensors};

use super::disk::{Sink, Sum, sync_dir};
use super::manifest::{FORMAT, MANIFEST_FILE, Manifest};
use super::open::SavedCheckpoint;
use super::store::CheckpointStore;
use crate::error::{Result, TrainError};

/// A hidden directory that becomes a checkpoint when it is committed, and is removed otherwise.
#[derive(Debug)]
pub struct Draft<'a> {
    store: &'a CheckpointStore,
    dir: PathBuf,
    manifest: Manifest,
    committed: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(store: &'a CheckpointStore, step: u64, stage: &str) -> Result<Self> {
        let name = format!(".{}.tmp", CheckpointStore::name(step));
        let dir = store.dir().join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(TrainError::io("removing", &dir))?;
        }
        std::fs::create_dir_all(&dir).map_err(TrainError::io("creating", &dir))?;
        Ok(Self {
            store,
            dir,
            manifest: Manifest {
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION").into(),
                step,
                stage: stage.into(),
                stage_end: false,
                score: None,
                files: BTreeMap::new(),
            },
            committed: false,
        })
    }

    /// Marks the end of its stage; such a checkpoint is not removed to make room.
    pub fn stage_end(mut self, is_end: bool) -> Self {
        self.manifest.stage_end = is_end;
        self
    }

    /// Sets the value by which the best checkpoint is chosen.
    pub fn score(mut self, score: Option<f64>) -> Self {
        self.manifest.score = score.filter(|s| s.is_finite());
        self
    }

    /// Writes the parameters of `module` whose path `select` accepts, under their paths and in
    /// their own data type. One tensor is copied from the device at a time.
    ///
    /// # Errors
    /// [`TrainError::Io`] when the disk is full or fails, [`TrainError::Weights`] when a parameter
    /// cannot be written.
    pub fn module<M: Module>(
        &mut self,
        name: &str,
        module: &M,
        select: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let rules = KeyRules::new();
        let tensors = module_tensors(module, &rules, DtypePolicy::Keep, select)?;
        self.tensors(name, tensors)
    }

    /// Writes tensors.
    ///
    /// # Errors
    /// As [`Draft::module`].
    pub fn tensors(&mut self, name: &str, mut tensors: Vec<TensorSource<'_>>) -> Result<()> {
        let mut file = self.create(name)?;
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_tensors(&mut tensors, &metadata, |bytes| file.write(bytes))?;
        self.close(name, file)
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Checkpoint`] when it is not serialisable.
    pub fn json<T: Serialize>(&mut self, name: &str, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| TrainError::Checkpoint {
            path: self.dir.join(name),
            why: format!("cannot be written as JSON: {e}"),
        })?;
        text.push(b'\n');
        self.bytes(name, &text)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(bytes)?;
        self.close(name, file)
    }

    /// Writes the manifest, makes everything durable and gives the checkpoint its name. Then
    /// removes the checkpoints that are no longer to be kept; one that cannot be removed is
    /// logged and left.
    ///
    /// # Errors
    /// [`TrainError::Io`]; the checkpoint is then not there, and those before it are.
    pub fn commit(mut self) -> Result<SavedCheckpoint> {
        let manifest = self.manifest.clone();
        self.json(MANIFEST_FILE, &manifest)?;
        sync_dir(&self.dir).map_err(TrainError::io("flushing", &self.dir))?;
        let place = self.store.dir().join(CheckpointStore::name(manifest.step));
        // The same step again, after resuming from an earlier one: the old one makes room.
        let aside = self.dir.with_extension("old");
        let replaces = place.exists();
        if replaces {
            std::fs::rename(&place, &aside).map_err(TrainError::io("replacing", &place))?;
        }
        if let Err(error) = self.store.disk().rename(&self.dir, &place) {
            if replaces {
                let _ = std::fs::rename(&aside, &place);
            }
            return Err(TrainError::io("renaming to", &place)(error));
        }
        self.committed = true;
        sync_dir(self.store.dir()).map_err(TrainError::io("flushing", self.store.dir()))?;
        if replaces {
            let _ = std::fs::remove_dir_all(&aside);
        }
        self.store.prune(manifest.step);
        Ok(SavedCheckpoint::unchecked(place, manifest))
    }

    fn create(&self, name: &str) -> Result<Open> {
        let path = self.dir.join(name);
        let plain = Path::new(name).file_name().is_some_and(|n| n == name);
        if !plain || self.manifest.files.contains_key(name) {
            return Err(TrainError::Checkpoint {
                path,
                why: "the name of a file must be new and without a directory".into(),
            });
        }
        let file = self
            .store
            .disk()
            .create(&path)
            .map_err(TrainError::io("creating", &path))?;
        Ok(Open {
            file,
            path,
            sum: Sum::default(),
        })
    }

    fn close(&mut self, name: &str, mut file: Open) -> Result<()> {
        file.file
            .sync()
            .map_err(TrainError::io("flushing", &file.path))?;
        if name != MANIFEST_FILE {
            self.manifest.files.insert(name.into(), file.sum.finish());
        }
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here, and the name says what it is.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A file that is summed while it is written.
struct Open {
    file: Box<dyn Sink>,
    path: PathBuf,
    sum: Sum,
}

/// Bytes from which on a sum is worth a thread.
const BESIDE: usize = 1 << 20;

impl Open {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { file, path, sum } = self;
        let written = if bytes.len() < BESIDE {
            sum.add(bytes);
            file.write_all(bytes)
        } else {
            // A thread of its own: those of the pool have a step to take.
            std::thread::scope(|scope| {
                let summing = std::thread::Builder::new().name("sum".into());
                summing.spawn_scoped(scope, || sum.add(bytes))?;
                file.write_all(bytes)
            })
        };
        written.map_err(TrainError::io("writing", path))
    }
}
