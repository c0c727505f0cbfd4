//! What is known of a sample of a batch besides its ids and pictures.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::error::CoreError;
use tpo_core::head::{FrameSource, Sample};
use tpo_core::truth::Truth;

use super::order::SampleKey;
use super::view::View;
use crate::clip::read_indices;
use crate::schema::{Media, open_media};
use crate::video::FrameBuffer;
use crate::{DataError, ImageTransform, MediaLimits, Rounding, VideoReader};

/// A sample of a batch: what heads know of it, and where it comes from.
#[derive(Debug, Clone)]
pub struct SampleFacts {
    /// Its place in the order.
    pub key: SampleKey,
    /// The JSONL file, or the name of a world.
    pub file: PathBuf,
    /// Its line, or the number of its clip, 1-based.
    pub line: u64,
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
            frames: self.clip.map(|c| Arc::new(c) as Arc<dyn FrameSource>),
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

/// Most bytes of frames that are decoded before they are asked for.
const AHEAD_BYTES: usize = 64 << 20;
/// Most such frames.
const AHEAD: usize = 16;

/// The sampled frames of a clip, decoded again when a head asks for another size.
///
/// A head that walks through the frames one by one gets them from blocks that are decoded together:
/// a video is opened once, and a frame is not decoded anew for each of its followers.
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
    /// Where tensors go.
    pub device: Device,
    walk: Arc<Mutex<Walk>>,
}

/// Where a walk through the frames is.
#[derive(Default)]
struct Walk {
    reader: Option<Arc<dyn VideoReader>>,
    /// The frame that comes next.
    next: usize,
    /// First frame, their size, and frames `[n, 3, size, size]` that are decoded.
    held: Option<(usize, usize, Tensor<4>)>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("next", &self.next).finish()
    }
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
        Self {
            media,
            source,
            indices,
            view,
            device,
            walk: Arc::default(),
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
        let reader = self.open()?;
        read_view(&*reader, indices, transform, &self.view)
    }

    fn tensor(
        &self,
        reader: &dyn VideoReader,
        indices: Vec<usize>,
        size: usize,
    ) -> tpo_core::Result<Tensor<4>> {
        // 0-1, as the reference gives pictures to the mask head before its own normalisation.
        let transform = ImageTransform {
            size: Some([size, size]),
            antialias: true,
            rounding: Rounding::Float,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        let clip = read_view(reader, indices, &transform, &self.view)
            .map_err(|e| CoreError::part("frame source", e))?;
        Ok(Tensor::from_data(
            TensorData::new(clip.values, clip.shape),
            &self.device,
        ))
    }
}

pub(super) fn read_view(
    reader: &dyn crate::VideoReader,
    indices: Vec<usize>,
    transform: &ImageTransform,
    view: &View,
) -> Result<crate::ClipValues, DataError> {
    let info = reader.info();
    let size = view.size(info.height, info.width);
    let map = |frame| view.map_frame(frame);
    let map = view.changes_pictures().then_some((&map as _, size));
    read_indices(reader, indices, transform, map, None)
}

impl FrameSource for ClipFrames {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        let reader = self.walk().open(self)?;
        self.tensor(&*reader, self.indices.clone(), size)
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        if index >= self.indices.len() {
            return Err(CoreError::MissingInput {
                head: "ClipFrames".into(),
                what: "a frame at that index",
                hint: "ask for an index below FrameSource::len()",
            });
        }
        let mut walk = self.walk();
        let walks = index > 0 && index == walk.next;
        walk.next = index + 1;
        if let Some((first, held, frames)) = &walk.held
            && *held == size
            && frames.device() == self.device
            && let Some(at) = index.checked_sub(*first)
            && at < frames.dims()[0]
        {
            let last = at + 1 == frames.dims()[0];
            let frame = frames.clone().narrow(0, at, 1);
            if last {
                walk.held = None;
            }
            return Ok(frame);
        }
        let reader = walk.open(self)?;
        let ahead = (AHEAD_BYTES / (12 * size * size).max(1)).clamp(1, AHEAD);
        let end = match walks {
            true => (index + ahead).min(self.indices.len()),
            false => index + 1,
        };
        let frames = self.tensor(&*reader, self.indices[index..end].to_vec(), size)?;
        walk.held = walks.then(|| (index, size, frames.clone()));
        Ok(frames.narrow(0, 0, 1))
    }
}

impl ClipFrames {
    fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Walk {
    fn open(&mut self, clip: &ClipFrames) -> tpo_core::Result<Arc<dyn VideoReader>> {
        if let Some(reader) = &self.reader {
            return Ok(reader.clone());
        }
        let reader = clip
            .open()
            .map_err(|e| CoreError::part("frame source", e))?;
        self.reader = Some(reader.clone());
        Ok(reader)
    }
}
