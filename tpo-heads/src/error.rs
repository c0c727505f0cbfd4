//! Errors of the heads.

/// What can go wrong in a head, beyond [`tpo_core::CoreError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadsError {
    /// A tensor does not have the shape the head reads.
    #[error("{place}: {what} must be {expected}, found {found:?}")]
    Shape {
        /// Where it was noticed.
        place: &'static str,
        /// Which tensor.
        what: &'static str,
        /// The shape that was expected, in words or numbers.
        expected: String,
        /// The shape that was found.
        found: Vec<usize>,
    },
    /// A tensor holds NaN or infinity.
    #[error("{place}: {what} holds {count} values that are not finite, the first at {first}")]
    NotFinite {
        /// Where it was noticed.
        place: &'static str,
        /// Which tensor.
        what: String,
        /// How many values.
        count: usize,
        /// Flat index of the first.
        first: usize,
    },
    /// A configuration that cannot work.
    #[error("{what} is {found}, expected {expected}")]
    Config {
        /// The field.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An error of the core.
    #[error(transparent)]
    Core(#[from] tpo_core::CoreError),
    /// A file of precomputed features that cannot be used.
    #[error("feature file {path}: {why}", path = path.display())]
    FeatureFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A target of the mask head that nothing can be learned from.
    #[error("mask target {token}: {why}; give a box, or a mask of frame 0 that is not empty")]
    MaskTarget {
        /// Index of the task token.
        token: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl From<tpo_vision::VisionError> for HeadsError {
    fn from(error: tpo_vision::VisionError) -> Self {
        Self::Core(error.into())
    }
}

impl From<tpo_llm::LlmError> for HeadsError {
    fn from(error: tpo_llm::LlmError) -> Self {
        Self::Core(error.into())
    }
}

impl From<HeadsError> for tpo_core::CoreError {
    fn from(error: HeadsError) -> Self {
        match error {
            HeadsError::Core(error) => error,
            other => Self::Part {
                part: "heads",
                source: Box::new(other),
            },
        }
    }
}
