//! Files that are wrong, lie or attack: a typed error, never a panic.

mod common;

use std::io::Cursor;

use common::{body_of, data, pixel, sample_clip};
use proptest::prelude::*;
use tpo_data::{
    DataError, MediaLimits, open_video, open_video_bytes, read_image, read_image_bytes,
};

fn limits() -> MediaLimits {
    MediaLimits::untrusted()
}

fn one_frame() -> Vec<u8> {
    std::fs::read(data("one_frame.mp4")).unwrap()
}

fn open_error(bytes: Vec<u8>) -> DataError {
    match open_video_bytes(bytes, &limits()) {
        Err(e) => e,
        Ok(reader) => panic!("opened: {:?}", reader.info()),
    }
}

/// Opens and reads everything there is to read; errors are fine.
fn exercise(bytes: Vec<u8>) {
    let small = MediaLimits {
        max_frames: 500,
        max_pixels_per_frame: 1 << 18,
        ..limits()
    };
    let Ok(reader) = open_video_bytes(bytes, &small) else {
        return;
    };
    let count = reader.info().frame_count;
    assert!(count > 0 && reader.info().fps > 0.0);
    let _ = reader.read_frames(&(0..count.min(40)).collect::<Vec<_>>());
    for item in reader.stream(0).unwrap().take(40) {
        if item.is_err() {
            break;
        }
    }
}

#[test]
fn not_videos() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.mp4");
    std::fs::write(&text, "these are my notes, not a film").unwrap();
    let error = |path: &std::path::Path| open_video(path, &limits()).err().unwrap();
    assert!(matches!(
        error(&text),
        DataError::UnsupportedContainer { .. }
    ));
    let empty = dir.path().join("empty.mp4");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(error(&empty), DataError::EmptyFile { .. }));
    assert!(matches!(
        error(&dir.path().join("missing.mp4")),
        DataError::Io { .. }
    ));
    assert!(matches!(error(dir.path()), DataError::Io { .. }));
    assert!(matches!(
        open_error(b"\x1A\x45\xDF\xA3 matroska".to_vec()),
        DataError::UnsupportedContainer { .. }
    ));
    assert!(matches!(
        open_error(b"\0\0\0\x08ftyp".to_vec()),
        DataError::Corrupt { .. }
    ));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = one_frame();
    for len in 1..bytes.len() {
        let error = open_video_bytes(bytes[..len].to_vec(), &limits()).err();
        // The last bytes may be padding nothing points to.
        if let Some(error) = error {
            assert!(!error.to_string().is_empty());
        } else {
            exercise(bytes[..len].to_vec());
        }
    }
    // Pictures first, tables last: without its end the file has no tables.
    let clip = std::fs::read(sample_clip()).unwrap();
    assert!(matches!(
        open_error(clip[..clip.len() / 2].to_vec()),
        DataError::Corrupt { .. }
    ));
}

#[test]
fn tables_that_lie() {
    let patch = |name: &[u8; 4], at: usize, value: u32| {
        let mut bytes = one_frame();
        let at = body_of(&bytes, name) + at;
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    // 2^32 - 1 samples of one byte each: no entries, so only the limit stops it.
    let mut bytes = patch(b"stsz", 4, 1);
    let at = body_of(&bytes, b"stsz") + 8;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        open_error(bytes),
        DataError::LimitExceeded {
            field: "max_frames",
            ..
        }
    ));
    // A table longer than its box.
    assert!(matches!(
        open_error(patch(b"stco", 4, 1 << 30)),
        DataError::Corrupt { .. }
    ));
    // A chunk past the end of the file.
    assert!(matches!(
        open_error(patch(b"stco", 8, 1 << 30)),
        DataError::Truncated { sample: 0, .. }
    ));
    // Samples per chunk 0.
    assert!(matches!(
        open_error(patch(b"stsc", 12, 0)),
        DataError::Corrupt { .. }
    ));
    // Hours in one picture.
    assert!(matches!(
        open_error(patch(b"stts", 12, u32::MAX)),
        DataError::LimitExceeded {
            field: "max_seconds",
            ..
        }
    ));
    // 65535 x 65535 pixels in the sample entry.
    assert!(matches!(
        open_error(patch(b"avc1", 24, u32::MAX)),
        DataError::LimitExceeded {
            field: "max_pixels_per_frame",
            ..
        }
    ));
    // A codec nobody knows.
    let mut bytes = one_frame();
    let at = body_of(&bytes, b"avc1");
    bytes[at - 4..at].copy_from_slice(b"zzzz");
    assert!(matches!(
        open_error(bytes),
        DataError::UnsupportedCodec { .. }
    ));
}

#[test]
fn a_clip_of_one_frame_is_a_clip() {
    let reader = open_video(data("one_frame.mp4"), &limits()).unwrap();
    assert_eq!(reader.info().frame_count, 1);
    assert_eq!(reader.info().timestamps, [0.0]);
    let frames = reader.read_frames(&[0; 16]).unwrap();
    assert!(frames.len() == 16 && frames.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn limits_are_limits() {
    let open = |limits: MediaLimits| open_video(sample_clip(), &limits).err().unwrap();
    let field = |e: DataError| match e {
        DataError::LimitExceeded { field, .. } => field,
        other => panic!("{other}"),
    };
    let base = limits();
    assert_eq!(
        field(open(MediaLimits {
            max_bytes: 100,
            ..base.clone()
        })),
        "max_bytes"
    );
    assert_eq!(
        field(open(MediaLimits {
            max_frames: 99,
            ..base.clone()
        })),
        "max_frames"
    );
    assert_eq!(
        field(open(MediaLimits {
            max_seconds: 3.9,
            ..base.clone()
        })),
        "max_seconds"
    );
    assert_eq!(
        field(open(MediaLimits {
            max_pixels_per_frame: 320 * 239,
            ..base.clone()
        })),
        "max_pixels_per_frame"
    );
    let reader = open_video(
        sample_clip(),
        &MediaLimits {
            max_decoded_bytes: 320 * 240 * 3 * 10,
            ..base
        },
    )
    .unwrap();
    assert!(reader.read_frames(&[0; 10]).is_ok());
    assert_eq!(
        field(reader.read_frames(&[0; 11]).unwrap_err()),
        "max_decoded_bytes"
    );
}

/// A PNG that announces `side` x `side` pixels and ends there.
fn png_header(side: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(side.to_be_bytes());
    png.extend(side.to_be_bytes());
    png.extend([8, 2, 0, 0, 0]);
    // CRC-32 of the chunk (ITU-T V.42), as PNG asks.
    let mut crc = u32::MAX;
    for &byte in &png[12..] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
        }
    }
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\x10\0IDAT");
    png
}

