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
    /// A frame that the video does not have.
    #[error("frame {frame} does not exist{}", length(.frames))]
    NoSuchFrame {
        /// The index that was asked for, from 0.
        frame: usize,
        /// Number of frames, if known.
        frames: Option<usize>,
    },
    /// A frame, or what was remembered of it, is not available any more.
    #[error("frame {frame} is gone: {why}; {hint}")]
    FrameGone {
        /// The frame that was asked for.
        frame: usize,
        /// What is missing.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// A frame that could not be read.
    #[error("frame {frame}: {source}")]
    Frame {
        /// Its index, from 0.
        frame: usize,
        /// The reader's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An object that is not tracked.
    #[error("object {object} is not tracked; tracked objects: {known:?}")]
    NoSuchObject {
        /// The id that was asked for.
        object: u32,
        /// Ids that exist.
        known: Vec<u32>,
    },
    /// Nothing was prompted before a run.
    #[error(
        "{} has no prompt: add points, a box, a mask or an embedding first",
        .object.map_or("the tracker".into(), |id| format!("object {id}"))
    )]
    NothingToTrack {
        /// The object without a prompt, if there are objects at all.
        object: Option<u32>,
    },
    /// A prompt that cannot be used.
    #[error("prompt on frame {frame}: {what} cannot be used: {why}")]
    Prompt {
        /// Index of the frame.
        frame: usize,
        /// The prompt, with its numbers.
        what: String,
        /// Which rule it breaks.
        why: &'static str,
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

/// How long the video is, in words.
impl HeadsError {
    /// A value of a config that cannot be used.
    pub(crate) fn config(
        what: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Config {
            what,
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// Sizes that must be between two others: name, size, least, most.
    pub(crate) fn sizes(sizes: &[(&'static str, usize, usize, usize)]) -> Result<(), Self> {
        for &(what, size, least, most) in sizes {
            let holds = (least..=most).contains(&size);
            Self::require(holds, what, format!("{least} to {most}"), size)?;
        }
        Ok(())
    }

    /// [`HeadsError::config`] unless the rule holds.
    pub(crate) fn require(
        holds: bool,
        what: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Result<(), Self> {
        if holds {
            Ok(())
        } else {
            Err(Self::config(what, expected, found))
        }
    }
}

fn length(frames: &Option<usize>) -> String {
    frames.map_or(String::new(), |n| format!(": the video has {n} frames"))
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
