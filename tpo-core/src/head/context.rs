//! What a head may need besides the task embedding.

use std::collections::HashMap;

use burn::tensor::Tensor;

use crate::error::{CoreError, Result};
use crate::geometry::BoxXyxy;

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
    /// One frame `[1, 3, size, size]`, values 0–1. A source that streams overrides this, so
    /// that a head may walk through a long video without holding it.
    ///
    /// # Errors
    /// [`CoreError::MissingInput`] past the last frame.
    fn frame(&self, index: usize, size: usize) -> Result<Tensor<4>> {
        if index >= self.len() {
            return Err(CoreError::MissingInput {
                head: "FrameSource::frame".into(),
                what: "a frame at that index",
                hint: "ask for an index below FrameSource::len()",
            });
        }
        Ok(self.frames(size)?.narrow(0, index, 1))
    }
}

/// Feature rows of one sample, computed by a frozen tower or read from a file.
///
/// A head names what it wants, for example the video features of the temporal head; who calls
/// the model decides where they come from.
pub trait FeatureSource: Send + Sync {
    /// Rows `[rows, width]` under a name; `None` when the source has none by that name.
    fn features(&self, name: &str) -> Result<Option<Tensor<2>>>;
}

impl FeatureSource for HashMap<String, Tensor<2>> {
    fn features(&self, name: &str) -> Result<Option<Tensor<2>>> {
        Ok(self.get(name).cloned())
    }
}

/// Facts about one sample of the batch.
#[derive(Clone, Default)]
pub struct SampleContext<'a> {
    /// Name of the media; samples of one name are never each other's negatives.
    pub id: Option<&'a str>,
    /// `(width, height)` of the source in pixels.
    pub size: Option<(u32, u32)>,
    /// Duration of the source in seconds.
    pub duration: Option<f64>,
    /// Times of the sampled frames in seconds.
    pub timestamps: &'a [f64],
    /// The user's question.
    pub query: Option<&'a str>,
    /// Boxes the question is about, normalised.
    pub boxes: &'a [BoxXyxy],
    /// The frames, for heads that look again.
    pub frames: Option<&'a dyn FrameSource>,
    /// Features of frozen towers, for heads that read them.
    pub features: Option<&'a dyn FeatureSource>,
}

impl std::fmt::Debug for SampleContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SampleContext")
            .field("id", &self.id)
            .field("size", &self.size)
            .field("duration", &self.duration)
            .field("timestamps", &self.timestamps)
            .field("query", &self.query)
            .field("boxes", &self.boxes)
            .field("frames", &self.frames.map(|s| s.len()))
            .field("features", &self.features.is_some())
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

    /// Feature rows `[rows, width]` of the sample of the `token`-th task token.
    pub fn require_features(&self, head: &str, token: usize, name: &str) -> Result<Tensor<2>> {
        let source = self.sample(token).and_then(|s| s.features);
        let found = source.map(|s| s.features(name)).transpose()?.flatten();
        found.ok_or_else(|| CoreError::MissingFeatures {
            head: head.into(),
            name: name.into(),
        })
    }
}
