//! A folder of images as a video, and a still image as a video of one frame.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{
    FrameStream, FrameVisitor, OpenVideo, VideoInfo, VideoReader, distinct_indices, until_error,
};
use crate::image_io::image_size;
use crate::{DataError, Frame, MediaLimits, read_image};

/// File names that count as frames.
const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

/// Frames in files of their own, as tracking and segmentation datasets keep them.
#[derive(Debug)]
pub struct FrameFolder {
    files: Vec<PathBuf>,
    video: OpenVideo,
}

/// Opens a folder whose images, in the order of their names, are the frames of a video of `fps`
/// frames per second. Other files are ignored; only the header of the first image is read.
///
/// # Errors
/// [`DataError::Io`], [`DataError::NoVideoTrack`] when it holds no image,
/// [`DataError::InvalidSampling`] for a rate that is not positive, [`DataError::LimitExceeded`],
/// and those of a damaged first image.
pub fn open_frames(
    path: impl AsRef<Path>,
    fps: f64,
    limits: &MediaLimits,
) -> Result<FrameFolder, DataError> {
    let path = path.as_ref();
    let mut files = entries(path)?;
    files.retain(|file| has_extension(file, &EXTENSIONS));
    limits.check_frame_count(path, files.len() as u64)?;
    FrameFolder::new(path, files, fps, limits)
}

/// What a folder holds, in order of the names.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = std::fs::read_dir(folder).and_then(|read| {
        read.map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
    });
    let mut entries = read.map_err(DataError::io(folder))?;
    entries.sort();
    Ok(entries)
}

/// Whether a file name ends in one of `extensions`, in letters of any size.
pub(crate) fn has_extension(file: &Path, extensions: &[&str]) -> bool {
    let found = file.extension().and_then(|e| e.to_str());
    found.is_some_and(|e| extensions.iter().any(|k| k.eq_ignore_ascii_case(e)))
}

/// Opens a still image as a video of one frame at time 0, one second long. Only its header is
/// read.
///
/// # Errors
/// As [`read_image`].
pub fn open_still(path: impl AsRef<Path>, limits: &MediaLimits) -> Result<FrameFolder, DataError> {
    let path = path.as_ref();
    FrameFolder::new(path, vec![path.into()], 1.0, limits)
}

impl FrameFolder {
    fn new(
        path: &Path,
        files: Vec<PathBuf>,
        fps: f64,
        limits: &MediaLimits,
    ) -> Result<Self, DataError> {
        let first = files
            .first()
            .ok_or_else(|| DataError::NoVideoTrack { path: path.into() })?;
        let (width, height) = image_size(first, limits)?;
        let info = VideoInfo::steady([width, height], files.len(), fps, "images")?;
        limits.check_seconds(path, info.duration)?;
        Ok(Self {
            files,
            video: OpenVideo {
                path: path.into(),
                limits: limits.clone(),
                info,
            },
        })
    }

    fn read(&self, index: usize) -> Result<Frame, DataError> {
        let file = &self.files[index];
        let frame = read_image(file, self.limits())?;
        self.info().check_size(file, index, &frame)?;
        Ok(frame)
    }
}

impl VideoReader for FrameFolder {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        distinct_indices(indices, self.info().frame_count)?
            .into_par_iter()
            .try_for_each(|i| visit(i, self.read(i)?))
    }

    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[start], self.info().frame_count)?;
        let frames = start..self.info().frame_count;
        Ok(until_error(frames.map(|index| {
            self.read(index)
                .map(|frame| self.info().timed(index, frame))
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path, value: u8, size: (u32, u32)) {
        image::RgbImage::from_pixel(size.0, size.1, image::Rgb([value; 3]))
            .save(path)
            .unwrap();
    }

    #[test]
    fn frames_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [("00010.png", 30), ("00005.png", 20), ("00000.png", 10)] {
            save(&dir.path().join(name), value, (4, 2));
        }
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        let r = open_frames(dir.path(), 6.0, &MediaLimits::default()).unwrap();
        assert_eq!((r.info().frame_count, r.info().width), (3, 4));
        assert_eq!(r.info().duration, 0.5);
        let frames = r.read_frames(&[2, 0, 2]).unwrap();
        let values: Vec<_> = frames.iter().map(|f| f.rgb()[0]).collect();
        assert_eq!(values, [30, 10, 30]);
        let streamed: Vec<_> = r.stream(1).unwrap().map(|f| f.unwrap().index).collect();
        assert_eq!(streamed, [1, 2]);
        save(&dir.path().join("00005.png"), 0, (2, 2));
        assert!(matches!(
            r.read_frames(&[1]),
            Err(DataError::Decode { frame: 1, .. })
        ));
    }

    #[test]
    fn bad_folders_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let limits = MediaLimits::default();
        assert!(matches!(
            open_frames(dir.path(), 1.0, &limits),
            Err(DataError::NoVideoTrack { .. })
        ));
        assert!(matches!(
            open_frames(dir.path().join("none"), 1.0, &limits),
            Err(DataError::Io { .. })
        ));
        save(&dir.path().join("a.png"), 0, (2, 2));
        assert!(open_frames(dir.path(), f64::NAN, &limits).is_err());
        let still = open_still(dir.path().join("a.png"), &limits).unwrap();
        assert_eq!(still.info().frame_count, 1);
    }
}
