//! Errors of the language-model crate.

use thiserror::Error;

/// Result with [`LlmError`].
pub type Result<T, E = LlmError> = std::result::Result<T, E>;

/// What can go wrong in a language model: configuration, tokenizer, cache, generation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LlmError {
    /// A configuration whose numbers do not fit together.
    #[error("model configuration: {problems}")]
    Config {
        /// Every problem, separated by semicolons.
        problems: String,
    },
    /// Something this decoder does not build.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked for and what exists.
        what: String,
    },
    /// A tensor of the wrong shape.
    #[error("{place}: expected {expected}, found {found:?}")]
    Shape {
        /// The function.
        place: &'static str,
        /// Expected shape in words.
        expected: String,
        /// Shape found.
        found: Vec<usize>,
    },
    /// No room for more positions.
    #[error(
        "the cache holds {len} of {capacity} positions and {new} more were fed; \
         create it with a larger capacity or shorten the prompt"
    )]
    CacheFull {
        /// Positions held.
        len: usize,
        /// Positions that fit.
        capacity: usize,
        /// Positions to add.
        new: usize,
    },
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Weights that cannot be loaded.
    #[error(transparent)]
    Weights(#[from] tpo_core::weights::WeightsError),
}

impl From<LlmError> for tpo_core::CoreError {
    fn from(error: LlmError) -> Self {
        tpo_core::CoreError::part("language model", error)
    }
}
