//! Decoding against FFmpeg: `tests/data/expected.json` holds what FFmpeg makes of each clip.

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;

use common::{body_of, clip_path, data, open_bytes, pixel, sample_clip};
use serde_json::Value;
use tpo_data::{
    DataError, Frame, MediaLimits, Rotation, VideoOptions, YuvConversion, open_video,
    open_video_with,
};

/// Mean colour of a 4x4 grid, row by row.
fn grid(frame: &Frame) -> Vec<f64> {
    let (w, h) = (frame.width() / 4, frame.height() / 4);
    let mut out = Vec::new();
    for gy in 0..4 {
        for gx in 0..4 {
            let mut sum = [0.0; 3];
            for y in gy * h..(gy + 1) * h {
                for x in gx * w..(gx + 1) * w {
                    let p = pixel(frame, x, y);
                    (0..3).for_each(|c| sum[c] += f64::from(p[c]));
                }
            }
            out.extend(sum.map(|s| s / (w * h) as f64));
        }
    }
    out
}

fn expected() -> BTreeMap<String, Value> {
    serde_json::from_slice(&std::fs::read(data("expected.json")).unwrap()).unwrap()
}

/// Containers only the `ffmpeg` feature reads.
const FFMPEG_ONLY: [&str; 2] = ["mpeg4.avi", "vp9.mkv"];

