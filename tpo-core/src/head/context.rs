//! What a head may need besides the task embedding.

use burn::tensor::Tensor;

use crate::error::{CoreError, Result};

/// Frames of one sample, decoded on demand and at the size a head asks for.
pub trait FrameSource: Send + Sync {
    /// Number of frames.
    fn len(&self) -> usize;
    /// Whether there are no frames.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Frames `[frames, 3, size, size]`, values 0–1 before any normalisation.
    fn frames(&self, size: usize) -> Result<Tensor<4>>;
}

/// Facts about one sample of the batch.
#[derive(Clone, Default)]
pub struct SampleContext<'a> {
    /// `(width, height)` of the source in pixels.
    pub size: Option<(u32, u32)>,
    /// Duration of the source in seconds.
    pub duration: Option<f64>,
    /// Times of the sampled frames in seconds.
    pub timestamps: &'a [f64],
    /// The user's question.
    pub query: Option<&'a str>,
    /// The frames, for heads that look again.
    pub frames: Option<&'a dyn FrameSource>,
}

impl std::fmt::Debug for SampleContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SampleContext")
            .field("size", &self.size)
            .field("duration", &self.duration)
            .field("timestamps", &self.timestamps)
            .field("query", &self.query)
            .field("frames", &self.frames.map(|s| s.len()))
            .finish()
    }
}

/// The batch as a head sees it.
#[derive(Debug, Clone, Default)]
pub struct HeadContext<'a> {
    /// One entry per sample of the batch; empty when the caller knows nothing.
    pub samples: &'a [SampleContext<'a>],
    /// For each task token the index of its sample.
    pub rows: &'a [usize],
}

impl<'a> HeadContext<'a> {
    /// The sample of the `token`-th task token, if the caller described it.
    pub fn sample(&self, token: usize) -> Option<&'a SampleContext<'a>> {
        self.samples.get(*self.rows.get(token)?)
    }

    /// `(width, height)` in pixels of the source of the `token`-th task token.
    pub fn require_size(&self, head: &str, token: usize) -> Result<(u32, u32)> {
        self.sample(token)
            .and_then(|s| s.size)
            .ok_or_else(|| CoreError::MissingInput {
                head: head.into(),
                what: "the size of the video or image in pixels",
                hint: "set SampleContext::size",
            })
    }
}
