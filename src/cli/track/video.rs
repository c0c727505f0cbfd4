//! Frames for the tracker: decoded and resized ahead, on a thread of their own.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use burn::tensor::{Device, Tensor, TensorData};
use tpo_data::{DataError, Frame, ImageTransform, TransformPlan, VideoReader};
use tpo_heads::HeadsError;
use tpo_heads::mask::sam2::Sam2;
use tpo_heads::mask::track::{FrameReader, SeekFrames, VideoFrame};

/// Frames decoded ahead of the tracker.
const AHEAD: usize = 2;
/// Pictures kept for drawing; walking backward, frames are read in blocks of eight.
const SHOWN: usize = 12;

/// The pictures of the frames that were read last.
#[derive(Default)]
pub struct Shown(Mutex<BTreeMap<usize, Frame>>);

impl Shown {
    fn put(&self, index: usize, frame: Frame) {
        let Ok(mut frames) = self.0.lock() else {
            return;
        };
        frames.insert(index, frame);
        while frames.len() > SHOWN {
            // The farthest from the one that was read last.
            let far = frames.keys().copied().max_by_key(|k| k.abs_diff(index));
            far.and_then(|k| frames.remove(&k));
        }
    }

    pub fn take(&self, index: usize) -> Option<Frame> {
        self.0.lock().ok()?.remove(&index)
    }
}

type Decoded = Result<(usize, Frame, Vec<f32>), HeadsError>;

/// A reader of the first `frames` frames of `video` for `model`.
pub fn reader<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    video: &'env dyn VideoReader,
    frames: usize,
    model: &Sam2,
    device: &'env Device,
    shown: &'env Shown,
) -> impl FrameReader + use<'scope, 'env> {
    let side = model.config().image_size;
    SeekFrames::new(Some(frames), move |start| {
        let (send, receive) = sync_channel(AHEAD);
        // Ends when the receiver is dropped.
        scope.spawn(move || {
            for frame in decode(video, start, side) {
                if send.send(frame).is_err() {
                    break;
                }
            }
        });
        let receive: Receiver<Decoded> = receive;
        Ok(receive.into_iter().map(move |decoded| {
            let (index, frame, values) = decoded?;
            let size = [frame.height(), frame.width()];
            shown.put(index, frame);
            let data = TensorData::new(values, [1, 3, side, side]);
            Ok(VideoFrame {
                image: Tensor::from_data(data, device),
                size,
            })
        }))
    })
}

/// Frames from `start` on with the model's input.
fn decode<'a>(
    video: &'a dyn VideoReader,
    start: usize,
    side: usize,
) -> Box<dyn Iterator<Item = Decoded> + 'a> {
    let broken = move |index: usize, source: DataError| HeadsError::Frame {
        frame: index,
        source: source.into(),
    };
    let transform = ImageTransform::mask().with_size([side, side]);
    let stream = match video.stream(start) {
        Ok(stream) => stream,
        Err(e) => return Box::new(std::iter::once(Err(broken(start, e)))),
    };
    let mut plan: Option<([usize; 2], TransformPlan)> = None;
    Box::new(stream.enumerate().map(move |(i, frame)| {
        let frame = frame.map_err(|e| broken(start + i, e))?;
        let size = [frame.frame.height(), frame.frame.width()];
        let fresh = match plan.take().filter(|(s, _)| *s == size) {
            Some(plan) => plan,
            None => {
                let plan = transform.plan(size[0], size[1]);
                (size, plan.map_err(|e| broken(frame.index, e))?)
            }
        };
        let mut values = vec![0.0; 3 * side * side];
        let done = fresh.1.apply_into(&frame.frame, &mut values);
        plan = Some(fresh);
        done.map_err(|e| broken(frame.index, e))?;
        Ok((frame.index, frame.frame, values))
    }))
}
