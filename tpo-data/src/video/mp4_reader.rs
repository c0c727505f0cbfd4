//! MP4 / QuickTime files with H.264, in pure Rust.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::colour::ColourSpace;
use super::h264::{Picture, StreamConfig};
use super::mp4::{Movie, read_movie};
use super::mp4_pictures::Pictures;
use super::source::{ReadSeek, Source};
use super::{
    FrameStream, FrameVisitor, NO_PICTURE, OpenVideo, VideoInfo, VideoOptions, VideoReader,
    distinct_indices, until_error,
};
use crate::{DataError, Frame};

/// Reads MP4 and QuickTime files with H.264 video.
///
/// Frames are read by decoding from the nearest IDR picture before them, leaving out pictures
/// nothing depends on; groups of pictures are decoded in parallel on the rayon pool. Edit
/// lists, B-frames, fragmented files and the rotation of the track header are honoured.
#[derive(Debug)]
pub(super) struct Mp4Reader {
    pub(super) source: Source,
    video: OpenVideo,
    pub(super) movie: Movie,
    pub(super) config: StreamConfig,
    colour: ColourSpace,
    /// Samples the container marks as entry points, ascending.
    sync: Vec<u32>,
}

/// Consecutive pictures that are decoded together: from an IDR picture to the last one wanted.
struct Segment {
    start: u32,
    /// Samples wanted, each with the frames it is shown as.
    wanted: Vec<(u32, Vec<usize>)>,
}

impl Mp4Reader {
    pub(super) fn from_source(source: Source, options: &VideoOptions) -> Result<Self, DataError> {
        let limits = &options.limits;
        let path = source.path();
        let movie = read_movie(&mut source.open()?, source.len(), path, limits)?;
        let config = StreamConfig::new(&movie.avcc, path)?;
        let sps = &config.info;
        let (coded_w, coded_h) = (u64::from(sps.coded_width), u64::from(sps.coded_height));
        limits.check_frame(path, coded_w, coded_h)?;
        limits.check_frame(path, u64::from(sps.width), u64::from(sps.height))?;

        // A coded picture is not larger than an uncompressed one (3 samples of 2 bytes per
        // pixel), up to its headers.
        let largest = coded_w * coded_h * 6 + (1 << 20);
        let mut sizes = movie.samples.iter().map(|s| u64::from(s.size)).enumerate();
        if let Some((i, size)) = sizes.find(|(_, size)| *size > largest) {
            let most = format!("more than an uncompressed {coded_w}x{coded_h} picture");
            let reason = format!("sample {i} has {size} bytes, {most}");
            return Err(DataError::corrupt(path, "stsz", reason));
        }

        // The stream's own description wins over the container's, as in ffmpeg.
        let (matrix, full_range) = match (sps.matrix, movie.colour) {
            (2, Some((matrix, full_range))) => (matrix, full_range || sps.full_range),
            (matrix, _) => (matrix, sps.full_range),
        };
        let coded = (sps.width as usize, sps.height as usize);
        let (width, height) = movie.rotation.turned(coded);
        let info = VideoInfo {
            timestamps: movie.shown.iter().map(|s| s.seconds).collect(),
            rotation: movie.rotation,
            ..VideoInfo::steady([width, height], movie.shown.len(), movie.fps, "h264")?
        };
        let sync = (0..movie.samples.len() as u32)
            .filter(|&i| movie.samples[i as usize].sync)
            .collect();
        Ok(Self {
            video: source.opened(limits, info),
            colour: ColourSpace::new(matrix, full_range, options.conversion),
            movie,
            config,
            sync,
            source,
        })
    }

