//! The frames of a video as a head sees them.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::CoreError;
use tpo_core::cancel::CancelToken;
use tpo_core::head::FrameSource;
use tpo_core::threads::beside;

use crate::clip::{ClipValues, read_indices};
use crate::feed::View;
use crate::video::{distinct_indices, open_still};
use crate::{DataError, Frame, ImageTransform, MediaLimits, Progress, VideoReader};

/// Frames of a whole video that are decoded before they are asked for.
const AHEAD: usize = 2;
/// Most picked frames that are decoded together.
const BLOCK: usize = 16;
/// Most bytes of such frames.
const BLOCK_BYTES: usize = 64 << 20;

/// Hears (frames read, frames in total, longer side in pixels of the picture that is made of it).
pub type OnFrame = Arc<dyn Fn(usize, usize, usize) + Send + Sync>;

type Open = dyn Fn() -> Result<Arc<dyn VideoReader>, DataError> + Send + Sync;

/// All or some frames of a video or an image, for [`Sample::frames`].
///
/// Frames that are asked for in order are decoded once, ahead on a thread of their own, and
/// dropped after use: memory does not grow with the length of the video. Any other order decodes
/// from the nearest key frame. Copies share their place in the video.
///
/// [`Sample::frames`]: tpo_core::head::Sample::frames
#[derive(Clone)]
pub struct VideoFrames {
    /// Where tensors go.
    pub device: Device,
    open: Arc<Open>,
    picked: Picked,
    view: View,
    progress: Option<OnFrame>,
    cancel: CancelToken,
    place: Arc<Mutex<Place>>,
}

/// Which frames of the file are shown.
#[derive(Debug, Clone)]
enum Picked {
    All(usize),
    Some(Arc<[usize]>),
}

/// Where the reading is.
#[derive(Default)]
struct Place {
    reader: Option<Arc<dyn VideoReader>>,
    /// Position and picture of the frame that was read last.
    last: Option<(usize, Frame)>,
    /// The frames after it, from a decoder on its way.
    ahead: Option<Receiver<Result<Frame, DataError>>>,
}

