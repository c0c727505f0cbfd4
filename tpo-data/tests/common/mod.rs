//! Helpers shared by the integration tests.
#![allow(dead_code)]

pub mod stored;

use std::path::PathBuf;

use tpo_data::{Frame, MediaLimits, VideoReader, open_video_bytes};

/// A small test clip.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// The sample clip of the repository: 100 frames, 320x240, IDR pictures at 0, 40 and 80.
pub fn sample_clip() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/bouncing_shapes.mp4")
}

pub fn clip_path(name: &str) -> PathBuf {
    match name {
        "bouncing_shapes.mp4" => sample_clip(),
        other => data(other),
    }
}

pub fn open_bytes(bytes: Vec<u8>) -> Box<dyn VideoReader> {
    open_video_bytes(bytes, &MediaLimits::default()).unwrap()
}

/// Position of the contents of the last box `name`, found by its letters (`avc1` is also a
/// brand at the start of the file).
pub fn body_of(bytes: &[u8], name: &[u8; 4]) -> usize {
    bytes.windows(4).rposition(|w| w == name).unwrap() + 4
}

/// The pixel in column `x` and row `y`.
pub fn pixel(frame: &Frame, x: usize, y: usize) -> [u8; 3] {
    let at = (y * frame.width() + x) * 3;
    frame.rgb()[at..at + 3].try_into().unwrap()
}
