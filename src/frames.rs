//! The frames of a video file as a head sees them: decoded ahead on a thread, a few at a time.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use tpo_core::CoreError;
use tpo_core::cancel::CancelToken;
use tpo_core::head::FrameSource;
use tpo_data::{
    DataError, Frame, ImageTransform, MediaLimits, TransformPlan, VideoReader, open_still,
    open_video, read_image,
};

use crate::error::Result;
use crate::session::HeadProgress;

/// Frames decoded ahead of the one that is asked for.
const AHEAD: usize = 2;

/// Frames of a video file or an image, for [`Sample::frames`].
///
/// Frames that are asked for in order are decoded once, on a thread of their own, and dropped
/// after use: memory does not grow with the length of the video. Any other order decodes again
/// from the nearest key frame.
///
/// [`Sample::frames`]: tpo_core::head::Sample::frames
pub struct StreamedFrames {
    reader: Arc<dyn VideoReader>,
    device: Device,
    /// Indices in the file of the frames shown.
    picked: Picked,
    size: (u32, u32),
    running: Mutex<Option<Running>>,
    image: Option<Frame>,
}

impl std::fmt::Debug for StreamedFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamedFrames")
            .field("path", &self.reader.path())
            .field("picked", &self.picked)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Which frames of the file are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Picked {
    All(usize),
    Some(Vec<usize>),
}

impl Picked {
    fn len(&self) -> usize {
        match self {
            Self::All(count) => *count,
            Self::Some(indices) => indices.len(),
        }
    }

    fn at(&self, i: usize) -> usize {
        match self {
            Self::All(_) => i,
            Self::Some(indices) => indices[i],
        }
    }
}

/// A decoder on its way through the file.
#[derive(Debug)]
struct Running {
    /// Position among the picked frames of the next one to arrive.
    next: usize,
    frames: Receiver<Result<Frame, DataError>>,
}

impl StreamedFrames {
    /// All frames of a video.
    ///
    /// # Errors
    /// Those of [`open_video`]; no picture has been decoded by then.
    pub fn video(path: impl AsRef<Path>, limits: &MediaLimits, device: &Device) -> Result<Self> {
        Ok(Self::of(open_video(path, limits)?.into(), device))
    }

    /// Some frames of a video, by index.
    ///
    /// # Errors
    /// Those of [`open_video`], [`DataError::FrameOutOfRange`].
    pub fn picked(
        path: impl AsRef<Path>,
        indices: &[usize],
        limits: &MediaLimits,
        device: &Device,
    ) -> Result<Self> {
        Self::picked_of(open_video(path, limits)?.into(), indices, device)
    }

    /// An image, as a video of one frame.
    ///
    /// # Errors
    /// Those of [`read_image`].
    pub fn image(path: impl AsRef<Path>, limits: &MediaLimits, device: &Device) -> Result<Self> {
        let frame = read_image(path.as_ref(), limits)?;
        let reader = open_still(path, limits)?;
        Ok(Self {
            image: Some(frame),
            ..Self::of(Arc::new(reader), device)
        })
    }

    /// All frames of a video that is open.
    pub fn of(reader: Arc<dyn VideoReader>, device: &Device) -> Self {
        let picked = Picked::All(reader.info().frame_count);
        Self::new(reader, picked, device)
    }

    /// Some frames of a video that is open, by index.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`].
    pub fn picked_of(
        reader: Arc<dyn VideoReader>,
        indices: &[usize],
        device: &Device,
    ) -> Result<Self> {
        let frame_count = reader.info().frame_count;
        if let Some(&index) = indices.iter().find(|i| **i >= frame_count) {
            return Err(DataError::FrameOutOfRange { index, frame_count }.into());
        }
        Ok(Self::new(reader, Picked::Some(indices.into()), device))
    }

    fn new(reader: Arc<dyn VideoReader>, picked: Picked, device: &Device) -> Self {
        let info = reader.info();
        Self {
            size: (info.width as u32, info.height as u32),
            device: device.clone(),
            picked,
            running: Mutex::new(None),
            image: None,
            reader,
        }
    }