impl std::fmt::Debug for VideoFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VideoFrames")
            .field("picked", &self.picked)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl VideoFrames {
    /// All frames of a video that is open.
    pub fn new(reader: Arc<dyn VideoReader>, device: &Device) -> Self {
        let picked = Picked::All(reader.info().frame_count);
        Self::of(Arc::new(move || Ok(reader.clone())), picked, device)
    }

    /// An image, as a video of one frame.
    ///
    /// # Errors
    /// Those of [`open_still`]; the picture has not been decoded by then.
    pub fn image(
        path: impl AsRef<Path>,
        limits: &MediaLimits,
        device: &Device,
    ) -> Result<Self, DataError> {
        Ok(Self::new(Arc::new(open_still(path, limits)?), device))
    }

    /// Frames `indices` of a video that is opened when the first of them is asked for.
    pub fn lazy(
        open: impl Fn() -> Result<Arc<dyn VideoReader>, DataError> + Send + Sync + 'static,
        indices: &[usize],
        device: &Device,
    ) -> Self {
        Self::of(Arc::new(open), Picked::Some(indices.into()), device)
    }

    fn of(open: Arc<Open>, picked: Picked, device: &Device) -> Self {
        Self {
            device: device.clone(),
            open,
            picked,
            view: View::default(),
            progress: None,
            cancel: CancelToken::new(),
            place: Arc::default(),
        }
    }

    /// Only the frames `indices` of the video, in this order.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`]; those of opening the video.
    pub fn picked(mut self, indices: &[usize]) -> Result<Self, DataError> {
        distinct_indices(indices, (self.open)()?.info().frame_count)?;
        self.picked = Picked::Some(indices.into());
        self.place = Arc::default();
        Ok(self)
    }

    /// Frames as a view shows them: a part, mirrored, with other colours.
    pub fn with_view(mut self, view: View) -> Self {
        self.view = view;
        self.place = Arc::default();
        self
    }

    /// Somebody who hears of every frame that is read.
    pub fn with_progress(mut self, progress: Option<OnFrame>) -> Self {
        self.progress = progress;
        self
    }

    /// After [`CancelToken::cancel`] the next frame is [`DataError::Cancelled`].
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The `index`-th frame at its own size.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`], [`DataError::Cancelled`]; those of opening, decoding and
    /// the view.
    pub fn raw(&self, index: usize) -> Result<Frame, DataError> {
        self.with_frame(index, None, |frame| Ok(frame.clone()))
    }

    fn with_frame<T>(
        &self,
        index: usize,
        side: Option<usize>,
        read: impl FnOnce(&Frame) -> Result<T, DataError>,
    ) -> Result<T, DataError> {
        let mut place = self.place();
        if self.cancel.is_cancelled() {
            place.ahead = None;
            return Err(DataError::Cancelled);
        }
        distinct_indices(&[index], self.len())?;
        let frame = match place.last.take() {
            Some((at, frame)) if at == index => frame,
            last => {
                let follows = last.is_some_and(|(at, _)| at + 1 == index);
                let frame = self
                    .view
                    .map_frame(self.next(&mut place, index, follows)?)?;
                if let Some(progress) = &self.progress {
                    let own = frame.width().max(frame.height());
                    progress(index + 1, self.len(), side.unwrap_or(own));
                }
                frame
            }
        };
        let found = read(&frame);
        place.last = Some((index, frame));
        found
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes a frame. One that `follows` the frame before it comes from a decoder that runs
    /// ahead, which ends when its receiver is dropped.
    fn next(&self, place: &mut Place, index: usize, follows: bool) -> Result<Frame, DataError> {
        let reader = self.reader(place)?;
        let at = self.at(index);
        let path = reader.path().to_path_buf();
        let ended = || DataError::decode(&path, at, "the stream ended before this frame");
        let ahead = place.ahead.take();
        if !follows {
            return reader.read_frames(&[at])?.pop().ok_or_else(ended);
        }
        let ahead = ahead.unwrap_or_else(|| self.start(reader, index));
        let frame = ahead.recv().map_err(|_| ended())??;
        place.ahead = (index + 1 < self.len()).then_some(ahead);
        Ok(frame)
    }

    fn start(
        &self,
        reader: Arc<dyn VideoReader>,
        from: usize,
    ) -> Receiver<Result<Frame, DataError>> {
        let (sender, frames) = sync_channel(AHEAD);
        let picked = self.picked.clone();
        std::thread::spawn(move || {
            let decode = || -> Result<(), DataError> {
                match &picked {
                    Picked::All(_) => {
                        for frame in reader.stream(from)? {
                            if sender.send(frame.map(|f| f.frame)).is_err() {
                                break;
                            }
                        }
                    }
                    Picked::Some(indices) => {
                        let info = reader.info();
                        let block = BLOCK_BYTES / (3 * info.width * info.height).max(1);
                        for block in indices[from..].chunks(block.clamp(1, BLOCK)) {
                            for frame in beside(|| reader.read_frames(block))? {
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
                // Nobody may be listening any more.
                let _ = sender.send(Err(e));
            }
        });
        frames
    }

    fn reader(&self, place: &mut Place) -> Result<Arc<dyn VideoReader>, DataError> {
        if let Some(reader) = &place.reader {
            return Ok(reader.clone());
        }
        Ok(place.reader.insert((self.open)()?).clone())
    }

    /// Index in the file of the frame at a position.
    fn at(&self, index: usize) -> usize {
        match &self.picked {
            Picked::All(_) => index,
            Picked::Some(indices) => indices[index],
        }
    }
}

/// 0-1, as the reference gives pictures to the mask head before its own normalisation.
fn transform(size: usize) -> ImageTransform {
    ImageTransform {
        mean: [0.0; 3],
        std: [1.0; 3],
        ..ImageTransform::mask().with_size([size, size])
    }
}

/// Reads and transforms frames of a video as a view shows them.
///
/// # Errors
/// Those of reading, of the view and of the transform; [`DataError::Cancelled`].
pub(crate) fn read_view(
    reader: &dyn VideoReader,
    indices: Vec<usize>,
    transform: &ImageTransform,
    view: &View,
    progress: Option<Progress<'_>>,
) -> Result<ClipValues, DataError> {
    let info = reader.info();
    let size = view.size(info.height, info.width);
    let map = |frame| view.map_frame(frame);
    let map = view.changes_pictures().then_some((&map as _, size));
    read_indices(reader, indices, transform, map, progress)
}

fn failed(error: DataError) -> CoreError {
    match error {
        DataError::Cancelled => CoreError::Cancelled,
        error => CoreError::part("frames", error),
    }
}

impl FrameSource for VideoFrames {
    fn len(&self) -> usize {
        match &self.picked {
            Picked::All(count) => *count,
            Picked::Some(indices) => indices.len(),
        }
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        let reader = self.reader(&mut self.place()).map_err(failed)?;
        let indices = (0..self.len()).map(|i| self.at(i)).collect();
        let goes_on = |_, _| !self.cancel.is_cancelled();
        self.cancel.check()?;
        let read = read_view(
            &*reader,
            indices,
            &transform(size),
            &self.view,
            Some(&goes_on),
        );
        let read = read.map_err(failed)?;
        Ok(Tensor::from_data(
            TensorData::new(read.values, read.shape),
            &self.device,
        ))
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        let values = self.with_frame(index, Some(size), |frame| {
            let plan = transform(size).plan(frame.height(), frame.width())?;
            let mut values = vec![0.0; 3 * size * size];
            plan.apply_into(frame, &mut values)?;
            Ok(values)
        });
        let data = TensorData::new(values.map_err(failed)?, [1, 3, size, size]);
        Ok(Tensor::from_data(data, &self.device))
    }
}
