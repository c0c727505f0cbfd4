//! What a load did.

use std::fmt;
use std::path::PathBuf;

use safetensors::Dtype;
use serde::Serialize;

use super::error::MissingTensor;

/// A tensor that was copied into a parameter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadedTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Path in the module tree.
    pub path: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Data type in the file.
    pub dtype: Dtype,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A tensor whose data type was changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CastTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Data type in the file.
    pub from: Dtype,
    /// Data type in the module.
    pub to: String,
}

/// A tensor that is known to be unused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IgnoredTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Why it is unused.
    pub reason: String,
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Tensors copied, in the order of their keys.
    pub loaded: Vec<LoadedTensor>,
    /// Parameters without a tensor that kept their values, as they were allowed to.
    pub missing: Vec<MissingTensor>,
    /// Tensors copied with another data type.
    pub cast: Vec<CastTensor>,
    /// Tensors known to be unused.
    pub ignored: Vec<IgnoredTensor>,
    /// Number of tensors that belong to other parts.
    pub other_parts: usize,
}

impl LoadReport {
    /// Bytes read from the files.
    pub fn bytes(&self) -> u64 {
        self.loaded.iter().map(|t| t.bytes).sum()
    }

    /// Whether no parameter lacked a tensor.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Lines written out per kind.
        const LINES: usize = 8;
        fn list<T: fmt::Display>(
            f: &mut fmt::Formatter<'_>,
            title: &str,
            items: impl ExactSizeIterator<Item = T>,
        ) -> fmt::Result {
            let count = items.len();
            if count == 0 {
                return Ok(());
            }
            writeln!(f, "{title:<12}{count:>6}")?;
            for item in items.take(LINES) {
                writeln!(f, "  {item}")?;
            }
            if count > LINES {
                writeln!(f, "  … and {} more", count - LINES)?;
            }
            Ok(())
        }
        writeln!(f, "{}", self.checkpoint.display())?;
        writeln!(
            f,
            "{:<12}{:>6}  {:.1} MB",
            "loaded",
            self.loaded.len(),
            self.bytes() as f64 / 1e6
        )?;
        if !self.cast.is_empty() {
            let mut kinds: Vec<String> = self
                .cast
                .iter()
                .map(|c| format!("{:?} → {}", c.from, c.to))
                .collect();
            kinds.sort();
            kinds.dedup();
            writeln!(
                f,
                "{:<12}{:>6}  {}",
                "cast",
                self.cast.len(),
                kinds.join(", ")
            )?;
        }
        list(f, "missing", self.missing.iter())?;
        list(
            f,
            "unused",
            self.ignored
                .iter()
                .map(|i| format!("{}: {}", i.key, i.reason)),
        )?;
        if self.other_parts > 0 {
            writeln!(f, "{:<12}{:>6}", "other parts", self.other_parts)?;
        }
        Ok(())
    }
}