    /// Reads sample `number` into `buffer`.
    pub(super) fn read_sample(
        &self,
        file: &mut dyn ReadSeek,
        number: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<(), DataError> {
        let sample = self.movie.samples[number as usize];
        buffer.resize(sample.size as usize, 0);
        file.seek(SeekFrom::Start(sample.offset))
            .and_then(|_| file.read_exact(buffer))
            .map_err(DataError::io(self.path()))
    }

    /// The last IDR picture at or before sample `number`. The container's entry points are not
    /// trusted: pictures after an open-GOP entry point may depend on earlier ones.
    pub(super) fn entry_point(
        &self,
        file: &mut dyn ReadSeek,
        number: u32,
    ) -> Result<u32, DataError> {
        let before = self.sync.partition_point(|&s| s <= number);
        let mut buffer = Vec::new();
        for &candidate in self.sync[..before].iter().rev() {
            self.read_sample(file, candidate, &mut buffer)?;
            if self.config.inspect(&buffer).idr {
                return Ok(candidate);
            }
        }
        Ok(0)
    }

    /// The nearest entry point the container announces at or before sample `number`.
    pub(super) fn announced_entry(&self, number: u32) -> u32 {
        let before = self.sync.partition_point(|&s| s <= number);
        self.sync[..before].last().copied().unwrap_or(0)
    }

    pub(super) fn decode_error(&self, number: u32, reason: impl Into<String>) -> DataError {
        DataError::decode(self.path(), number as usize, reason)
    }

    /// Converts a picture to RGB and turns it upright.
    pub(super) fn finish(&self, number: u32, picture: &Picture) -> Result<Frame, DataError> {
        self.colour
            .to_rgb(picture)
            .map(|frame| frame.rotated(self.info().rotation))
            .map_err(|reason| self.decode_error(number, reason))
    }

    /// Groups frames by the entry point they are decoded from.
    fn segments(&self, frames: &[usize]) -> Result<Vec<Segment>, DataError> {
        let mut by_sample: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &frame in frames {
            let sample = self.movie.shown[frame].sample;
            by_sample.entry(sample).or_default().push(frame);
        }
        let mut file = self.source.open()?;
        let mut segments: Vec<Segment> = Vec::new();
        for (sample, frames) in by_sample {
            // No entry point in between: the same segment, without reading anything.
            if let Some(last) = segments.last_mut()
                && self.announced_entry(sample) <= last.wanted.last().map_or(0, |w| w.0)
            {
                last.wanted.push((sample, frames));
                continue;
            }
            let start = self.entry_point(&mut *file, sample)?;
            match segments.last_mut() {
                Some(last) if last.start >= start => last.wanted.push((sample, frames)),
                _ => segments.push(Segment {
                    start,
                    wanted: vec![(sample, frames)],
                }),
            }
        }
        Ok(segments)
    }

    fn decode_segment(&self, segment: &Segment, sink: &Sink<'_>) -> Result<(), DataError> {
        let samples = segment.wanted.iter().map(|(sample, _)| *sample).collect();
        let mut pictures = Pictures::new(self, samples)?;
        rayon::scope(|scope| {
            for (sample, frames) in &segment.wanted {
                let Some(picture) = pictures.next(|| sink.stopped())? else {
                    break;
                };
                // Conversion runs beside decoding, unless pictures pile up.
                if sink.reserve() {
                    scope.spawn(move |_| {
                        sink.take(self, *sample, picture, frames);
                        sink.release();
                    });
                } else {
                    sink.take(self, *sample, picture, frames);
                }
            }
            Ok(())
        })
    }
}

/// Where decoded pictures go: colour conversion, then the caller's visitor.
struct Sink<'a> {
    visit: &'a FrameVisitor<'a>,
    /// Pictures waiting for or in conversion.
    waiting: AtomicUsize,
    most_waiting: usize,
    /// What stopped the reading.
    error: OnceLock<DataError>,
}

impl Sink<'_> {
    fn reserve(&self) -> bool {
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < self.most_waiting).then_some(n + 1)
            })
            .is_ok()
    }

    fn release(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    fn stopped(&self) -> bool {
        self.error.get().is_some()
    }

    fn take(&self, reader: &Mp4Reader, number: u32, picture: Picture, frames: &[usize]) {
        if self.stopped() {
            return;
        }
        let result = reader.finish(number, &picture).and_then(|frame| {
            drop(picture);
            let Some((last, others)) = frames.split_last() else {
                return Ok(());
            };
            for &index in others {
                (self.visit)(index, frame.clone())?;
            }
            (self.visit)(*last, frame)
        });
        if let Err(error) = result {
            // Only the first is told.
            let _ = self.error.set(error);
        }
    }
}

impl VideoReader for Mp4Reader {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        let frames = distinct_indices(indices, self.info().frame_count)?;
        let segments = self.segments(&frames)?;
        let sink = Sink {
            visit,
            waiting: AtomicUsize::new(0),
            most_waiting: 2 * rayon::current_num_threads(),
            error: OnceLock::new(),
        };
        segments
            .par_iter()
            .try_for_each(|segment| self.decode_segment(segment, &sink))?;
        sink.error.into_inner().map_or(Ok(()), Err)
    }

    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[start], self.info().frame_count)?;
        let shown = &self.movie.shown[start..];
        let samples = shown.iter().map(|s| s.sample).collect();
        let mut pictures = Pictures::new(self, samples)?;
        let frames = shown.iter().zip(start..).map(move |(shown, index)| {
            let picture = pictures.next(|| false)?;
            let missing = || self.decode_error(shown.sample, NO_PICTURE);
            let frame = self.finish(shown.sample, &picture.ok_or_else(missing)?)?;
            Ok(self.info().timed(index, frame))
        });
        Ok(until_error(frames))
    }
}
