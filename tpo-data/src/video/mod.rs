//! Reading videos.
//!
//! [`open_video`] looks at the first bytes and picks a backend: MP4 / QuickTime with H.264 and
//! animated GIF in pure Rust, everything else through FFmpeg when this crate is built with the
//! `ffmpeg` feature. All of them implement [`VideoReader`].

mod colour;
#[cfg(feature = "ffmpeg")]
mod ffmpeg;
mod folder;
mod gif;
mod h264;
mod memory;
mod mp4;
mod mp4_pictures;
mod mp4_reader;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::sampling::is_rate;
use crate::{DataError, Frame, MediaLimits, Rotation, TimedFrame};
pub use colour::YuvConversion;
#[cfg(feature = "ffmpeg")]
pub use ffmpeg::FfmpegReader;
pub use folder::{FrameFolder, open_frames, open_still};
pub(crate) use folder::{entries, has_extension};
use gif::GifReader;
pub(crate) use h264::guarded;
pub use memory::{FrameBuffer, VideoPart};
use mp4_reader::Mp4Reader;
pub(crate) use source::Source;

/// What became of a frame a decoder left out.
const NO_PICTURE: &str = "the decoder returned no picture";

/// What is known about a video before any picture is decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Width in pixels as shown, after rotation.
    pub width: usize,
    /// Height in pixels as shown, after rotation.
    pub height: usize,
    /// Number of frames shown; at least 1.
    pub frame_count: usize,
    /// Average frames per second; positive.
    pub fps: f64,
    /// `frame_count / fps`, in seconds, as the reference implementation computes it.
    pub duration: f64,
    /// Presentation time of every frame in seconds, ascending within an edit; the first is 0
    /// unless the file starts with a pause.
    pub timestamps: Vec<f64>,
    /// Rotation the file asks for; already applied to every frame returned.
    pub rotation: Rotation,
    /// Codec, for example `h264`.
    pub codec: String,
}

impl VideoInfo {
    /// `frame_count` frames of one size, `fps` a second, that nothing rotates.
    ///
    /// # Errors
    /// [`DataError::InvalidSampling`] for a rate that is not positive.
    pub fn steady(
        [width, height]: [usize; 2],
        frame_count: usize,
        fps: f64,
        codec: &str,
    ) -> Result<Self, DataError> {
        if !is_rate(fps) {
            return Err(DataError::sampling(format!("{fps} frames per second")));
        }
        Ok(Self {
            width,
            height,
            frame_count,
            fps,
            duration: frame_count as f64 / fps,
            timestamps: (0..frame_count).map(|i| i as f64 / fps).collect(),
            rotation: Rotation::None,
            codec: codec.into(),
        })
    }

    /// Refuses a frame of another size.
    fn check_size(&self, path: &Path, index: usize, frame: &Frame) -> Result<(), DataError> {
        let (found, first) = ((frame.width(), frame.height()), (self.width, self.height));
        if found == first {
            return Ok(());
        }
        let reason = format!(
            "{}x{} pixels, the first frame has {}x{}",
            found.0, found.1, first.0, first.1
        );
        Err(DataError::decode(path, index, reason))
    }

    fn timed(&self, index: usize, frame: Frame) -> TimedFrame {
        TimedFrame {
            index,
            timestamp: self.timestamps[index],
            frame,
        }
    }
}

/// A video that is open, whatever reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenVideo {
    /// The file, or `<memory>`.
    pub path: PathBuf,
    /// The limits the video was opened with.
    pub limits: MediaLimits,
    /// Size, length and times.
    pub info: VideoInfo,
}

/// A callback that receives frames, with their index; it may be called from several threads.
pub type FrameVisitor<'a> = dyn Fn(usize, Frame) -> Result<(), DataError> + Sync + 'a;

/// Frames in presentation order, decoded as they are asked for. Ends after the first error.
/// To decode on another thread, move a reference to the reader there and make the stream there.
pub type FrameStream<'a> = Box<dyn Iterator<Item = Result<TimedFrame, DataError>> + 'a>;

/// A video whose frames can be read by index or one after the other.
///
/// Frames are numbered from 0 in presentation order.
pub trait VideoReader: Send + Sync {
    /// What is known before any picture is decoded.
    fn video(&self) -> &OpenVideo;

    /// Size, length and times.
    fn info(&self) -> &VideoInfo {
        &self.video().info
    }

    /// The file, or `<memory>`.
    fn path(&self) -> &Path {
        &self.video().path
    }

    /// For a part of a video: the second of the file that it begins at.
    fn part_start(&self) -> Option<f64> {
        None
    }

    /// The limits the video was opened with.
    fn limits(&self) -> &MediaLimits {
        &self.video().limits
    }

    /// Decodes the frames `indices` and passes each to `visit` once, in any order and possibly
    /// from several threads at a time. Repeated indices count once.
    ///
    /// Only what these frames depend on is decoded.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`] before anything is decoded; decoding errors; the first
    /// error of `visit`, after which no more frames are delivered.
    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError>;

    /// All frames from `start` on, holding a few at a time whatever the length of the video.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`] when `start` is past the last frame.
    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError>;

