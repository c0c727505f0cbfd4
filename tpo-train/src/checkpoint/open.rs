//! A checkpoint that is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::TensorData;
use serde::de::DeserializeOwned;
use tpo_core::weights::{
    Checkpoint, KeyMap, KeyTarget, LoadOptions, load_module, module_params, read_tensor,
};

use super::disk::Sum;
use super::files;
use super::manifest::{FORMAT, MANIFEST_FILE, Manifest};
use crate::before::Renaming;
use crate::error::{Result, TrainError};
use crate::recipe::{Change, Recipe};

/// Most bytes of a manifest, state or recipe that are read.
const MAX_TEXT: u64 = 256 << 20;

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedCheckpoint {
    dir: PathBuf,
    manifest: Manifest,
}

impl SavedCheckpoint {
    /// Opens the checkpoint in `dir` and verifies it: version, files, sizes and sums.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] saying what is wrong with which file; [`TrainError::Io`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Self::open_unverified(dir)?;
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    /// Opens the checkpoint in `dir` and checks version, files and sizes, but reads no sums.
    ///
    /// # Errors
    /// As [`SavedCheckpoint::open`].
    pub fn open_unverified(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let path = dir.join(MANIFEST_FILE);
        if !path.is_file() {
            return Err(TrainError::Checkpoint {
                path: dir,
                why: format!(
                    "has no {MANIFEST_FILE}: writing it was interrupted, or it is no checkpoint"
                ),
            });
        }
        let text = read_text(&path)?;
        let wrong = |why: String| TrainError::Checkpoint {
            path: path.clone(),
            why,
        };
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|e| wrong(format!("is damaged or of another version: {e}")))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!(
                "is of format {}, written by version {}; this build reads format {FORMAT}",
                manifest.format, manifest.version
            )));
        }
        for (name, entry) in &manifest.files {
            let path = dir.join(name);
            if Path::new(name)
                .file_name()
                .is_none_or(|n| n != name.as_str())
            {
                return Err(wrong(format!("lists `{name}`, which leaves the directory")));
            }
            let found = std::fs::metadata(&path).map_err(TrainError::io("reading", &path))?;
            if found.len() != entry.bytes {
                return Err(TrainError::Checkpoint {
                    path,
                    why: format!(
                        "has {} bytes where the manifest says {}; it was cut off or changed",
                        found.len(),
                        entry.bytes
                    ),
                });
            }
        }
        Ok(Self { dir, manifest })
    }

    pub(super) fn unchecked(dir: PathBuf, manifest: Manifest) -> Self {
        Self { dir, manifest }
    }

    /// Compares the sum of every file.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] naming the first file whose bytes are not those written.
    pub fn verify(&self) -> Result<()> {
        for (name, entry) in &self.manifest.files {
            let path = self.dir.join(name);
            let found = Sum::of(&path).map_err(TrainError::io("reading", &path))?;
            if found != *entry {
                return Err(TrainError::Checkpoint {
                    path,
                    why: format!(
                        "its BLAKE3 sum is {} where the manifest says {}; its bytes changed, \
                         use another checkpoint",
                        found.blake3, entry.blake3
                    ),
                });
            }
        }
        Ok(())
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is and what it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether it has the file `name`.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.files.contains_key(name)
    }

    /// Puts the tensors of the file `name` into the parameters at their paths. All must exist and
    /// fit, and `required` says which parameters must be among them.
    ///
    /// # Errors
    /// [`TrainError::Weights`] for tensors that do not fit; [`TrainError::Checkpoint`] naming
    /// required parameters that are not in the file. The module is then lost; keep a clone.
    pub fn load_module<M: Module>(
        &self,
        name: &str,
        module: M,
        required: &dyn Fn(&str) -> bool,
    ) -> Result<M> {
        self.load_module_without(name, module, required, &|_| false)
    }

    /// As [`load_module`](Self::load_module), but the tensors at the paths that `left_out` says stay
    /// in the file; the module needs no place for them.
    ///
    /// # Errors
    /// As [`load_module`](Self::load_module).
    pub fn load_module_without<M: Module>(
        &self,
        name: &str,
        module: M,
        required: &dyn Fn(&str) -> bool,
        left_out: &dyn Fn(&str) -> bool,
    ) -> Result<M> {
        let checkpoint = Checkpoint::open(self.file(name)?)?;
        let renaming = Renaming::of(&module);
        let held: BTreeSet<String> = checkpoint.tensors().map(|t| renaming.key(&t.key)).collect();
        let wanted = held.iter().filter(|path| !left_out(path));
        let foreign: BTreeSet<&str> = wanted.filter_map(|p| renaming.foreign(p)).collect();
        if !foreign.is_empty() {
            let names = Vec::from_iter(foreign).join(", ");
            return Err(TrainError::Checkpoint {
                path: self.dir.clone(),
                why: format!(
                    "holds weights of heads that this program does not have: {names}; use one that \
                     names them in `heads!`"
                ),
            });
        }
        let missing: Vec<String> = module_params(&module)
            .into_iter()
            .map(|p| p.path)
            .filter(|p| required(p) && !held.contains(p))
            .collect();
        if !missing.is_empty() {
            return Err(TrainError::Checkpoint {
                path: self.dir.join(name),
                why: format!(
                    "lacks {} parameters that are trained, {} among them; it is of another stage \
                     or recipe",
                    missing.len(),
                    missing[..missing.len().min(3)].join(", ")
                ),
            });
        }
        let why = |path: &str| left_out(path).then(|| "left out".into());
        let options = LoadOptions {
            allow_missing: vec![".".into()],
            left_out: Some(&why),
            ..LoadOptions::default()
        };
        Ok(load_module(module, &checkpoint, &CheckpointKeys(renaming), &options)?.0)
    }

    /// The tensors of a file, in the order of their names. They are read one at a time.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when there is no such file, [`TrainError::Weights`] when it is
    /// not one of tensors.
    pub fn tensors(&self, name: &str) -> Result<Vec<(String, TensorData)>> {
        let checkpoint = Checkpoint::open(self.file(name)?)?;
        checkpoint
            .tensors()
            .map(|t| Ok((t.key.clone(), read_tensor(t)?)))
            .collect()
    }

    /// A value that was written as JSON.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when the file is absent or holds something else.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name)?;
        serde_json::from_str(&read_text(&path)?).map_err(|e| TrainError::Checkpoint {
            path,
            why: format!("does not hold what this build expects: {e}"),
        })
    }

    /// The text of a file.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when there is no such file; [`TrainError::Io`].
    pub fn text(&self, name: &str) -> Result<String> {
        read_text(&self.file(name)?)
    }

    /// The recipe it was written with.
    ///
    /// # Errors
    /// As [`SavedCheckpoint::text`] and [`Recipe::read`].
    pub fn recipe(&self) -> Result<Recipe> {
        let text = self.text(files::RECIPE)?;
        let origin = self.dir.join(files::RECIPE);
        Recipe::read::<&str>(&text, &origin.display().to_string(), &[])
    }

    /// Compares the recipe of a run that is to go on from here; `stage` is the number of the stage
    /// it is in. Returns the changes that do no harm.
    ///
    /// # Errors
    /// [`TrainError::ChangedRecipe`] listing the changes that would make it another run.
    pub fn check_recipe(&self, now: &Recipe, stage: usize) -> Result<Vec<Change>> {
        let (harmless, changes): (Vec<Change>, Vec<Change>) = self
            .recipe()?
            .changes(now, stage)
            .into_iter()
            .partition(|c| c.harmless);
        if changes.is_empty() {
            return Ok(harmless);
        }
        Err(TrainError::ChangedRecipe {
            checkpoint: self.dir.clone(),
            changes: changes.iter().map(Change::to_string).collect(),
        })
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if self.has(name) {
            return Ok(path);
        }
        let names: Vec<&str> = self.manifest.files.keys().map(String::as_str).collect();
        Err(TrainError::Checkpoint {
            path,
            why: format!(
                "is not in this checkpoint, which holds {}",
                names.join(", ")
            ),
        })
    }
}

/// Keys are paths, those of checkpoints written before under their names of then.
struct CheckpointKeys(Renaming);

impl KeyMap for CheckpointKeys {
    fn module_path(&self, key: &str) -> KeyTarget {
        KeyTarget::Path(self.0.key(key))
    }

    fn checkpoint_key(&self, path: &str, _has: &dyn Fn(&str) -> bool) -> Option<String> {
        Some(path.to_string())
    }
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::metadata(path)
        .map_err(TrainError::io("reading", path))?
        .len();
    if bytes > MAX_TEXT {
        return Err(TrainError::Checkpoint {
            path: path.into(),
            why: format!("has {bytes} bytes; no such file is that large"),
        });
    }
    std::fs::read_to_string(path).map_err(TrainError::io("reading", path))
}