    /// Width and height of the source in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The `index`-th frame as it is in the file.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`]; decoding errors.
    pub fn raw(&self, index: usize) -> Result<Frame, DataError> {
        if index >= self.picked.len() {
            return Err(DataError::FrameOutOfRange {
                index,
                frame_count: self.picked.len(),
            });
        }
        if let Some(image) = &self.image {
            return Ok(image.clone());
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = match running.take() {
            Some(stream) if stream.next == index => stream,
            _ => self.start(index),
        };
        match stream.frames.recv() {
            Ok(Ok(frame)) => {
                stream.next += 1;
                *running = Some(stream);
                Ok(frame)
            }
            Ok(Err(e)) => Err(e),
            Err(_) => Err(DataError::Decode {
                path: self.reader.path().into(),
                frame: self.picked.at(index),
                reason: "the stream ended before this frame".into(),
            }),
        }
    }

    /// Starts decoding at a position; the thread ends when its receiver is dropped.
    fn start(&self, from: usize) -> Running {
        let (sender, frames) = sync_channel(AHEAD);
        let (video, picked) = (self.reader.clone(), self.picked.clone());
        std::thread::spawn(move || {
            let decode = || -> Result<(), DataError> {
                match &picked {
                    Picked::All(_) => {
                        for frame in video.stream(from)? {
                            if sender.send(frame.map(|f| f.frame)).is_err() {
                                break;
                            }
                        }
                    }
                    Picked::Some(indices) => {
                        for index in &indices[from..] {
                            for frame in video.read_frames(&[*index])? {
                                if sender.send(Ok(frame)).is_err() {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
                Ok(())
            };
            if let Err(e) = decode() {
                let _ = sender.send(Err(e));
            }
        });
        Running { next: from, frames }
    }

    fn pixels(&self, index: usize, size: usize) -> Result<Tensor<4>> {
        let frame = self.raw(index)?;
        let transform = ImageTransform {
            mean: [0.0; 3],
            std: [1.0; 3],
            ..ImageTransform::mask()
        }
        .with_size([size, size]);
        let plan: TransformPlan = transform.plan(frame.height(), frame.width())?;
        let mut values = vec![0.0; 3 * size * size];
        plan.apply_into(&frame, &mut values)?;
        let data = burn::tensor::TensorData::new(values, [1, 3, size, size]);
        Ok(Tensor::from_data(data, &self.device))
    }
}

impl FrameSource for StreamedFrames {
    fn len(&self) -> usize {
        self.picked.len()
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        let all = (0..self.len())
            .map(|i| self.frame(i, size))
            .collect::<tpo_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(all, 0))
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.pixels(index, size)
            .map_err(|e| CoreError::part("frames", e))
    }
}

/// Frames that tell somebody how far they have been read.
#[derive(Debug)]
pub(crate) struct HeardFrames {
    pub frames: StreamedFrames,
    pub progress: Option<HeadProgress>,
    pub cancel: CancelToken,
}

impl FrameSource for HeardFrames {
    fn len(&self) -> usize {
        self.frames.len()
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.frames.frames(size)
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.cancel.check()?;
        let frame = self.frames.frame(index, size)?;
        if let Some(progress) = &self.progress {
            (progress.0)("frames", index + 1, self.len());
        }
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn clip() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bouncing_shapes.mp4")
    }

    #[test]
    fn any_order_gives_the_frames_of_the_file() {
        let (limits, device) = (MediaLimits::default(), Device::flex());
        let all = StreamedFrames::video(clip(), &limits, &device).unwrap();
        let expected = open_video(clip(), &limits)
            .unwrap()
            .read_frames(&[0, 1, 2, 7, 3])
            .unwrap();
        for (i, frame) in [0, 1, 2, 7, 3].into_iter().zip(&expected) {
            assert_eq!(all.raw(i).unwrap().rgb(), frame.rgb(), "frame {i}");
        }
        let some = StreamedFrames::picked(clip(), &[7, 3], &limits, &device).unwrap();
        assert_eq!((some.len(), some.size()), (2, (320, 240)));
        assert_eq!(some.raw(0).unwrap().rgb(), expected[3].rgb());
        assert_eq!(some.raw(1).unwrap().rgb(), expected[4].rgb());
        let pixels = some.frames(32).unwrap();
        assert_eq!(pixels.dims(), [2, 3, 32, 32]);
        assert!(pixels.max().into_scalar::<f32>() > 0.5);
    }

    #[test]
    fn frames_that_do_not_exist_are_errors() {
        let (limits, device) = (MediaLimits::default(), Device::flex());
        let all = StreamedFrames::video(clip(), &limits, &device).unwrap();
        assert!(all.raw(all.len()).is_err());
        assert!(all.frame(100_000, 8).is_err());
        assert!(StreamedFrames::picked(clip(), &[100_000], &limits, &device).is_err());
        assert!(StreamedFrames::video("none.mp4", &limits, &device).is_err());
        assert!(all.frame(0, 1_000_000).is_err());
    }
}
