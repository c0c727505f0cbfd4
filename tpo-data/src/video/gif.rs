//! Animated GIF as a video.

use std::io::BufReader;
use std::path::Path;

use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, ImageDecoder};

use super::source::{ReadSeek, Source};
use super::{
    FrameStream, FrameVisitor, OpenVideo, VideoInfo, VideoReader, distinct_indices, until_error,
};
use crate::image_io::{decoder_limits, failed, flatten, guarded};
use crate::{DataError, Frame, MediaLimits, TimedFrame};

/// Seconds a frame without a delay is shown, as browsers do.
const DEFAULT_DELAY: f64 = 0.1;

/// Reads animated GIF files. Frames depend on each other, so reading one means decoding all
/// before it. Transparent pixels are black.
#[derive(Debug)]
pub(super) struct GifReader {
    source: Source,
    video: OpenVideo,
}

type GifFrames = image::Frames<'static>;

impl GifReader {
    /// Decodes the file once to learn the number of frames, holding one at a time.
    pub(super) fn from_source(source: Source, limits: &MediaLimits) -> Result<Self, DataError> {
        let (width, height, mut frames) = start(&source, limits)?;
        let mut timestamps = Vec::new();
        let mut duration = 0.0;
        while let Some((delay, _)) = next(&source, &mut frames)? {
            timestamps.push(duration);
            duration += delay;
            limits.check_frame_count(source.path(), timestamps.len() as u64)?;
            limits.check_seconds(source.path(), duration)?;
        }
        if timestamps.is_empty() {
            return Err(DataError::corrupt(source.path(), "GIF", "it has no frames"));
        }
        let (count, size) = (timestamps.len(), [width, height]);
        let info = VideoInfo {
            duration,
            timestamps,
            ..VideoInfo::steady(size, count, count as f64 / duration, "gif")?
        };
        Ok(Self {
            video: source.opened(limits, info),
            source,
        })
    }
}

/// Size of the canvas and its frames, none decoded yet.
fn start(source: &Source, limits: &MediaLimits) -> Result<(usize, usize, GifFrames), DataError> {
    let reader: BufReader<Box<dyn ReadSeek>> = BufReader::new(source.open()?);
    guarded(source.path(), || {
        let mut decoder = GifDecoder::new(reader).map_err(|e| failed(source.path(), &e))?;
        let (width, height) = decoder.dimensions();
        limits.check_frame(source.path(), width.into(), height.into())?;
        decoder
            .set_limits(decoder_limits(limits))
            .map_err(|e| failed(source.path(), &e))?;
        Ok((width as usize, height as usize, decoder.into_frames()))
    })
}

/// The next frame with the seconds it is shown.
fn next(source: &Source, frames: &mut GifFrames) -> Result<Option<(f64, Frame)>, DataError> {
    guarded(source.path(), || match frames.next() {
        None => Ok(None),
        Some(Err(e)) => Err(failed(source.path(), &e)),
        Some(Ok(frame)) => {
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let delay = f64::from(numerator) / f64::from(denominator.max(1)) / 1000.0;
            let delay = if delay > 0.0 { delay } else { DEFAULT_DELAY };
            let buffer = frame.into_buffer();
            let (width, height) = buffer.dimensions();
            // Black, as libav* shows an animation.
            let rgb = flatten(&buffer, 0);
            Ok(Some((
                delay,
                Frame::from_rgb(width as usize, height as usize, rgb)?,
            )))
        }
    })
}

impl VideoReader for GifReader {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        let wanted = distinct_indices(indices, self.info().frame_count)?;
        let (_, _, mut frames) = start(&self.source, self.limits())?;
        let mut wanted = wanted.into_iter().peekable();
        let mut index = 0;
        while wanted.peek().is_some() {
            let Some((_, frame)) = next(&self.source, &mut frames)? else {
                return Err(shrunk(self.path(), index));
            };
            if wanted.next_if_eq(&index).is_some() {
                visit(index, frame)?;
            }
            index += 1;
        }
        Ok(())
    }

    fn stream(&self, from: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[from], self.info().frame_count)?;
        let (_, _, mut frames) = start(&self.source, self.limits())?;
        let all = (0..self.info().frame_count).map(move |index| {
            let frame = next(&self.source, &mut frames)?;
            let (_, frame) = frame.ok_or_else(|| shrunk(self.path(), index))?;
            Ok(self.info().timed(index, frame))
        });
        let shown =
            move |item: &Result<TimedFrame, _>| item.as_ref().map_or(true, |f| f.index >= from);
        Ok(until_error(all.filter(shown)))
    }
}

fn shrunk(path: &Path, frame: usize) -> DataError {
    let reason = "the file has fewer frames than when it was opened";
    DataError::decode(path, frame, reason)
}
