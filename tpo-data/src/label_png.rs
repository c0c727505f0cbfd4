//! Reading label images: PNG files whose pixels are object numbers.

use std::io::BufReader;
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Transformations};
use tpo_core::geometry::LabelMap;

use crate::video::Source;
use crate::{DataError, MediaLimits};

/// Reads a PNG with a palette, or in grey, of at most 8 bits as object numbers per pixel (DAVIS,
/// YouTube-VOS). Palette *indices* are kept; the palette's colours do not matter.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::LimitExceeded`] from the header alone,
/// [`DataError::Image`] for colour images and broken files.
pub fn read_label_png(path: impl AsRef<Path>, limits: &MediaLimits) -> Result<LabelMap, DataError> {
    const MAX_BYTES: usize = 1 << 28;
    let path = path.as_ref();
    let reader = BufReader::new(Source::file(path, limits)?.open()?);
    let image = |reason: String| DataError::Image {
        path: path.into(),
        reason,
    };
    let failed = |e: png::DecodingError| image(e.to_string());
    let mut decoder = Decoder::new_with_limits(reader, png::Limits { bytes: MAX_BYTES });
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = reader.info().size();
    limits.check_frame(path, width.into(), height.into())?;
    let (colour, depth) = reader.output_color_type();
    if !matches!(colour, ColorType::Indexed | ColorType::Grayscale) || depth == BitDepth::Sixteen {
        return Err(image(format!(
            "its pixels are {colour:?} of {depth:?} bits; labels are an indexed or grey PNG of at \
             most 8 bits"
        )));
    }
    let size = reader
        .output_buffer_size()
        .filter(|n| *n <= MAX_BYTES)
        .ok_or_else(|| image("it is too large".into()))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(failed)?;
    let (height, width) = (height as usize, width as usize);
    let bits = depth as usize;
    let mask = ((1u16 << bits) - 1) as u8;
    let label = |at: usize| {
        let (row, bit) = (at / width, at % width * bits);
        let byte = bytes.get(row * frame.line_size + bit / 8);
        byte.map_or(0, |b| b >> (8 - bits - bit % 8) & mask)
    };
    Ok(LabelMap {
        height,
        width,
        labels: (0..height * width).map(label).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, w: u32, h: u32, colour: ColorType, depth: BitDepth, bytes: &[u8]) {
        let file = std::fs::File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, w, h);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == ColorType::Indexed {
            encoder.set_palette(vec![7u8; 3 * (1 << (depth as usize).min(8))]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(bytes).unwrap();
    }

    #[test]
    fn indices_of_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let limits = MediaLimits::default();
        let read = || read_label_png(&path, &limits);
        write(
            &path,
            3,
            2,
            ColorType::Indexed,
            BitDepth::Eight,
            &[0, 1, 2, 255, 4, 5],
        );
        let map = read().unwrap();
        assert_eq!(
            (map.height, map.width, map.labels),
            (2, 3, vec![0, 1, 2, 255, 4, 5])
        );
        write(
            &path,
            3,
            2,
            ColorType::Indexed,
            BitDepth::Four,
            &[0x01, 0x20, 0xf4, 0x50],
        );
        assert_eq!(read().unwrap().labels, [0, 1, 2, 15, 4, 5]);
        write(
            &path,
            3,
            1,
            ColorType::Indexed,
            BitDepth::Two,
            &[0b01_10_11_00],
        );
        assert_eq!(read().unwrap().labels, [1, 2, 3]);
        write(
            &path,
            9,
            1,
            ColorType::Grayscale,
            BitDepth::One,
            &[0b1010_0000, 0b1000_0000],
        );
        assert_eq!(read().unwrap().labels, [1, 0, 1, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn colour_and_broken_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let limits = MediaLimits::default();
        write(&path, 1, 1, ColorType::Rgb, BitDepth::Eight, &[1, 2, 3]);
        assert!(matches!(
            read_label_png(&path, &limits),
            Err(DataError::Image { .. })
        ));
        write(
            &path,
            2,
            2,
            ColorType::Indexed,
            BitDepth::Eight,
            &[0, 1, 2, 3],
        );
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 3, 20, whole.len() / 2, whole.len() - 20] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(read_label_png(&path, &limits).is_err(), "{cut}");
        }
        std::fs::write(&path, &whole).unwrap();
        let small = MediaLimits {
            max_pixels_per_frame: 3,
            ..limits
        };
        assert!(matches!(
            read_label_png(&path, &small),
            Err(DataError::LimitExceeded { .. })
        ));
    }
}
