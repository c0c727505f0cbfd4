//! Frames in memory, and a part of another video, as videos.

use std::path::PathBuf;
use std::sync::Arc;

use super::{FrameStream, FrameVisitor, OpenVideo, VideoInfo, VideoReader, distinct_indices};
use crate::sampling::{ClipRange, clip_frames};
use crate::{DataError, Frame, MediaLimits};

/// A video whose frames are in memory: rendered, captured, or decoded elsewhere.
#[derive(Debug, Clone)]
pub struct FrameBuffer {
    frames: Vec<Frame>,
    video: OpenVideo,
}

impl FrameBuffer {
    /// Frames of one size, `fps` per second. `name` is used in messages in place of a file name.
    ///
    /// # Errors
    /// [`DataError::NoVideoTrack`] without frames, [`DataError::InvalidSampling`] for a rate that
    /// is not positive, [`DataError::Decode`] for a frame of another size than the first.
    pub fn new(
        name: impl Into<PathBuf>,
        frames: Vec<Frame>,
        fps: f64,
        limits: &MediaLimits,
    ) -> Result<Self, DataError> {
        let name = name.into();
        let Some(first) = frames.first() else {
            return Err(DataError::NoVideoTrack { path: name });
        };
        let size = [first.width(), first.height()];
        let info = VideoInfo::steady(size, frames.len(), fps, "memory")?;
        for (at, frame) in frames.iter().enumerate() {
            info.check_size(&name, at, frame)?;
        }
        Ok(Self {
            frames,
            video: OpenVideo {
                path: name,
                limits: limits.clone(),
                info,
            },
        })
    }
}

impl VideoReader for FrameBuffer {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        distinct_indices(indices, self.frames.len())?
            .into_iter()
            .try_for_each(|i| visit(i, self.frames[i].clone()))
    }

    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[start], self.frames.len())?;
        let frames = self.frames.iter().cloned().enumerate().skip(start);
        Ok(Box::new(
            frames.map(|(i, frame)| Ok(self.info().timed(i, frame))),
        ))
    }
}

/// A part of a video as a video of its own: frames and times count from its start.
///
/// Sampling it gives the frames that [`clip_frame_indices`](crate::sampling::clip_frame_indices)
/// gives for the range.
pub struct VideoPart {
    whole: Arc<dyn VideoReader>,
    first: usize,
    video: OpenVideo,
}

impl std::fmt::Debug for VideoPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VideoPart")
            .field("first", &self.first)
            .field("video", &self.video)
            .finish_non_exhaustive()
    }
}

impl VideoPart {
    /// The frames of `range`, seconds of the whole video.
    ///
    /// # Errors
    /// [`DataError::InvalidSampling`] for a range that is not a positive span inside the video.
    pub fn new(whole: Arc<dyn VideoReader>, range: ClipRange) -> Result<Self, DataError> {
        let all = whole.info();
        let (first, count) = clip_frames(all.frame_count, all.fps, range)?;
        let time = |i: usize| all.timestamps.get(i).copied().unwrap_or(i as f64 / all.fps);
        let start = time(first);
        let info = VideoInfo {
            frame_count: count,
            duration: count as f64 / all.fps,
            timestamps: (first..first + count).map(|i| time(i) - start).collect(),
            ..all.clone()
        };
        let video = OpenVideo {
            info,
            ..whole.video().clone()
        };
        Ok(Self {
            whole,
            first,
            video,
        })
    }
}

impl VideoReader for VideoPart {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn part_start(&self) -> Option<f64> {
        let info = self.whole.info();
        let start = info.timestamps.get(self.first).copied();
        let start = start.unwrap_or(self.first as f64 / info.fps);
        Some(self.whole.part_start().unwrap_or(0.0) + start)
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        let inside = distinct_indices(indices, self.info().frame_count)?;
        let shifted: Vec<usize> = inside.iter().map(|i| i + self.first).collect();
        self.whole
            .visit_frames(&shifted, &|i, frame| visit(i - self.first, frame))
    }

    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[start], self.info().frame_count)?;
        let frames = self.whole.stream(self.first + start)?;
        let frames = frames.take(self.info().frame_count - start);
        Ok(Box::new(frames.map(|frame| {
            frame.map(|f| self.info().timed(f.index - self.first, f.frame))
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameSampling;
    use crate::sampling::{clip_frame_indices, frame_indices};

    fn frames(n: u8) -> Vec<Frame> {
        (0..n)
            .map(|v| Frame::from_rgb(2, 1, vec![v; 6]).unwrap())
            .collect()
    }

    fn values(reader: &dyn VideoReader, at: &[usize]) -> Vec<u8> {
        let read = reader.read_frames(at).unwrap();
        read.iter().map(|f| f.rgb()[0]).collect()
    }

    #[test]
    fn frames_in_memory_are_a_video() {
        let limits = MediaLimits::default();
        let video = FrameBuffer::new("mem", frames(5), 2.0, &limits).unwrap();
        assert_eq!((video.info().duration, video.info().width), (2.5, 2));
        assert_eq!(values(&video, &[4, 0, 4]), [4, 0, 4]);
        let streamed: Vec<_> = video
            .stream(3)
            .unwrap()
            .map(|f| f.unwrap().timestamp)
            .collect();
        assert_eq!(streamed, [1.5, 2.0]);
        assert!(video.stream(5).is_err() && video.read_frames(&[5]).is_err());
        assert!(FrameBuffer::new("mem", Vec::new(), 2.0, &limits).is_err());
        assert!(FrameBuffer::new("mem", frames(1), 0.0, &limits).is_err());
        let mut odd = frames(2);
        odd[1] = Frame::from_rgb(1, 1, vec![0; 3]).unwrap();
        assert!(FrameBuffer::new("mem", odd, 2.0, &limits).is_err());
    }

    #[test]
    fn a_part_counts_from_its_start() {
        let whole = FrameBuffer::new("mem", frames(20), 4.0, &MediaLimits::default()).unwrap();
        let range = ClipRange {
            start: 1.3,
            end: 4.0,
        };
        let part = VideoPart::new(Arc::new(whole), range).unwrap();
        // int(1.3 * 4) = 5, int(2.7 * 4) = 10
        assert_eq!((part.first, part.info().frame_count), (5, 10));
        assert_eq!(values(&part, &[9, 0]), [14, 5]);
        let times: Vec<_> = part
            .stream(8)
            .unwrap()
            .map(|f| f.unwrap())
            .map(|f| (f.index, f.timestamp, f.frame.rgb()[0]))
            .collect();
        assert_eq!(times, [(8, 2.0, 13), (9, 2.25, 14)]);
        let inside = frame_indices(FrameSampling::Middle, 4, 10, 4.0).unwrap();
        let shifted: Vec<_> = inside.iter().map(|i| i + 5).collect();
        let direct = clip_frame_indices(FrameSampling::Middle, 4, 20, 4.0, range).unwrap();
        assert_eq!(shifted, direct);
        assert!(part.read_frames(&[10]).is_err() && part.stream(10).is_err());
        let far = ClipRange {
            start: 9.0,
            end: 10.0,
        };
        let whole = FrameBuffer::new("mem", frames(20), 4.0, &MediaLimits::default()).unwrap();
        assert!(VideoPart::new(Arc::new(whole), far).is_err());
    }
}
