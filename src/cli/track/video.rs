//! Frames for the tracker: decoded and resized ahead, on a thread of their own.

use std::sync::mpsc::sync_channel;
use std::thread::Scope;

use burn::tensor::{Device, FloatDType};
use tpo_core::threads::beside;
use tpo_data::{DataError, ImageTransform, VideoReader};
use tpo_heads::HeadsError;
use tpo_heads::mask::track::{FrameReader, SeekFrames, VideoFrame};

/// Frames decoded ahead of the tracker.
const AHEAD: usize = 2;

/// A reader of the first `frames` frames of `video` for a model of `dtype` that looks at `side` pixels.
pub fn reader<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    video: &'env dyn VideoReader,
    frames: usize,
    side: usize,
    (device, dtype): (&'env Device, FloatDType),
) -> impl FrameReader + use<'scope, 'env> {
    SeekFrames::new(Some(frames), move |start| {
        let (send, receive) = sync_channel(AHEAD);
        let broken = |frame: usize, e: DataError| HeadsError::Frame {
            frame,
            source: e.into(),
        };
        // Ends when the receiver is dropped.
        scope.spawn(move || {
            let transform = ImageTransform::mask().with_size([side, side]);
            let seen = |frame: tpo_data::Frame| -> Result<VideoFrame, DataError> {
                let size = [frame.height(), frame.width()];
                let image = transform.apply_tensor(&[frame], device)?.squeeze_dim(0);
                let image = image.cast(dtype);
                Ok(VideoFrame { image, size })
            };
            let stream = match video.stream(start) {
                Ok(stream) => stream,
                Err(e) => return drop(send.send(Err(broken(start, e)))),
            };
            for (index, frame) in (start..).zip(stream) {
                let frame = frame.and_then(|f| beside(|| seen(f.frame)));
                if send.send(frame.map_err(|e| broken(index, e))).is_err() {
                    break;
                }
            }
        });
        Ok(receive.into_iter())
    })
}
