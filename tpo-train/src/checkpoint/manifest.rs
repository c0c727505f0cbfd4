//! The list of a checkpoint's files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the manifest. A directory without it is no checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Version of the format that this build writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// What a checkpoint is and what it consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Version of this crate that wrote it.
    pub version: String,
    /// Optimizer steps done since the start of the run.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// Whether the stage ended here.
    pub stage_end: bool,
    /// Value by which the best checkpoint is chosen, when there was an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The files by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// Size and sum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 sum, hexadecimal, as `b3sum` prints it.
    pub blake3: String,
}
