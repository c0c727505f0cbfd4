//! Indexed PNG masks: the value of a pixel is the number of its object.

use std::io::{BufRead, Seek};
use std::path::Path;

use ndarray::Array2;
use tpo_core::geometry::Mask;

use super::{bad, open};
use crate::{DataError, MediaLimits};

/// Object numbers `[height, width]` of an indexed or grey PNG of up to 8 bits.
pub(super) fn read_indices(path: &Path) -> Result<Array2<u8>, DataError> {
    indices(open(path)?, path)
}

/// As [`read_indices`] from any reader.
pub(super) fn indices(reader: impl BufRead + Seek, path: &Path) -> Result<Array2<u8>, DataError> {
    let fail = |e: &dyn std::fmt::Display| DataError::Image {
        path: path.into(),
        reason: e.to_string(),
    };
    let mut decoder = png::Decoder::new_with_limits(reader, png::Limits { bytes: 1 << 28 });
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|e| fail(&e))?;
    let info = reader.info();
    let (w, h) = (info.width as usize, info.height as usize);
    let (colour, depth) = (info.color_type, info.bit_depth);
    MediaLimits::default().check_frame(path, w as u64, h as u64)?;
    let bits = match (colour, depth) {
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::Sixteen) => 0,
        (png::ColorType::Indexed | png::ColorType::Grayscale, d) => d as usize,
        _ => 0,
    };
    if bits == 0 {
        return Err(bad(
            path,
            "PNG header",
            format!("{colour:?} of {depth:?} bits; masks are indexed or grey, up to 8 bits"),
        ));
    }
    let size = reader
        .output_buffer_size()
        .filter(|n| *n <= 1 << 28)
        .ok_or_else(|| fail(&"too large"))?;
    let mut rows = vec![0; size];
    let frame = reader.next_frame(&mut rows).map_err(|e| fail(&e))?;
    let mask = ((1u16 << bits) - 1) as u8;
    let line = frame.line_size;
    Ok(Array2::from_shape_fn((h, w), |(y, x)| {
        let bit = x * bits;
        let byte = rows.get(y * line + bit / 8).copied().unwrap_or(0);
        (byte >> (8 - bits - bit % 8)) & mask
    }))
}

/// The pixels of one object.
pub(super) fn object(indices: &Array2<u8>, number: u8) -> Mask {
    Mask(indices.mapv(|v| v == number))
}