#[test]
fn a_png_bomb_costs_nothing() {
    let error = read_image_bytes(png_header(100_000), &MediaLimits::default()).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::LimitExceeded {
                found: 10_000_000_000,
                ..
            }
        ),
        "{error}"
    );
    // Within the limits, but the pixels are not there.
    let error = read_image_bytes(png_header(64), &MediaLimits::default()).unwrap_err();
    assert!(matches!(error, DataError::Image { .. }), "{error}");
}

#[test]
fn bad_images() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.png");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(
        read_image(&empty, &limits()),
        Err(DataError::EmptyFile { .. })
    ));
    assert!(matches!(
        read_image_bytes(b"hello".to_vec(), &limits()),
        Err(DataError::Image { .. })
    ));
}

#[test]
fn images_are_read_whatever_their_name_and_alpha() {
    use image::{ImageFormat, Rgba, RgbaImage};
    let mut picture = RgbaImage::from_pixel(3, 2, Rgba([200, 100, 50, 255]));
    picture.put_pixel(0, 0, Rgba([200, 100, 50, 51]));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
        let mut bytes = Vec::new();
        picture
            .write_to(&mut Cursor::new(&mut bytes), format)
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture.jpg");
        std::fs::write(&path, bytes).unwrap();
        let frame = read_image(&path, &limits()).unwrap();
        assert_eq!((frame.width(), frame.height()), (3, 2));
        assert_eq!(pixel(&frame, 2, 1), [200, 100, 50]);
        // 51 of 255 parts of the colour on white.
        assert_eq!(pixel(&frame, 0, 0), [244, 224, 214], "{format:?}");
    }
}

#[test]
fn grey_and_palette_images_become_rgb_on_white() {
    use image::{GrayAlphaImage, GrayImage, ImageFormat, Luma, LumaA};
    let mut grey = Vec::new();
    GrayImage::from_pixel(2, 1, Luma([70]))
        .write_to(&mut Cursor::new(&mut grey), ImageFormat::Png)
        .unwrap();
    let mut veiled = Vec::new();
    GrayAlphaImage::from_pixel(2, 1, LumaA([70, 0]))
        .write_to(&mut Cursor::new(&mut veiled), ImageFormat::Png)
        .unwrap();
    let mut palette = Vec::new();
    let mut encoder = png::Encoder::new(&mut palette, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![9, 8, 7, 1, 2, 3]);
    encoder.set_trns(vec![255, 0]);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0, 1]).unwrap();
    writer.finish().unwrap();
    for (bytes, first, second) in [
        (grey, [70; 3], [70; 3]),
        (veiled, [255; 3], [255; 3]),
        (palette, [9, 8, 7], [255; 3]),
    ] {
        let frame = read_image_bytes(bytes, &limits()).unwrap();
        assert_eq!([pixel(&frame, 0, 0), pixel(&frame, 1, 0)], [first, second]);
    }
}

#[test]
fn exif_orientation_is_applied() {
    // 2 x 1, dark then bright, as JPEG with EXIF orientation 6 (turn 90 degrees clockwise).
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100)
        .encode(
            &[[10u8; 8], [240; 8]].concat().repeat(8),
            16,
            8,
            image::ExtendedColorType::L8,
        )
        .unwrap();
    let tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut segment = vec![0xFF, 0xE1];
    segment.extend((tiff.len() as u16 + 2).to_be_bytes());
    segment.extend(tiff);
    jpeg.splice(2..2, segment);
    let frame = read_image_bytes(jpeg, &limits()).unwrap();
    assert_eq!((frame.width(), frame.height()), (8, 16));
    assert!(pixel(&frame, 4, 1)[0] < 60 && pixel(&frame, 4, 14)[0] > 190);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_videos_never_panic(
        which in 0usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = ["one_frame.mp4", "fragmented.mp4", "interlaced.mp4", "ten_bit.mp4"][which];
        let mut bytes = std::fs::read(data(name)).unwrap();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(bytes);
    }

    #[test]
    fn mutated_tables_never_panic(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(vec![0u32, 1, 2, 0x7FFF_FFFF, 0x8000_0000, u32::MAX])),
            1..4,
        ),
    ) {
        // Whole words of the movie header, where the counts and offsets are.
        let mut bytes = one_frame();
        let moov = body_of(&bytes, b"moov");
        for (at, value) in edits {
            let at = moov + at.index(bytes.len() - moov - 4);
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        exercise(bytes);
    }

    #[test]
    fn random_bytes_are_not_images_or_videos(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert!(open_video_bytes(bytes.clone(), &limits()).is_err());
        let _ = read_image_bytes(bytes, &limits());
    }
}
