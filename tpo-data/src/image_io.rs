//! Reading still images.

use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbaImage};

use crate::video::Source;
use crate::{DataError, Frame, MediaLimits};

/// Reads a PNG, JPEG, WebP, BMP or GIF image (the first frame of an animation) as RGB.
///
/// The format is taken from the contents, not from the file name. The orientation in EXIF
/// metadata is applied. Transparent pixels are blended with white, as transformers
/// does; 16-bit channels are reduced to 8.
///
/// # Errors
/// [`DataError::Io`], [`DataError::EmptyFile`], [`DataError::LimitExceeded`] from the header
/// alone, [`DataError::Image`] for everything a decoder rejects.
pub fn read_image(path: impl AsRef<Path>, limits: &MediaLimits) -> Result<Frame, DataError> {
    let source = Source::file(path.as_ref(), limits)?;
    decode(&source, limits)
}

/// As [`read_image`], from a buffer.
///
/// # Errors
/// As [`read_image`].
pub fn read_image_bytes(bytes: Vec<u8>, limits: &MediaLimits) -> Result<Frame, DataError> {
    decode(&Source::memory(bytes, limits)?, limits)
}

fn decode(source: &Source, limits: &MediaLimits) -> Result<Frame, DataError> {
    let path = source.path();
    let reader = BufReader::new(source.open()?);
    guarded(path, || {
        let mut decoder = decoder_of(reader, path, limits)?;
        // Broken metadata must not cost the picture.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(|e| failed(path, &e))?;
        image.apply_orientation(orientation);
        let (width, height) = (image.width() as usize, image.height() as usize);
        let rgb = if image.color().has_alpha() {
            flatten(&image.into_rgba8(), 255)
        } else {
            image.into_rgb8().into_raw()
        };
        Frame::from_rgb(width, height, rgb)
    })
}

/// `(width, height)` of an image as shown, from its header alone.
///
/// # Errors
/// As [`read_image`].
pub(crate) fn image_size(path: &Path, limits: &MediaLimits) -> Result<(usize, usize), DataError> {
    let source = Source::file(path, limits)?;
    let reader = BufReader::new(source.open()?);
    guarded(path, || {
        let mut decoder = decoder_of(reader, path, limits)?;
        let (width, height) = decoder.dimensions();
        let turned = matches!(
            decoder.orientation().unwrap_or(Orientation::NoTransforms),
            Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH
        );
        let (width, height) = (width as usize, height as usize);
        Ok(if turned {
            (height, width)
        } else {
            (width, height)
        })
    })
}

pub(crate) fn failed(path: &Path, error: &image::ImageError) -> DataError {
    DataError::Image {
        path: path.into(),
        reason: error.to_string(),
    }
}

/// A decoder whose header has been read and checked.
fn decoder_of<'a>(
    reader: impl BufRead + Seek + 'a,
    path: &Path,
    limits: &MediaLimits,
) -> Result<impl ImageDecoder + 'a, DataError> {
    let mut reader = ImageReader::new(reader)
        .with_guessed_format()
        .map_err(DataError::io(path))?;
    // Enforced by the decoders; the header is checked again below because some formats ignore
    // it.
    reader.limits(decoder_limits(limits));
    let decoder = reader.into_decoder().map_err(|e| failed(path, &e))?;
    let (width, height) = decoder.dimensions();
    limits.check_frame(path, width.into(), height.into())?;
    Ok(decoder)
}

/// Limits for the `image` crate: it has none on dimensions by default.
pub(crate) fn decoder_limits(limits: &MediaLimits) -> image::Limits {
    let mut out = image::Limits::default();
    let side = u32::try_from(limits.max_pixels_per_frame).unwrap_or(u32::MAX);
    out.max_image_width = Some(side);
    out.max_image_height = Some(side);
    // Up to 4 channels of 16 bits, and a working copy.
    out.max_alloc = Some(limits.max_pixels_per_frame.saturating_mul(16));
    out
}

/// RGB bytes of an image blended with a grey of this value.
pub(crate) fn flatten(image: &RgbaImage, background: u8) -> Vec<u8> {
    let background = u16::from(background);
    image
        .pixels()
        .flat_map(|p| {
            let [r, g, b, a] = p.0.map(u16::from);
            [r, g, b].map(|c| ((c * a + background * (255 - a) + 127) / 255) as u8)
        })
        .collect()
}

/// Runs a third-party decoder; a panic inside it becomes an error.
pub(crate) fn guarded<T>(
    path: &Path,
    f: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    let panicked = |reason| DataError::Image {
        path: path.into(),
        reason,
    };
    crate::video::guarded(f).map_err(panicked).flatten()
}
