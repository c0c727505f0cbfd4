//! Limits on what a media file may make us allocate.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Upper bounds checked against headers before anything is decoded or allocated.
///
/// The defaults accept what video datasets hold (hours of 1080p, single 8K frames) and
/// reject decompression bombs. A server should set much smaller ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MediaLimits {
    /// Largest file, in bytes. Default 4 GiB.
    pub max_bytes: u64,
    /// Largest width × height of one frame or image, in pixels. Default 8192 × 8192 = 2^26.
    pub max_pixels_per_frame: u64,
    /// Most frames a video may have. Default 1 000 000 (9 hours at 30 frames per second).
    pub max_frames: u64,
    /// Longest video, in seconds. Default 36 000 (10 hours).
    pub max_seconds: f64,
    /// Most bytes of decoded pixels one call may return (frames × height × width × 3).
    /// Default 8 GiB.
    pub max_decoded_bytes: u64,
}

impl Default for MediaLimits {
    fn default() -> Self {
        Self {
            max_bytes: 4 << 30,
            max_pixels_per_frame: 1 << 26,
            max_frames: 1_000_000,
            max_seconds: 36_000.0,
            max_decoded_bytes: 8 << 30,
        }
    }
}

impl MediaLimits {
    /// Limits for files from untrusted sources: 256 MiB, 4096 × 2304 pixels, 36 000 frames,
    /// 10 minutes, 1 GiB of decoded pixels per call.
    pub fn untrusted() -> Self {
        Self {
            max_bytes: 256 << 20,
            max_pixels_per_frame: 4096 * 2304,
            max_frames: 36_000,
            max_seconds: 600.0,
            max_decoded_bytes: 1 << 30,
        }
    }

    /// Checks the length of a file.
    ///
    /// # Errors
    /// [`DataError::LimitExceeded`], or [`DataError::EmptyFile`] for 0 bytes.
    pub fn check_bytes(&self, path: &Path, bytes: u64) -> Result<(), DataError> {
        if bytes == 0 {
            return Err(DataError::EmptyFile { path: path.into() });
        }
        let what = "file size in bytes";
        check(path, what, bytes, self.max_bytes, "max_bytes")
    }

    /// Checks the size of a frame in pixels.
    ///
    /// # Errors
    /// [`DataError::LimitExceeded`], or [`DataError::Corrupt`] when a side is 0.
    pub fn check_frame(&self, path: &Path, width: u64, height: u64) -> Result<(), DataError> {
        if width == 0 || height == 0 {
            let reason = format!("{width}x{height} pixels");
            return Err(DataError::corrupt(path, "frame size", reason));
        }
        let (pixels, most) = (width.saturating_mul(height), self.max_pixels_per_frame);
        let what = "pixels per frame";
        check(path, what, pixels, most, "max_pixels_per_frame")
    }

    /// Checks the number of frames.
    ///
    /// # Errors
    /// [`DataError::LimitExceeded`].
    pub fn check_frame_count(&self, path: &Path, frames: u64) -> Result<(), DataError> {
        let what = "number of frames";
        check(path, what, frames, self.max_frames, "max_frames")
    }

    /// Checks the duration in seconds.
    ///
    /// # Errors
    /// [`DataError::LimitExceeded`].
    pub fn check_seconds(&self, path: &Path, seconds: f64) -> Result<(), DataError> {
        if seconds > self.max_seconds {
            return Err(DataError::LimitExceeded {
                path: path.into(),
                what: "duration in seconds",
                found: seconds.ceil() as u64,
                limit: self.max_seconds as u64,
                field: "max_seconds",
            });
        }
        Ok(())
    }

    /// Checks the memory that `frames` RGB frames of `width` × `height` pixels take.
    ///
    /// # Errors
    /// [`DataError::LimitExceeded`].
    pub fn check_decoded(
        &self,
        path: &Path,
        frames: usize,
        width: usize,
        height: usize,
    ) -> Result<(), DataError> {
        let sides = [height, 3, frames].into_iter();
        let bytes = sides.fold(width as u64, |n, side| n.saturating_mul(side as u64));
        let (what, most) = ("decoded frames in bytes", self.max_decoded_bytes);
        check(path, what, bytes, most, "max_decoded_bytes")
    }
}

fn check(
    path: &Path,
    what: &'static str,
    found: u64,
    limit: u64,
    field: &'static str,
) -> Result<(), DataError> {
    if found > limit {
        return Err(DataError::LimitExceeded {
            path: path.into(),
            what,
            found,
            limit,
            field,
        });
    }
    Ok(())
}
