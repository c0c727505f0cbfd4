//! Open, sample, transform in one call.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use common::{data, sample_clip};
use tpo_data::{
    ClipConfig, ClipRange, DataError, FrameSampling, ImageTransform, MediaLimits, open_video,
    read_clip,
};

#[test]
fn a_clip_equals_its_steps() {
    let config = ClipConfig::default();
    let limits = MediaLimits::default();
    let calls = AtomicUsize::new(0);
    let progress = |done: usize, total: usize| {
        calls.fetch_add(1, Ordering::Relaxed);
        assert!(done >= 1 && done <= total && total == 16);
        true
    };
    let device = Device::flex();
    let reader = open_video(sample_clip(), &limits).unwrap();
    let clip = read_clip(&*reader, &config, Some(&progress)).unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 16);
    assert_eq!(clip.shape, [16, 3, 224, 224]);
    // linspace(0, 100, 17) truncated, then the middles.
    let expected = [2, 8, 14, 21, 27, 33, 39, 46, 52, 58, 64, 71, 77, 83, 89, 96];
    assert_eq!(clip.indices, expected);
    assert!((clip.timestamps[1] - 0.32).abs() < 1e-9);
    assert_eq!((clip.info.width, clip.info.height), (320, 240));

    let frames = reader.read_frames(&expected).unwrap();
    let by_steps = config.transform.apply_tensor(&frames, &device).unwrap();
    assert_eq!(
        clip.into_tensor(&device)
            .into_data()
            .try_to_vec::<f32>()
            .unwrap(),
        by_steps.into_data().try_to_vec::<f32>().unwrap()
    );
}

#[test]
fn a_short_video_repeats_its_last_frame() {
    let reader = open_video(data("full_range.mp4"), &MediaLimits::default()).unwrap();
    let config = ClipConfig {
        num_frames: 5,
        transform: ImageTransform::vision().with_size([8, 10]),
        ..ClipConfig::default()
    };
    let clip = read_clip(&*reader, &config, None).unwrap();
    assert_eq!(clip.indices, [0, 1, 2, 2, 2]);
    assert_eq!(clip.shape, [5, 3, 8, 10]);
    let frame = |i: usize| &clip.values[i * 240..(i + 1) * 240];
    assert!(frame(2) == frame(3) && frame(3) == frame(4) && frame(1) != frame(2));
    assert_eq!(clip.timestamps[4], clip.timestamps[2]);
}

#[test]
fn ranges_empty_selections_and_cancelling() {
    let reader = open_video(sample_clip(), &MediaLimits::default()).unwrap();
    let run = |config: &ClipConfig, progress| read_clip(&*reader, config, progress);
    let small = ClipConfig {
        transform: ImageTransform::vision().with_size([4, 4]),
        sampling: FrameSampling::Fps(2.0),
        range: Some(ClipRange {
            start: 1.0,
            end: 3.0,
        }),
        ..ClipConfig::default()
    };
    assert_eq!(run(&small, None).unwrap().indices, [31, 44, 56, 69]);
    let nothing = ClipConfig {
        range: Some(ClipRange {
            start: 1.0,
            end: 1.1,
        }),
        ..small.clone()
    };
    assert!(matches!(
        run(&nothing, None),
        Err(DataError::NoFramesSelected { .. })
    ));
    assert!(matches!(
        run(&small, Some(&|_, _| false)),
        Err(DataError::Cancelled)
    ));
}

#[test]
fn configurations_read_and_write_as_toml() {
    let text = toml::to_string(&ImageTransform::mask()).unwrap();
    let back: ImageTransform = toml::from_str(&text).unwrap();
    assert_eq!(back, ImageTransform::mask());
    assert!(toml::from_str::<ImageTransform>(&format!("{text}\nsise = 3")).is_err());
    let limits: MediaLimits = toml::from_str("max_frames = 10").unwrap();
    assert_eq!(limits.max_frames, 10);
    assert_eq!(limits.max_bytes, MediaLimits::default().max_bytes);
}
