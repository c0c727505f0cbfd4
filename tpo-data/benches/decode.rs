//! Decoding and transforming 16 middle frames; the twin of `benches/twin/decode_twin.py`.
//!
//! ```text
//! TPO_BENCH_VIDEO=clip.mp4 RAYON_NUM_THREADS=2 cargo bench -p tpo-data --bench decode
//! ```
//! Without TPO_BENCH_VIDEO the sample clip of the repository is used.

use std::path::PathBuf;

use tpo_data::{
    ClipConfig, Frame, ImageTransform, MediaLimits, open_video, read_clip, select_frames,
};

fn main() {
    divan::main();
}

fn video() -> PathBuf {
    std::env::var_os("TPO_BENCH_VIDEO").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/bouncing_shapes.mp4"),
        PathBuf::from,
    )
}

fn frames() -> Vec<Frame> {
    let reader = open_video(video(), &MediaLimits::default()).unwrap();
    let indices = select_frames(reader.info(), &ClipConfig::default()).unwrap();
    reader.read_frames(&indices).unwrap()
}

/// Open the file and decode 16 middle frames to RGB.
#[divan::bench(sample_count = 20)]
fn decode_16_middle() -> Vec<Frame> {
    frames()
}

/// 16 frames in memory to 224x224, 8-bit rounding, normalised.
#[divan::bench(sample_count = 20)]
fn transform_16_vision(bencher: divan::Bencher) {
    let frames = frames();
    let transform = ImageTransform::vision();
    bencher.bench_local(|| transform.apply(&frames).unwrap());
}

/// 16 frames in memory to 1024x1024, float.
#[divan::bench(sample_count = 10)]
fn transform_16_mask(bencher: divan::Bencher) {
    let frames = frames();
    let transform = ImageTransform::mask();
    bencher.bench_local(|| transform.apply(&frames).unwrap());
}

/// 16 frames of 1280x720 in memory to 224x224.
#[divan::bench(sample_count = 20)]
fn transform_16_vision_720p(bencher: divan::Bencher) {
    let rgb: Vec<u8> = (0..1280 * 720 * 3u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let frames = vec![Frame::from_rgb(1280, 720, rgb).unwrap(); 16];
    let transform = ImageTransform::vision();
    bencher.bench_local(|| transform.apply(&frames).unwrap());
}

/// Everything: open, sample, decode, transform.
#[divan::bench(sample_count = 20)]
fn clip_16_vision() -> Vec<f32> {
    let reader = open_video(video(), &MediaLimits::default()).unwrap();
    read_clip(&*reader, &ClipConfig::default(), None)
        .unwrap()
        .values
}
