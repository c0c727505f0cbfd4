//! From a video file to the tensor a model is fed, in one call.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor, TensorData};

use crate::sampling::{ClipRange, FrameSampling, clip_frame_indices, frame_indices};
use crate::{DataError, Frame, ImageTransform, MediaLimits, VideoInfo, VideoReader, open_video};

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
    /// Presentation time of every frame in seconds, not rounded.
    pub timestamps: Vec<f64>,
    /// The video.
    pub info: VideoInfo,
}

/// Sampled and transformed frames on a device.
#[derive(Debug, Clone)]
pub struct VideoClip {
    /// `[1, frames, 3, height, width]`, float32.
    pub tensor: Tensor<5>,
    /// Index of every frame in the video.
    pub indices: Vec<usize>,
    /// Presentation time of every frame in seconds, not rounded. The times the
    /// reference gives the model are [`frame_timestamps`](crate::sampling::frame_timestamps).
    pub timestamps: Vec<f64>,
    /// The video; its width and height are those of the original frames.
    pub info: VideoInfo,
}

/// Opens a video, samples and transforms it: `[1, frames, 3, height, width]` on `device`.
///
/// Frames are transformed while others are still being decoded, and then dropped.
///
/// # Errors
/// Those of [`open_video`], of the sampling functions and of the transform;
/// [`DataError::NoFramesSelected`] when the rule selects nothing, [`DataError::Cancelled`].
pub fn video_clip_tensor(
    path: impl AsRef<Path>,
    config: &ClipConfig,
    limits: &MediaLimits,
    device: &Device,
    progress: Option<Progress<'_>>,
) -> Result<VideoClip, DataError> {
    let reader = open_video(path, limits)?;
    let clip = read_clip(&*reader, config, progress)?;
    let [t, c, h, w] = clip.shape;
    Ok(VideoClip {
        tensor: Tensor::from_data(TensorData::new(clip.values, [1, t, c, h, w]), device),
        indices: clip.indices,
        timestamps: clip.timestamps,
        info: clip.info,
    })
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

/// As [`video_clip_tensor`] for a video that is already open, without a device.
///
/// # Errors
/// As [`video_clip_tensor`].
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
    // Where each distinct frame goes; repetitions are copied afterwards.
    let mut distinct: Vec<usize> = indices.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let first_use: Vec<usize> = distinct
        .iter()
        .map(|d| indices.iter().position(|i| i == d).unwrap_or(0))
        .collect();
    {
        let mut parts: Vec<Option<&mut [f32]>> =
            values.chunks_exact_mut(per_frame).map(Some).collect();
        let slots: Vec<Mutex<Option<&mut [f32]>>> = first_use
            .iter()
            .map(|&at| Mutex::new(parts[at].take()))
            .collect();
        let done = AtomicUsize::new(0);
        reader.visit_frames(&distinct, &|index, frame| {
            if let Ok(at) = distinct.binary_search(&index) {
                let slot = slots[at].lock().unwrap_or_else(|e| e.into_inner()).take();
                if let Some(out) = slot {
                    let frame = match map {
                        Some(map) => map(frame)?,
                        None => frame,
                    };
                    plan.apply_into(&frame, out)?;
                }
            }
            let done = done.fetch_add(1, Ordering::AcqRel) + 1;
            match progress {
                Some(report) if !report(done, distinct.len()) => Err(DataError::Cancelled),
                _ => Ok(()),
            }
        })?;
    }
    for (i, index) in indices.iter().enumerate() {
        let source = first_use[distinct.partition_point(|d| d < index)];
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
