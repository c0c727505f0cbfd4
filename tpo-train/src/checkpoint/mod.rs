//! Training checkpoints: directories that are complete or ignored.
//!
//! A [`CheckpointStore`] is a run's directory of checkpoints, one directory each:
//!
//! ```text
//! checkpoints/
//!   step-00000500/
//!     weights.safetensors      trained parameters under their module paths
//!     optimizer.safetensors    moments, by name of the parameter
//!     state.json               step, epoch, random numbers, sampler, mixture
//!     recipe.toml              the resolved recipe
//!     manifest.json            sizes and BLAKE3 sums of all of these; written last
//! ```
//!
//! [`CheckpointStore::begin`] gives a [`Draft`], a hidden directory that files are streamed into;
//! [`Draft::commit`] writes the manifest, flushes everything to the disk and renames the directory
//! in one step. A process that is killed, a disk that fills up: at any moment there is either the
//! whole checkpoint or none under its name, and those before it are untouched.
//! [`CheckpointStore::newest`] finds the last one that is whole, whatever lies beside it.
//!
//! [`SavedCheckpoint::open`] checks sizes and sums before anything is used.

mod background;
mod disk;
mod draft;
mod manifest;
mod open;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use background::Background;
pub use draft::Draft;
pub use manifest::{FORMAT, FileEntry, MANIFEST_FILE, Manifest};
pub use open::SavedCheckpoint;
pub use store::{CheckpointStore, Retention, Skipped};

/// Names of the files the trainer writes.
pub mod files {
    /// Parameters.
    pub const WEIGHTS: &str = "weights.safetensors";
    /// State of the optimizer.
    pub const OPTIMIZER: &str = "optimizer.safetensors";
    /// Everything else, as JSON.
    pub const STATE: &str = "state.json";
    /// The resolved recipe.
    pub const RECIPE: &str = "recipe.toml";
}
