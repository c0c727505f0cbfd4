//! From a video to the tensor a model is fed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use crate::sampling::{ClipRange, FrameSampling, clip_frame_indices, frame_indices};
use crate::video::distinct_indices;
use crate::{DataError, Frame, ImageTransform, VideoInfo, VideoReader};

/// Which frames to take and how to transform them.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Rule that picks frames.
    pub sampling: FrameSampling,
    /// Frames wanted; [`FrameSampling::Fps`] ignores it. The reference uses 16.
    pub num_frames: usize,
    /// Part of the video; `None` for all of it.
    pub range: Option<ClipRange>,
    /// Transform of every frame.
    pub transform: ImageTransform,
}

impl Default for ClipConfig {
    /// 16 middle frames of the whole video for the vision encoder (reference implementation).
    fn default() -> Self {
        Self {
            sampling: FrameSampling::Middle,
            num_frames: 16,
            range: None,
            transform: ImageTransform::vision(),
        }
    }
}

/// Called with (frames done, frames in total), possibly from several threads; returning
/// `false` cancels.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) -> bool + Sync);

/// Sampled and transformed frames in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipValues {
    /// Values, `[frames, 3, height, width]`.
    pub values: Vec<f32>,
    /// `[frames, 3, height, width]`.
    pub shape: [usize; 4],
    /// Index of every frame in the video.
    pub indices: Vec<usize>,
    /// Presentation time of every frame in seconds, not rounded. The times the reference gives
    /// the model are [`told_times`](crate::sampling::told_times).
    pub timestamps: Vec<f64>,
    /// The video; its width and height are those of the original frames.
    pub info: VideoInfo,
}

impl ClipValues {
    /// The values as a tensor `[1, frames, 3, height, width]`, float32.
    pub fn into_tensor(self, device: &Device) -> Tensor<5> {
        let [t, c, h, w] = self.shape;
        Tensor::from_data(TensorData::new(self.values, [1, t, c, h, w]), device)
    }
}

/// Frame indices `config` selects from a video.
///
/// # Errors
/// Those of [`frame_indices`], and [`DataError::NoFramesSelected`].
pub fn select_frames(info: &VideoInfo, config: &ClipConfig) -> Result<Vec<usize>, DataError> {
    let (sampling, n) = (config.sampling, config.num_frames);
    let indices = match config.range {
        Some(range) => clip_frame_indices(sampling, n, info.frame_count, info.fps, range)?,
        None => frame_indices(sampling, n, info.frame_count, info.fps)?,
    };
    if indices.is_empty() {
        return Err(DataError::NoFramesSelected {
            sampling: sampling.to_string(),
            frame_count: info.frame_count,
            fps: info.fps,
        });
    }
    Ok(indices)
}

/// Samples a video and transforms its frames, each while others are still being decoded.
///
/// # Errors
/// Those of [`select_frames`], of decoding and of the transform; [`DataError::Cancelled`].
pub fn read_clip(
    reader: &dyn VideoReader,
    config: &ClipConfig,
    progress: Option<Progress<'_>>,
) -> Result<ClipValues, DataError> {
    let indices = select_frames(reader.info(), config)?;
    read_indices(reader, indices, &config.transform, None, progress)
}

/// Changes a decoded picture before it is transformed; all results of a clip must have one
/// size.
pub(crate) type FrameMap<'a> = &'a (dyn Fn(Frame) -> Result<Frame, DataError> + Sync);

/// Reads and transforms the frames `indices`, in that order; an index may occur more than once.
pub(crate) fn read_indices(
    reader: &dyn VideoReader,
    indices: Vec<usize>,
    transform: &ImageTransform,
    map: Option<(FrameMap<'_>, [usize; 2])>,
    progress: Option<Progress<'_>>,
) -> Result<ClipValues, DataError> {
    let info = reader.info();
    let (map, [height, width]) = match map {
        Some((map, size)) => (Some(map), size),
        None => (None, [info.height, info.width]),
    };
    let plan = transform.plan(height, width)?;
    let [h, w] = plan.output_size();
    // Four bytes per value.
    let budget = indices.len().saturating_mul(4);
    reader.limits().check_decoded(reader.path(), budget, w, h)?;

    let per_frame = 3 * h * w;
    let mut values = vec![0.0; indices.len() * per_frame];
    let slots: Vec<_> = values.chunks_exact_mut(per_frame).map(Mutex::new).collect();
    // A frame goes where it is asked for first, repetitions are copied afterwards.
    let first = |index| indices.iter().position(|i| *i == index).unwrap_or(0);
    let distinct = distinct_indices(&indices, info.frame_count)?;
    let done = AtomicUsize::new(0);
    reader.visit_frames(&distinct, &|index, frame| {
        let frame = match map {
            Some(map) => map(frame)?,
            None => frame,
        };
        let slot = slots[first(index)].lock();
        plan.apply_into(&frame, &mut slot.unwrap_or_else(PoisonError::into_inner))?;
        let done = done.fetch_add(1, Ordering::AcqRel) + 1;
        match progress {
            Some(report) if !report(done, distinct.len()) => Err(DataError::Cancelled),
            _ => Ok(()),
        }
    })?;
    drop(slots);
    for (i, index) in indices.iter().enumerate() {
        let source = first(*index);
        if source != i {
            values.copy_within(source * per_frame..(source + 1) * per_frame, i * per_frame);
        }
    }
    let timestamps = indices
        .iter()
        .map(|&i| info.timestamps.get(i).copied().unwrap_or(0.0))
        .collect();
    Ok(ClipValues {
        shape: [indices.len(), 3, h, w],
        values,
        timestamps,
        indices,
        info: info.clone(),
    })
}
