//! Demultiplexer for MP4 / QuickTime files: which bytes are which picture, and when it is
//! shown.
//!
//! `mp4-atom` decodes single boxes, none of which can take more memory than its bytes. Which boxes
//! are looked at, and what their tables expand to, is decided here: a 30-byte `stsz` box may claim
//! 2^32 samples, and a box nobody asked about must not cost the video.

mod boxes;
mod edits;
mod fragments;
mod track;

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use mp4_atom::{Avcc, Header, ReadFrom};

use boxes::Boxes;

use crate::frame::Rotation;
use crate::{DataError, MediaLimits};

/// Largest `moov` or `moof` box read, in bytes; 1 000 000 samples need about 24 MiB.
const MAX_HEADER_BYTES: u64 = 128 << 20;
/// Most top-level boxes read; a file of 8-byte boxes would otherwise take minutes.
const MAX_BOXES: usize = 1_000_000;

/// What an MP4 file holds that only FFmpeg may read.
pub(super) fn unsupported(path: &Path, codec: impl Into<String>) -> DataError {
    DataError::UnsupportedCodec {
        path: path.into(),
        codec: codec.into(),
        hint: "re-encode to 8-bit H.264, or build with the `ffmpeg` feature",
    }
}

/// One coded picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub size: u32,
    /// Whether the container says decoding can start here.
    pub sync: bool,
    /// Decoding time in track units.
    pub dts: i64,
    /// Presentation time in track units, before the edit list.
    pub pts: i64,
}

/// One shown picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shown {
    /// Index of the coded picture.
    pub sample: u32,
    /// Presentation time in seconds from the start of the video.
    pub seconds: f64,
}

/// The video track of a file.
#[derive(Debug)]
pub(super) struct Movie {
    /// Coded pictures in decoding order.
    pub samples: Vec<Sample>,
    /// Shown pictures in presentation order.
    pub shown: Vec<Shown>,
    /// Frames per second: pictures / sum of their durations, as ffmpeg's `avg_frame_rate`.
    pub fps: f64,
    /// Rotation of the track header.
    pub rotation: Rotation,
    /// The `avcC` record.
    pub avcc: Avcc,
    /// Colour description of the `colr` box.
    pub colour: Option<ContainerColour>,
}

/// Matrix coefficients (ISO/IEC 23091-2), and whether samples use the full 0-255 range.
pub(super) type ContainerColour = (u8, bool);

/// A composition offset, which is signed in practice in both versions of the boxes that hold it.
fn signed(offset: i64) -> i64 {
    i64::from(offset as i32)
}

/// Reads the headers of a file of `len` bytes.
pub(super) fn read_movie(
    file: &mut (impl Read + Seek),
    len: u64,
    path: &Path,
    limits: &MediaLimits,
) -> Result<Movie, DataError> {
    let io = DataError::io(path);
    let corrupt = |what, reason: String| DataError::corrupt(path, what, reason);
    let mut builder: Option<track::TrackBuilder> = None;
    let mut position = 0u64;
    let mut boxes = 0;
    while len - position >= 8 {
        boxes += 1;
        if boxes > MAX_BOXES {
            let reason = format!("more than {MAX_BOXES} top-level boxes");
            return Err(corrupt("file", reason));
        }
        file.seek(SeekFrom::Start(position)).map_err(io)?;
        let header = Header::read_from(file)
            .map_err(|e| corrupt("file", format!("the box at byte {position}: {e}")))?;
        let start = file.stream_position().map_err(io)?;
        let size = header.size.map_or(len - start, |n| n as u64);
        let end = start.saturating_add(size);
        let name: [u8; 4] = header.kind.into();
        if matches!(&name, b"moov" | b"moof") {
            if end > len {
                let reason = format!("box ends at byte {end}, the file at {len}");
                return Err(corrupt("movie header", reason));
            }
            if size > MAX_HEADER_BYTES {
                let reason = format!("{size} bytes, at most {MAX_HEADER_BYTES} are read");
                return Err(corrupt("movie header", reason));
            }
            let mut body = vec![0; size as usize];
            file.read_exact(&mut body).map_err(io)?;
            match (&name, &mut builder) {
                (b"moov", None) => {
                    let moov = Boxes::new(&body, "moov", path);
                    builder = Some(track::read_moov(moov, limits)?);
                }
                (b"moof", Some(builder)) => {
                    let moof = Boxes::new(&body, "moof", path);
                    fragments::read_moof(moof, position, builder, limits)?;
                }
                _ => {}
            }
        }
        // A last box that claims more than the file holds (a cut download) ends the walk; the
        // samples it should have held are checked one by one below.
        if end >= len {
            break;
        }
        position = end;
    }
    let Some(builder) = builder else {
        let reason = "no `moov` box; the file may be cut off";
        return Err(corrupt("file", reason.into()));
    };
    builder.finish(len, path, limits)
}