    /// Frames `indices`, in that order; an index may occur more than once.
    ///
    /// # Errors
    /// As [`VideoReader::visit_frames`], and [`DataError::LimitExceeded`] when the result would
    /// exceed [`MediaLimits::max_decoded_bytes`].
    fn read_frames(&self, indices: &[usize]) -> Result<Vec<Frame>, DataError> {
        let info = self.info();
        self.limits()
            .check_decoded(self.path(), indices.len(), info.width, info.height)?;
        let mut uses = BTreeMap::<usize, usize>::new();
        for index in indices {
            *uses.entry(*index).or_default() += 1;
        }
        let read = Mutex::new(BTreeMap::new());
        let lock = || read.lock().unwrap_or_else(PoisonError::into_inner);
        self.visit_frames(indices, &|index, frame| {
            lock().insert(index, frame);
            Ok(())
        })?;
        let mut frame_of = |index: &usize| {
            let left = uses.get_mut(index)?;
            *left -= 1;
            match *left {
                0 => lock().remove(index),
                _ => lock().get(index).cloned(),
            }
        };
        let missing = |index| DataError::decode(self.path(), index, NO_PICTURE);
        indices
            .iter()
            .map(|index| frame_of(index).ok_or_else(|| missing(*index)))
            .collect()
    }
}

/// How to open a video.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VideoOptions {
    /// Limits on what the file may make us allocate.
    pub limits: MediaLimits,
    /// Arithmetic of the colour conversion.
    pub conversion: YuvConversion,
}

impl From<&MediaLimits> for VideoOptions {
    fn from(limits: &MediaLimits) -> Self {
        Self {
            limits: limits.clone(),
            conversion: YuvConversion::default(),
        }
    }
}

/// Opens a video file with the backend that reads it, colours as the reference.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::LimitExceeded`],
/// [`DataError::UnsupportedContainer`], [`DataError::UnsupportedCodec`],
/// [`DataError::NoVideoTrack`], [`DataError::Corrupt`] or [`DataError::Truncated`]; no picture
/// has been decoded by then.
pub fn open_video(
    path: impl AsRef<Path>,
    limits: &MediaLimits,
) -> Result<Box<dyn VideoReader>, DataError> {
    open_video_with(path, &limits.into())
}

/// As [`open_video`], with all options.
///
/// # Errors
/// As [`open_video`].
pub fn open_video_with(
    path: impl AsRef<Path>,
    options: &VideoOptions,
) -> Result<Box<dyn VideoReader>, DataError> {
    open_source(Source::file(path.as_ref(), &options.limits)?, options)
}

/// As [`open_video`], from a buffer (an upload, an archive member). FFmpeg is not used: it
/// reads files only.
///
/// # Errors
/// As [`open_video`].
pub fn open_video_bytes(
    bytes: Vec<u8>,
    limits: &MediaLimits,
) -> Result<Box<dyn VideoReader>, DataError> {
    open_source(Source::memory(bytes, limits)?, &limits.into())
}

fn open_source(source: Source, options: &VideoOptions) -> Result<Box<dyn VideoReader>, DataError> {
    let head = source.head(16)?;
    let pure: Option<Result<Box<dyn VideoReader>, _>> = if looks_like_mp4(&head) {
        let reader = Mp4Reader::from_source(source.clone(), options);
        Some(reader.map(|reader| Box::new(reader) as _))
    } else if head.starts_with(b"GIF8") {
        let reader = GifReader::from_source(source.clone(), &options.limits);
        Some(reader.map(|reader| Box::new(reader) as _))
    } else {
        None
    };
    #[cfg(feature = "ffmpeg")]
    if !source.is_memory() && matches!(pure, None | Some(Err(DataError::UnsupportedCodec { .. }))) {
        return Ok(Box::new(FfmpegReader::open_with(source.path(), options)?));
    }
    pure.unwrap_or_else(|| {
        Err(DataError::UnsupportedContainer {
            path: source.path().into(),
            found: describe(&head),
            hint: "convert it to MP4 with H.264, or build with the `ffmpeg` feature",
        })
    })
}

/// Whether a file starts with a box an MP4 or QuickTime file starts with.
fn looks_like_mp4(head: &[u8]) -> bool {
    const FIRST: [&[u8]; 7] = [
        b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot",
    ];
    head.get(4..8).is_some_and(|name| FIRST.contains(&name))
}

/// The first bytes of an unknown file, for messages.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 6] = [
        (b"\x1A\x45\xDF\xA3", "Matroska or WebM"),
        (b"RIFF", "AVI or another RIFF file"),
        (b"FLV", "Flash video"),
        (b"\x89PNG", "PNG image"),
        (b"\xFF\xD8\xFF", "JPEG image"),
        (b"OggS", "Ogg"),
    ];
    known
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or_else(
            || format!("it starts with \"{}\"", head.escape_ascii()),
            |(_, name)| (*name).to_owned(),
        )
}

/// `frames` up to the first error.
fn until_error<'a>(
    mut frames: impl Iterator<Item = Result<TimedFrame, DataError>> + 'a,
) -> FrameStream<'a> {
    let mut ended = false;
    Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let frame = frames.next();
        ended = !matches!(frame, Some(Ok(_)));
        frame
    }))
}

/// `indices` sorted and without repetitions, all checked to exist.
pub(crate) fn distinct_indices(
    indices: &[usize],
    frame_count: usize,
) -> Result<Vec<usize>, DataError> {
    if let Some(&index) = indices.iter().find(|&&i| i >= frame_count) {
        return Err(DataError::FrameOutOfRange { index, frame_count });
    }
    let mut unique = indices.to_vec();
    unique.sort_unstable();
    unique.dedup();
    Ok(unique)
}
