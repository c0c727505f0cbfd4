//! Where the tracker takes frames from.

use std::collections::VecDeque;

use burn::tensor::{Tensor, TensorData};
use tpo_core::head::FrameSource;
use tpo_core::ops::activation_dtype;

use crate::HeadsError;

/// Mean of the red, green and blue values of ImageNet, 0–1 (reference implementation).
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of the same.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// A frame as the tracker wants it.
#[derive(Debug, Clone)]
pub struct VideoFrame {
    /// `[1, 3, image_size, image_size]`, normalised with the ImageNet statistics, on the device
    /// of the model.
    pub image: Tensor<4>,
    /// Height and width in pixels of the frame before it was resized. Prompts on the frame are in
    /// these pixels and its masks have this size; it may change from frame to frame.
    pub size: [usize; 2],
}

impl VideoFrame {
    /// From an image `[1, 3, image_size, image_size]` of values 0–1.
    pub fn from_unit_range(image: Tensor<4>, size: [usize; 2]) -> Self {
        let device = image.device();
        let statistic = |values: [f32; 3]| {
            let data = TensorData::new(values.to_vec(), [1, 3, 1, 1]);
            Tensor::<4>::from_data(data, (&device, image.dtype()))
        };
        Self {
            image: (image.clone() - statistic(IMAGENET_MEAN)) / statistic(IMAGENET_STD),
            size,
        }
    }
}

/// Frames by index. The tracker asks for them in the order it walks through the video and drops
/// each before it asks for the next.
pub trait FrameReader: Send {
    /// The frame at `index`, or `None` past the end of the video.
    ///
    /// # Errors
    /// [`HeadsError::FrameGone`] when the reader cannot go back to it, [`HeadsError::Frame`] when
    /// it cannot be decoded.
    fn read(&mut self, index: usize) -> Result<Option<VideoFrame>, HeadsError>;

    /// Number of frames, if known before the end is reached.
    fn frame_count(&self) -> Option<usize> {
        None
    }
}

/// Frames that are all in memory.
impl FrameReader for Vec<VideoFrame> {
    fn read(&mut self, index: usize) -> Result<Option<VideoFrame>, HeadsError> {
        Ok(self.get(index).cloned())
    }
    fn frame_count(&self) -> Option<usize> {
        Some(self.len())
    }
}

/// A video that can be opened at any frame. Forward it is read as a stream; backward in blocks,
/// of which one is held.
pub struct SeekFrames<F, I> {
    open: F,
    count: Option<usize>,
    stream: Option<(usize, I)>,
    /// Frames read before they were asked for, walking backward: the first and its followers.
    held: (usize, VecDeque<VideoFrame>),
}

/// Frames held when walking backward; each is 12 MiB at 1024 pixels.
const BACKWARD_BLOCK: usize = 8;

impl<F, I> SeekFrames<F, I>
where
    F: FnMut(usize) -> Result<I, HeadsError>,
    I: Iterator<Item = Result<VideoFrame, HeadsError>>,
{
    /// `open` starts a stream at a frame.
    pub fn new(count: Option<usize>, open: F) -> Self {
        Self {
            open,
            count,
            stream: None,
            held: (0, VecDeque::new()),
        }
    }

    fn past_end(&self, index: usize) -> bool {
        self.count.is_some_and(|count| index >= count)
    }
}

impl<F, I> FrameReader for SeekFrames<F, I>
where
    F: FnMut(usize) -> Result<I, HeadsError> + Send,
    I: Iterator<Item = Result<VideoFrame, HeadsError>> + Send,
{
    fn read(&mut self, index: usize) -> Result<Option<VideoFrame>, HeadsError> {
        if self.past_end(index) {
            return Ok(None);
        }
        let (first, frames) = &mut self.held;
        if let Some(frame) = index.checked_sub(*first).and_then(|at| frames.get(at)) {
            let frame = frame.clone();
            // Walking backward, what lies behind is not needed again.
            frames.truncate(index - *first + 1);
            return Ok(Some(frame));
        }
        let backward = !frames.is_empty() && index < *first;
        frames.clear();
        let start = match &self.stream {
            Some((next, _)) if *next <= index && index - *next < BACKWARD_BLOCK => *next,
            _ if backward => {
                let start = (index + 1).saturating_sub(BACKWARD_BLOCK);
                self.stream = Some((start, (self.open)(start)?));
                start
            }
            _ => {
                self.stream = Some((index, (self.open)(index)?));
                index
            }
        };
        let Some((next, stream)) = &mut self.stream else {
            return Ok(None);
        };
        let mut found = None;
        for at in start..=index {
            match stream.next() {
                Some(Ok(frame)) => found = Some(frame),
                Some(Err(error)) => {
                    // Where the stream stands after an error is its own matter: open it anew.
                    self.stream = None;
                    self.held.1.clear();
                    return Err(error);
                }
                None => {
                    self.stream = None;
                    return Ok(None);
                }
            }
            *next += 1;
            if let (true, Some(frame)) = (backward, &found) {
                if at == start {
                    self.held.0 = start;
                }
                self.held.1.push_back(frame.clone());
            }
        }
        if !backward && let Some(frame) = &found {
            self.held = (index, VecDeque::from([frame.clone()]));
        }
        Ok(found)
    }

    fn frame_count(&self) -> Option<usize> {
        self.count
    }
}

/// The frames of a sample, as a head finds them in its context.
#[derive(Clone)]
pub struct SourceFrames<'a> {
    source: &'a dyn FrameSource,
    image_size: usize,
    size: [usize; 2],
    like: Tensor<1>,
}

impl<'a> SourceFrames<'a> {
    /// Frames of `source` at `image_size` pixels for a model with parameters like `like`; `size` is
    /// the height and width of the video.
    pub fn new(
        source: &'a dyn FrameSource,
        image_size: usize,
        size: [usize; 2],
        like: Tensor<1>,
    ) -> Self {
        Self {
            source,
            image_size,
            size,
            like,
        }
    }
}

impl FrameReader for SourceFrames<'_> {
    fn read(&mut self, index: usize) -> Result<Option<VideoFrame>, HeadsError> {
        if index >= self.source.len() {
            return Ok(None);
        }
        let image = self.source.frame(index, self.image_size)?;
        let image = image.inner().to_device(&self.like.device());
        let frame = VideoFrame::from_unit_range(image, self.size);
        Ok(Some(VideoFrame {
            image: frame.image.cast(activation_dtype(&self.like)),
            ..frame
        }))
    }

    fn frame_count(&self) -> Option<usize> {
        Some(self.source.len())
    }
}
