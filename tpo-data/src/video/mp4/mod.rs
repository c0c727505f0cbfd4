//! Demultiplexer for MP4 / QuickTime files: which bytes are which picture, and when it is
//! shown.
//!
//! Written here rather than taken from a crate because every table of a hostile file must be
//! checked before it is expanded: a 30-byte `stsz` box may claim 2^32 samples.

mod boxes;
mod edits;
mod fragments;
mod track;

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::frame::Rotation;
use crate::{DataError, MediaLimits};
use boxes::FourCc;

/// Largest `moov` or `moof` box read, in bytes; 1 000 000 samples need about 24 MiB.
const MAX_HEADER_BYTES: u64 = 128 << 20;
/// Most top-level boxes read; a file of 8-byte boxes would otherwise take minutes.
const MAX_BOXES: usize = 1_000_000;

/// What is wrong with a file, before its path is attached.
#[derive(Debug)]
pub(super) enum Fault {
    Corrupt(&'static str, String),
    Codec(String),
    NoVideo,
    Data(DataError),
}

impl Fault {
    pub(super) fn corrupt(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt(what, reason.into())
    }

    pub(super) fn at(self, path: &Path) -> DataError {
        match self {
            Self::Corrupt(what, reason) => DataError::Corrupt {
                path: path.into(),
                what,
                reason,
            },
            Self::Codec(codec) => DataError::UnsupportedCodec {
                path: path.into(),
                codec,
                hint: "re-encode to 8-bit H.264, or build with the `ffmpeg` feature",
            },
            Self::NoVideo => DataError::NoVideoTrack { path: path.into() },
            Self::Data(error) => error,
        }
    }
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Self {
        Self::Data(error)
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
    pub avcc: Vec<u8>,
    /// Colour description of the `colr` box.
    pub colour: Option<ContainerColour>,
}

/// `colr` box of type `nclx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContainerColour {
    /// ISO/IEC 23091-2 matrix coefficients.
    pub matrix: u8,
    /// Whether samples use the full 0-255 range; `None` in QuickTime's variant of the box.
    pub full_range: Option<bool>,
}

/// Reads the headers of a file of `len` bytes.
pub(super) fn read_movie(
    file: &mut (impl Read + Seek),
    len: u64,
    path: &Path,
    limits: &MediaLimits,
) -> Result<Movie, DataError> {
    let io = DataError::io(path);
    let mut builder: Option<track::TrackBuilder> = None;
    let mut position = 0u64;
    let mut boxes = 0;
    while len - position >= 8 {
        boxes += 1;
        if boxes > MAX_BOXES {
            let reason = format!("more than {MAX_BOXES} top-level boxes");
            return Err(Fault::corrupt("file", reason).at(path));
        }
        file.seek(SeekFrom::Start(position)).map_err(io)?;
        let mut header = [0; 16];
        file.read_exact(&mut header[..8]).map_err(io)?;
        let name: FourCc = [header[4], header[5], header[6], header[7]];
        let short = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let (header_len, size) = match short {
            0 => (8, len - position),
            1 if len - position >= 16 => {
                file.read_exact(&mut header[8..]).map_err(io)?;
                let [.., a, b, c, d, e, f, g, h] = header;
                (16, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            n => (8, u64::from(n)),
        };
        let end = position.checked_add(size).filter(|_| size >= header_len);
        let Some(end) = end else {
            return Err(Fault::corrupt("file", format!("a box of {size} bytes")).at(path));
        };
        if matches!(&name, b"moov" | b"moof") {
            if end > len {
                let reason = format!("box ends at byte {end}, the file at {len}");
                return Err(Fault::corrupt("movie header", reason).at(path));
            }
            if size > MAX_HEADER_BYTES {
                let reason = format!("{size} bytes, at most {MAX_HEADER_BYTES} are read");
                return Err(Fault::corrupt("movie header", reason).at(path));
            }
            let mut body = vec![0; (size - header_len) as usize];
            file.read_exact(&mut body).map_err(io)?;
            let result = match (&name, &mut builder) {
                (b"moov", None) => track::read_moov(&body, path, limits).map(|b| builder = Some(b)),
                (b"moof", Some(builder)) => {
                    fragments::read_moof(&body, position, builder, path, limits)
                }
                _ => Ok(()),
            };
            result.map_err(|fault| fault.at(path))?;
        }
        // A last box that claims more than the file holds (a cut download) ends the walk; the
        // samples it should have held are checked one by one below.
        if end >= len {
            break;
        }
        position = end;
    }
    let Some(builder) = builder else {
        return Err(Fault::corrupt("file", "no `moov` box; the file may be cut off").at(path));
    };
    builder.finish(len, path, limits)
}