#[test]
fn every_clip_decodes_as_ffmpeg_does() {
    let clips = expected();
    assert_eq!(clips.len(), 8);
    for (name, clip) in clips {
        if FFMPEG_ONLY.contains(&name.as_str()) && !cfg!(feature = "ffmpeg") {
            let refused = open_video(clip_path(&name), &MediaLimits::default());
            assert!(matches!(
                refused.err(),
                Some(DataError::UnsupportedContainer { .. })
            ));
            continue;
        }
        for (key, conversion, tolerance) in [
            // Rounding of each pixel to 8 bits mostly averages out.
            ("frames", YuvConversion::Exact, 0.8),
            // The same bits; the file holds two decimals.
            ("reference", YuvConversion::Reference, 0.006),
        ] {
            let options = VideoOptions {
                conversion,
                ..VideoOptions::default()
            };
            let reader = open_video_with(clip_path(&name), &options).unwrap();
            let info = reader.info();
            assert_eq!(info.width as u64, clip["width"].as_u64().unwrap(), "{name}");
            assert_eq!(info.height as u64, clip["height"].as_u64().unwrap());
            let times: Vec<f64> = serde_json::from_value(clip["times"].clone()).unwrap();
            assert_eq!(info.frame_count, times.len(), "{name}");
            assert!((info.fps - 25.0).abs() < 1e-9, "{name}: {} fps", info.fps);
            assert!((info.duration - times.len() as f64 / 25.0).abs() < 1e-9);
            for (a, b) in info.timestamps.iter().zip(&times) {
                // Without an edit list FFmpeg keeps the delay of the B-frames; ours start at 0.
                let b = b - times[0];
                assert!((a - b).abs() < 1e-3, "{name}: {a} s, FFmpeg {b} s");
            }
            let frames: Vec<Vec<f64>> = serde_json::from_value(clip[key].clone()).unwrap();
            // FFmpeg's scaler repeats the chroma of interlaced pictures field by field here,
            // decord and we do not; 10-bit pictures are converted exactly in both modes.
            let unlike = matches!(name.as_str(), "interlaced.mp4" | "ten_bit.mp4");
            assert_eq!(frames.is_empty(), unlike && key == "reference", "{name}");
            let all: Vec<usize> = (0..info.frame_count).collect();
            let decoded = reader.read_frames(&all).unwrap();
            for (i, (frame, expected)) in decoded.iter().zip(&frames).enumerate() {
                for (a, b) in grid(frame).iter().zip(expected) {
                    assert!(
                        (a - b).abs() < tolerance,
                        "{name} frame {i} {key}: {a}, FFmpeg {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn any_selection_equals_reading_everything() {
    let reader = open_video(sample_clip(), &MediaLimits::default()).unwrap();
    let all = reader.read_frames(&(0..100).collect::<Vec<_>>()).unwrap();
    assert!(all[0] != all[1] && all[39] != all[40]);
    for indices in [
        vec![99, 0, 41, 41, 39, 0],
        vec![38],
        vec![79, 80],
        vec![3, 9, 15, 21, 27, 34, 40, 46, 53, 59, 65, 71, 78, 84, 90, 96],
    ] {
        let some = reader.read_frames(&indices).unwrap();
        for (i, frame) in indices.iter().zip(&some) {
            assert_eq!(frame, &all[*i], "frame {i} of {indices:?}");
        }
    }
    assert!(reader.read_frames(&[]).unwrap().is_empty());
}

#[test]
fn streaming_equals_reading() {
    for (name, start) in [
        ("bouncing_shapes.mp4", 0),
        ("bouncing_shapes.mp4", 37),
        ("bouncing_shapes.mp4", 99),
        ("fragmented.mp4", 0),
        ("interlaced.mp4", 0),
        ("interlaced.mp4", 3),
        ("ten_bit.mp4", 1),
    ] {
        let reader = open_video(clip_path(name), &MediaLimits::default()).unwrap();
        let count = reader.info().frame_count;
        let all = reader
            .read_frames(&(start..count).collect::<Vec<_>>())
            .unwrap();
        let mut seen = 0;
        for item in reader.stream(start).unwrap() {
            let item = item.unwrap();
            assert_eq!(item.index, start + seen);
            assert_eq!(item.timestamp, reader.info().timestamps[item.index]);
            assert_eq!(item.frame, all[seen], "{name} frame {}", item.index);
            seen += 1;
        }
        assert_eq!(seen, count - start, "{name} from {start}");
        assert!(reader.stream(count).is_err());
    }
}

#[test]
fn visiting_delivers_each_frame_once_and_stops_on_error() {
    let reader = open_video(sample_clip(), &MediaLimits::default()).unwrap();
    let seen = Mutex::new(Vec::new());
    reader
        .visit_frames(&[5, 90, 5, 41], &|i, _| {
            seen.lock().unwrap().push(i);
            Ok(())
        })
        .unwrap();
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, [5, 41, 90]);
    let stopped = reader.visit_frames(&[5, 41], &|_, _| Err(DataError::Cancelled));
    assert!(matches!(stopped, Err(DataError::Cancelled)));
    assert!(matches!(
        reader.read_frames(&[3, 100]),
        Err(DataError::FrameOutOfRange {
            index: 100,
            frame_count: 100
        })
    ));
}

#[test]
fn rotation_of_the_track_header_is_applied() {
    let bytes = std::fs::read(data("one_frame.mp4")).unwrap();
    let plain = open_bytes(bytes.clone())
        .read_frames(&[0])
        .unwrap()
        .remove(0);
    let one = 0x1_0000i32;
    for (matrix, rotation) in [
        ([0, one, -one, 0], Rotation::Clockwise),
        ([-one, 0, 0, -one], Rotation::Half),
        ([0, -one, one, 0], Rotation::Counterclockwise),
    ] {
        let mut turned = bytes.clone();
        // Version 0: the matrix is 40 bytes into the box.
        let at = body_of(&turned, b"tkhd") + 40;
        let [a, b, c, d] = matrix.map(i32::to_be_bytes);
        for (i, word) in [a, b, [0; 4], c, d].iter().enumerate() {
            turned[at + 4 * i..at + 4 * i + 4].copy_from_slice(word);
        }
        let reader = open_bytes(turned);
        assert_eq!(reader.info().rotation, rotation);
        let frame = reader.read_frames(&[0]).unwrap().remove(0);
        assert_eq!(
            (frame.width(), frame.height()),
            (reader.info().width, reader.info().height)
        );
        assert_eq!(frame, plain.clone().rotated(rotation));
    }
}

#[test]
fn an_animated_gif_is_a_video() {
    use image::codecs::gif::GifEncoder;
    use image::{Delay, Rgba, RgbaImage};
    let mut bytes = Vec::new();
    {
        let mut encoder = GifEncoder::new(&mut bytes);
        for i in 0..5u8 {
            let picture = RgbaImage::from_pixel(8, 6, Rgba([40 * i, 0, 255 - 40 * i, 255]));
            let delay = Delay::from_numer_denom_ms(200, 1);
            encoder
                .encode_frame(image::Frame::from_parts(picture, 0, 0, delay))
                .unwrap();
        }
    }
    let reader = open_bytes(bytes);
    let info = reader.info().clone();
    assert_eq!((info.width, info.height, info.frame_count), (8, 6, 5));
    assert!((info.fps - 5.0).abs() < 1e-9 && (info.timestamps[4] - 0.8).abs() < 1e-9);
    let frames = reader.read_frames(&[4, 0]).unwrap();
    assert_eq!(pixel(&frames[0], 3, 3), [160, 0, 95]);
    assert_eq!(pixel(&frames[1], 3, 3), [0, 0, 255]);
    let streamed: Vec<_> = reader
        .stream(3)
        .unwrap()
        .map(|f| f.unwrap().index)
        .collect();
    assert_eq!(streamed, [3, 4]);
}
