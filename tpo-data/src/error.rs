//! The error type of this crate.

use std::path::{Path, PathBuf};

/// Everything that can go wrong while reading, sampling or transforming media.
///
/// No input file can make this crate panic or allocate more than
/// [`MediaLimits`](crate::MediaLimits) allows; it gets one of these instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },

    /// The file is empty.
    #[error("{} is empty", path.display())]
    EmptyFile {
        /// The file, or `<memory>`.
        path: PathBuf,
    },

    /// A size in the file exceeds a limit. Nothing was decoded.
    #[error(
        "{}: {what} is {found}, the limit is {limit}; raise MediaLimits::{field} if the file is trusted",
        path.display()
    )]
    LimitExceeded {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What was measured, with its unit.
        what: &'static str,
        /// The value in the file.
        found: u64,
        /// The value allowed.
        limit: u64,
        /// The field of [`MediaLimits`](crate::MediaLimits) that sets the limit.
        field: &'static str,
    },

    /// The container is not one this build reads.
    #[error("{}: not a container this build reads ({found}); {hint}", path.display())]
    UnsupportedContainer {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What the first bytes look like.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },

    /// The container is fine but its video codec, or a feature of it, is not supported.
    #[error("{}: video codec {codec} is not supported; {hint}", path.display())]
    UnsupportedCodec {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// Codec tag and what about it is unsupported.
        codec: String,
        /// What to do about it.
        hint: &'static str,
    },

    /// The container has no video track.
    #[error("{}: no video track", path.display())]
    NoVideoTrack {
        /// The file, or `<memory>`.
        path: PathBuf,
    },

    /// The structure of the file contradicts itself.
    #[error("{}: corrupt {what}: {reason}", path.display())]
    Corrupt {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// The box, table or chunk.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// The file ends before the data its tables point to.
    #[error(
        "{}: truncated: sample {sample} occupies bytes {start}..{end} but the file has {len}; fetch the file again",
        path.display()
    )]
    Truncated {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// Index of the first sample (coded picture) that is not in the file.
        sample: usize,
        /// First byte of the sample.
        start: u64,
        /// One past the last byte of the sample.
        end: u64,
        /// Length of the file in bytes.
        len: u64,
    },

    /// A frame could not be decoded.
    #[error("{}: cannot decode frame {frame}: {reason}", path.display())]
    Decode {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// Coded picture (0-based, decoding order) at which it failed.
        frame: usize,
        /// What the decoder said.
        reason: String,
    },

    /// A still image could not be decoded.
    #[error("{}: cannot decode image: {reason}", path.display())]
    Image {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },

    /// A frame index past the end was asked for.
    #[error("frame {index} asked for, the video has {frame_count} frames (0..{frame_count})")]
    FrameOutOfRange {
        /// The index asked for.
        index: usize,
        /// Number of frames of the video.
        frame_count: usize,
    },

    /// A sampling request that cannot be met.
    #[error("invalid sampling: {reason}")]
    InvalidSampling {
        /// What is wrong, with the values.
        reason: String,
    },

    /// The sampling rule selects no frame of this video.
    #[error(
        "sampling {sampling} selects no frame of a video of {frame_count} frames at {fps} fps; \
         use `middle`, which always yields the frames asked for"
    )]
    NoFramesSelected {
        /// The sampling rule, as text.
        sampling: String,
        /// Number of frames of the clip.
        frame_count: usize,
        /// Frames per second of the video.
        fps: f64,
    },

    /// A transform cannot be applied to these frames.
    #[error("invalid transform: {reason}")]
    InvalidTransform {
        /// What is wrong, with the values.
        reason: String,
    },

    /// The caller's callback asked to stop.
    #[error("cancelled by the caller")]
    Cancelled,
    /// A synthetic world or scene that cannot be drawn.
    #[error("synthetic world: {reason}")]
    InvalidSynthetic {
        /// What is wrong and what was expected.
        reason: String,
    },

    /// A row of a dataset is bad.
    #[error("{0}")]
    Row(#[source] crate::schema::RowError),

    /// A row of a dataset is bad, and bad rows are fatal (`strict`).
    #[error("{0}; mend the row, or leave `strict` off to skip such rows")]
    StrictRow(#[source] crate::schema::RowError),

    /// A dataset in a public format does not look as that format is documented.
    #[error("{}: {place}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in the file: a line, a key, an index.
        place: String,
        /// What is wrong with it and what was expected.
        reason: String,
    },

    /// A JSON file is not whole, or not built as its format is documented: nothing after this place
    /// can be read.
    #[error("{}: {place}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Which byte of which part.
        place: String,
        /// What is wrong there and what was expected.
        reason: String,
    },

    /// An invalid configuration of a mixture, order, augmentation or loader.
    #[error("invalid {what}: {reason}")]
    InvalidConfig {
        /// The configuration struct.
        what: &'static str,
        /// What is wrong, with the values.
        reason: String,
    },

    /// A row cannot be turned into a prompt and targets.
    #[error("{reason}")]
    Prepare {
        /// What is wrong and what to do about it.
        reason: String,
    },

    /// Geometry, prompt or token work of `tpo-core` failed.
    #[error(transparent)]
    Core(#[from] tpo_core::error::CoreError),
}

impl DataError {
    /// Whether a dataset ends with it; any other error costs one of its records.
    pub fn ends_dataset(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Json { .. } | Self::InvalidConfig { .. }
        )
    }

    /// What a failure of the operating system at `path` becomes.
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + Copy + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }

    /// What the structure of the file at `path` contradicts itself with.
    pub(crate) fn corrupt(path: &Path, what: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.into(),
            what,
            reason: reason.into(),
        }
    }

    /// What became of frame `frame` of the video at `path`.
    pub(crate) fn decode(path: &Path, frame: usize, reason: impl Into<String>) -> Self {
        Self::Decode {
            path: path.into(),
            frame,
            reason: reason.into(),
        }
    }

    /// What is wrong with a request for frames.
    pub(crate) fn sampling(reason: impl Into<String>) -> Self {
        Self::InvalidSampling {
            reason: reason.into(),
        }
    }

    /// What is wrong with a transform, or a frame for it.
    pub(crate) fn transform(reason: impl Into<String>) -> Self {
        Self::InvalidTransform {
            reason: reason.into(),
        }
    }

    /// What is wrong with a synthetic world.
    pub(crate) fn synthetic(problems: Vec<String>) -> Self {
        Self::InvalidSynthetic {
            reason: problems.join("; "),
        }
    }
}
