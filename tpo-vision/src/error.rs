//! Errors of the vision crate.

use std::fmt::Display;

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
    /// Frames that the part cannot take: none, of other channels, or of another number or size.
    #[error("{place}: {why}")]
    Frames {
        /// The function.
        place: &'static str,
        /// What was expected and found, and what to do.
        why: String,
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
    /// An instruction that is too long or holds a token outside the vocabulary.
    #[error("{place}: {why}")]
    Instruction {
        /// The function.
        place: &'static str,
        /// What was expected and found, and what to do.
        why: String,
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

    pub(crate) fn frames(place: &'static str, why: impl Display) -> Self {
        Self::Frames {
            place,
            why: why.to_string(),
        }
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
        return Err(VisionError::frames(
            place,
            format_args!(
                "the clip {found:?} (batch, frames, channels, height, width) is empty; give at \
                 least one frame"
            ),
        ));
    }
    let channels = found[2];
    if channels != CHANNELS {
        return Err(VisionError::frames(
            place,
            format_args!(
                "expected {CHANNELS} channels in axis 2 of [batch, frames, channels, height, \
                 width], found {channels}; convert grey or RGBA frames to RGB and check the axis \
                 order"
            ),
        ));
    }
    Ok(())
}

/// Refuses frames that cannot be cut into whole patches.
pub(crate) fn check_patches(
    place: &'static str,
    [height, width]: [usize; 2],
    patch: usize,
) -> Result<()> {
    if height.is_multiple_of(patch) && width.is_multiple_of(patch) {
        return Ok(());
    }
    Err(VisionError::frames(
        place,
        format_args!(
            "frames of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}; \
             resize to a multiple of {patch}"
        ),
    ))
}
