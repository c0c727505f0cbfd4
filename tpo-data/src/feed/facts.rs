//! What is known of a sample of a batch besides its ids and pictures.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{FeatureSource, FrameSource, SampleContext, TaskCall};

use super::order::SampleKey;
use super::truth::Truth;
use super::view::View;
use crate::schema::{Media, open_media};
use crate::video::FrameBuffer;
use crate::video_frames::read_view;
use crate::{DataError, ImageTransform, MediaLimits, VideoFrames, VideoReader};

/// A sample of a batch.
#[derive(Debug, Clone)]
pub struct SampleFacts {
    /// Its place in the order.
    pub key: SampleKey,
    /// The JSONL file, or the name of a world.
    pub file: PathBuf,
    /// Its line, or the number of its clip, 1-based.
    pub line: u64,
    /// `id` of the row.
    pub id: Option<String>,
    /// The clip; `None` for text.
    pub clip: Option<ClipFrames>,
    /// `(width, height)` in pixels of what is seen of the source.
    pub size: Option<(u32, u32)>,
    /// Seconds of the clip.
    pub duration: Option<f64>,
    /// Times of the sampled frames in seconds from the start of the clip.
    pub timestamps: Vec<f64>,
    /// The query of the first annotation, or the first question.
    pub query: Option<String>,
    /// Boxes of the questions, normalised, in order.
    pub boxes: Vec<BoxXyxy>,
    /// Annotations in the order the answers call them.
    pub truths: Vec<Truth>,
    /// The calls of heads in the answers, in order, one per truth.
    pub calls: Vec<TaskCall>,
}

impl SampleFacts {
    /// Name in messages, for example `refcoco.jsonl:17`.
    pub fn name(&self) -> String {
        let file = self.file.file_name().unwrap_or_default();
        format!("{}:{}", file.to_string_lossy(), self.line)
    }

    /// As heads see it. Samples of one media file share an id, so they are never each other's
    /// negatives.
    pub fn context<'a>(&'a self, features: Option<&'a dyn FeatureSource>) -> SampleContext<'a> {
        SampleContext {
            id: self.clip.as_ref().map(|c| c.media.path.as_str()),
            size: self.size,
            duration: self.duration,
            timestamps: &self.timestamps,
            query: self.query.as_deref(),
            boxes: &self.boxes,
            frames: self.clip.as_ref().map(|c| c as &dyn FrameSource),
            features,
            calls: &self.calls,
        }
    }
}

/// Where a clip is read from.
#[derive(Debug, Clone)]
pub enum ClipSource {
    /// A file.
    Folder {
        /// Folder the media's path is relative to.
        root: PathBuf,
        /// Limits on reading it.
        limits: MediaLimits,
    },
    /// Frames in memory.
    Memory(Arc<FrameBuffer>),
}

impl ClipSource {
    /// Opens the media of a row.
    ///
    /// # Errors
    /// As [`open_media`].
    pub fn open(&self, media: &Media) -> Result<Arc<dyn VideoReader>, DataError> {
        Ok(match self {
            Self::Folder { root, limits } => open_media(media, root, limits)?.into(),
            Self::Memory(video) => video.clone(),
        })
    }
}

/// The sampled frames of a clip, decoded again when a head asks for them.
#[derive(Debug, Clone)]
pub struct ClipFrames {
    /// The media as the row has it.
    pub media: Media,
    /// Where it is read from.
    pub source: ClipSource,
    /// Indices of the sampled frames in the file.
    pub indices: Vec<usize>,
    /// How the clip is looked at.
    pub view: View,
    /// The frames.
    pub frames: VideoFrames,
}

impl ClipFrames {
    /// Frames `indices` of a media file, as `view` shows them, on `device`.
    pub fn new(
        media: Media,
        source: ClipSource,
        indices: Vec<usize>,
        view: View,
        device: Device,
    ) -> Self {
        let (from, row) = (source.clone(), media.clone());
        Self {
            frames: VideoFrames::lazy(move || from.open(&row), &indices, &device).with_view(view),
            media,
            source,
            indices,
            view,
        }
    }

    /// Opens the whole video.
    ///
    /// # Errors
    /// As [`open_media`].
    pub fn open(&self) -> Result<Arc<dyn VideoReader>, DataError> {
        self.source.open(&self.media)
    }

    /// Reads and transforms frames: values `[frames, 3, height, width]`.
    ///
    /// # Errors
    /// Those of reading and of the transform.
    pub fn read(
        &self,
        indices: Vec<usize>,
        transform: &ImageTransform,
    ) -> Result<crate::ClipValues, DataError> {
        read_view(&*self.open()?, indices, transform, &self.view, None)
    }
}

impl FrameSource for ClipFrames {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.frames.frames(size)
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.frames.frame(index, size)
    }
}
