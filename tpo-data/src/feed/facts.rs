//! What is known of a sample of a batch besides its ids and pictures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use tpo_core::head::{FrameSource, Sample};
use tpo_core::truth::Truth;

use super::order::SampleKey;
use super::view::View;
use crate::schema::{Media, open_media};
use crate::video::FrameBuffer;
use crate::video_frames::read_view;
use crate::{DataError, ImageTransform, MediaLimits, VideoFrames, VideoReader};

/// A sample of a batch: what heads know of it, and where it comes from.
#[derive(Debug, Clone)]
pub struct SampleFacts {
    /// Its place in the order.
    pub key: SampleKey,
    /// The JSONL file, or the name of a world.
    pub file: PathBuf,
    /// Its line, or the number of its clip, 1-based.
    pub line: u64,
    /// [`Sample::query_id`](crate::schema::Sample::query_id) of the row.
    pub query_id: Option<String>,
    /// The clip; `None` for text.
    pub clip: Option<ClipFrames>,
    /// Annotations in the order the answers call them, one per call.
    pub truths: Vec<Truth>,
    /// What heads see, without the frames, which [`SampleFacts::into_sample`] adds.
    pub sample: Sample,
}

impl SampleFacts {
    /// As heads see it. Samples of one media file have one name of the media, so they are never
    /// each other's negatives.
    pub fn into_sample(self) -> Sample {
        Sample {
            frames: self
                .clip
                .map(|c| Arc::new(c.frames) as Arc<dyn FrameSource>),
            ..self.sample
        }
    }
}

/// Name of a row in messages, for example `refcoco.jsonl:17`.
pub(super) fn row_name(file: &Path, line: u64) -> String {
    let file = file.file_name().unwrap_or_default();
    format!("{}:{line}", file.to_string_lossy())
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
