//! Errors of the vision crate.

use thiserror::Error;

/// Result with [`VisionError`].
pub type Result<T, E = VisionError> = std::result::Result<T, E>;

/// What can go wrong in an encoder or connector: an architecture that does not add up, or an
/// input the architecture cannot take.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VisionError {
    /// An architecture config whose values contradict each other. All problems are listed.
    #[error("{part} config: {}", problems.join("; "))]
    Config {
        /// Which config.
        part: &'static str,
        /// Every rule that is broken, with the values found.
        problems: Vec<String>,
    },
    /// A config file that cannot be read as this part's config.
    #[error("{part} config: {source}; the field names are those of the reference's config.json")]
    ConfigJson {
        /// Which config.
        part: &'static str,
        /// Missing field or wrong type.
        #[source]
        source: serde_json::Error,
    },
    /// A clip with no frames, no rows, no columns or an empty batch.
    #[error(
        "{place}: the clip {found:?} (batch, frames, channels, height, width) is empty; \
         give at least one frame"
    )]
    EmptyVideo {
        /// The function.
        place: &'static str,
        /// Shape found.
        found: [usize; 5],
    },
    /// Frames that do not have red, green and blue.
    #[error(
        "{place}: expected {expected} channels in axis 2 of [batch, frames, channels, height, \
         width], found {found}; convert grey or RGBA frames to RGB and check the axis order"
    )]
    Channels {
        /// The function.
        place: &'static str,
        /// Channels of the patch embedding.
        expected: usize,
        /// Channels of the clip.
        found: usize,
    },
    /// Frames that cannot be cut into whole patches.
    #[error(
        "{place}: frames of {height}x{width} pixels cannot be cut into patches of \
         {patch}x{patch}; resize to a multiple of {patch}"
    )]
    FrameSize {
        /// The function.
        place: &'static str,
        /// Frame height in pixels.
        height: usize,
        /// Frame width in pixels.
        width: usize,
        /// Side of a patch in pixels.
        patch: usize,
    },
    /// A number of frames that cannot be cut into whole tubelets.
    #[error(
        "{place}: {frames} frames cannot be cut into tubelets of {tubelet}; \
         sample a multiple of {tubelet}"
    )]
    FrameCount {
        /// The function.
        place: &'static str,
        /// Frames of the clip.
        frames: usize,
        /// Frames per tubelet.
        tubelet: usize,
    },
    /// A tensor of the wrong shape.
    #[error("{place}: expected {what} of shape {expected}, found {found:?}")]
    Shape {
        /// The function.
        place: &'static str,
        /// Which tensor.
        what: &'static str,
        /// Expected shape in words.
        expected: String,
        /// Shape found.
        found: Vec<usize>,
    },
    /// An instruction longer than the position table.
    #[error(
        "{place}: the instruction has {length} tokens, padding included, but there are {max} \
         positions; truncate it on the left as the reference's tokenizer does"
    )]
    InstructionLength {
        /// The function.
        place: &'static str,
        /// Tokens found.
        length: usize,
        /// Positions available.
        max: usize,
    },
    /// A token id outside the vocabulary.
    #[error(
        "{place}: token id {found} is outside the vocabulary of {vocab}; \
         tokenise the instruction with the connector's own (BERT) tokenizer"
    )]
    TokenId {
        /// The function.
        place: &'static str,
        /// Offending id.
        found: i64,
        /// Rows of the word table.
        vocab: usize,
    },
    /// A clip of another length than the position table is for.
    #[error("{place}: a clip has {expected} frames, or one for an image; found {found}")]
    ClipFrames {
        /// The function.
        place: &'static str,
        /// Frames of a clip.
        expected: usize,
        /// Frames found.
        found: usize,
    },
    /// Frames of another size than the position table is for.
    #[error(
        "{place}: frames must be {expected}x{expected} pixels, found {height}x{width}; resize \
         them, or load the checkpoint into a config of that size"
    )]
    ClipSize {
        /// The function.
        place: &'static str,
        /// Side of a frame in pixels.
        expected: usize,
        /// Frame height in pixels.
        height: usize,
        /// Frame width in pixels.
        width: usize,
    },
    /// A stored position table that is no grid.
    #[error(
        "position table of {rows} rows for {steps} steps in time: {problem}; set the number of \
         frames the checkpoint was trained with"
    )]
    PositionTable {
        /// Rows, the class token's included.
        rows: usize,
        /// Steps in time the table is said to have.
        steps: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Weights that cannot be loaded.
    #[error(transparent)]
    Weights(#[from] tpo_core::weights::WeightsError),
}

impl VisionError {
    /// What the broken rules of the config of `part` become.
    pub(crate) fn config(part: &'static str) -> impl FnOnce(Vec<String>) -> Self {
        move |problems| Self::Config { part, problems }
    }
}

impl From<VisionError> for tpo_core::CoreError {
    fn from(error: VisionError) -> Self {
        tpo_core::CoreError::part("vision", error)
    }
}

/// Refuses a clip `[batch, frames, channels, height, width]` without pixels, or not of red, green
/// and blue.
pub(crate) fn check_video(place: &'static str, found: [usize; 5]) -> Result<()> {
    const CHANNELS: usize = 3;
    if found.contains(&0) {
        return Err(VisionError::EmptyVideo { place, found });
    }
    match found[2] {
        CHANNELS => Ok(()),
        channels => Err(VisionError::Channels {
            place,
            expected: CHANNELS,
            found: channels,
        }),
    }
}
