//! Features from video files: sampling, bounded memory, the disk cache, the program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor};
use tpo::Error;
use tpo::core::head::FeatureSource;
use tpo::data::video::{FrameStream, FrameVisitor, OpenVideo};
use tpo::data::{DataError, Frame, MediaLimits, TimedFrame, VideoInfo, VideoReader};
use tpo::features::{
    CacheKey, CacheUse, ExtractOptions, FeatureCache, TemporalTowers, extract_reader,
    extract_video, hash_file,
};
use tpo::heads::HeadsError;
use tpo::heads::temporal::features::{
    ClipFeatureExtractor, ClipInput, FeatureMatrix, InternVideo2Features, PrecomputedOptions,
    QueryFeatureExtractor, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES, TemporalFeatures,
};
use tpo::vision::InternVideo2Config;

fn sample_clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bouncing_shapes.mp4")
}

/// Mean and first value of every clip; counts calls and the frames it was given.
struct Means {
    input: ClipInput,
    calls: AtomicUsize,
    frames: AtomicUsize,
}

impl Means {
    fn new() -> Self {
        Self {
            input: ClipInput {
                mean: [0.0; 3],
                std: [1.0; 3],
                ..ClipInput::one_per_second(4)
            },
            calls: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
        }
    }
}

impl ClipFeatureExtractor for Means {
    fn input(&self) -> &ClipInput {
        &self.input
    }
    fn width(&self) -> usize {
        2
    }
    fn identity(&self) -> Result<String, HeadsError> {
        Ok("means".into())
    }
    fn device(&self) -> Device {
        Device::flex()
    }
    fn extract(&self, clips: Tensor<5>) -> Result<Tensor<2>, HeadsError> {
        let [n, frames, ..] = clips.dims();
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.frames.fetch_add(n * frames, Ordering::SeqCst);
        let flat = clips.reshape([n as i32, -1]);
        let first = flat.clone().narrow(1, 0, 1);
        Ok(Tensor::cat(vec![flat.mean_dim(1), first], 1))
    }
}

/// A video whose frame `i` is grey of value `i % 251`, made as it is asked for. Notes how many
/// sampled frames were decoded and not yet seen by the extractor.
struct Synthetic<'a> {
    video: OpenVideo,
    seen: &'a AtomicUsize,
    sampled_every: usize,
    most_live: AtomicUsize,
    ends_at: usize,
}

impl<'a> Synthetic<'a> {
    fn new(frame_count: usize, fps: f64, seen: &'a AtomicUsize) -> Self {
        Self {
            video: OpenVideo {
                path: "<synthetic>".into(),
                limits: MediaLimits::default(),
                info: VideoInfo::steady([8, 8], frame_count, fps, "synthetic").unwrap(),
            },
            seen,
            sampled_every: (fps / 8.0) as usize,
            most_live: AtomicUsize::new(0),
            ends_at: frame_count,
        }
    }
}

impl VideoReader for Synthetic<'_> {
    fn video(&self) -> &OpenVideo {
        &self.video
    }
    fn visit_frames(&self, _: &[usize], _: &FrameVisitor<'_>) -> Result<(), DataError> {
        unreachable!("extraction streams")
    }
    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        Ok(Box::new((start..self.ends_at).map(move |index| {
            let decoded = (index - start) / self.sampled_every.max(1);
            let live = decoded.saturating_sub(self.seen.load(Ordering::SeqCst));
            self.most_live.fetch_max(live, Ordering::SeqCst);
            Ok(TimedFrame {
                index,
                timestamp: self.info().timestamps[index],
                frame: Frame::from_rgb(8, 8, vec![(index % 251) as u8; 192])?,
            })
        })))
    }
}

#[test]
fn one_feature_per_second_from_the_middle_of_each_eighth() {
    let extractor = Means::new();
    // 25 frames per second, 2.9 s: two features.
    let reader = Synthetic::new(72, 25.0, &extractor.frames);
    let found = extract_reader(&reader, &extractor, &ExtractOptions::default(), None).unwrap();
    assert_eq!(found.features.dims(), [2, 2]);
    assert_eq!(
        (found.seconds_per_feature, found.cache),
        (1.0, CacheUse::None)
    );
    let values: Vec<f32> = found.features.into_data().iter::<f32>().collect();
    // Centres (i + 1/2) / 8 s times 25, halves to even, by hand: 1.5625 is frame 2, then 5, 8, 11,
    // 14, 17, 20, 23; a second later each is 25 more (26.5625 is 27, and so on).
    let first = [2.0f32, 5.0, 8.0, 11.0, 14.0, 17.0, 20.0, 23.0];
    let mean = |shift: f32| first.iter().map(|v| v + shift).sum::<f32>() / 8.0 / 255.0;
    for (got, expected) in values
        .iter()
        .zip([mean(0.0), 2.0 / 255.0, mean(25.0), 27.0 / 255.0])
    {
        assert!((got - expected).abs() < 1e-5, "{values:?}");
    }
}

#[test]
fn memory_does_not_grow_with_the_length_of_the_video() {
    for seconds in [10, 600] {
        for clips_per_batch in [1, 3] {
            let extractor = Means::new();
            let reader = Synthetic::new(seconds * 16, 16.0, &extractor.frames);
            let options = ExtractOptions {
                clips_per_batch,
                ..ExtractOptions::default()
            };
            let found = extract_reader(&reader, &extractor, &options, None).unwrap();
            assert_eq!(found.features.dims(), [seconds, 2]);
            let calls = extractor.calls.load(Ordering::SeqCst);
            assert_eq!(calls, seconds.div_ceil(clips_per_batch));
            let live = reader.most_live.load(Ordering::SeqCst);
            // One batch is being decoded, one waits, one is on its way to the tower.
            assert!(
                live <= clips_per_batch * 8 * 3,
                "{live} frames of {seconds} s"
            );
        }
    }
}

#[test]
fn batches_change_nothing() {
    let extractor =
        InternVideo2Features::new(InternVideo2Config::mini().init(&Device::flex()).unwrap());
    let extract = |clips_per_batch| {
        let options = ExtractOptions {
            clips_per_batch,
            ..ExtractOptions::default()
        };
        extract_video(sample_clip(), &extractor, &options, None).unwrap()
    };
    let (one, all) = (extract(1), extract(100));
    assert!(one.matrix().rows() >= 2);
    for (a, b) in one.matrix().values().iter().zip(all.matrix().values()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn slow_videos_repeat_frames_and_short_ones_are_refused() {
    let extractor = Means::new();
    // 2.2 s. In 2.0 s the last eighth would round past the end, as in the reference.
    let reader = Synthetic::new(11, 5.0, &extractor.frames);
    let found = extract_reader(&reader, &extractor, &ExtractOptions::default(), None).unwrap();
    assert_eq!(found.matrix().rows(), 2);

    let reader = Synthetic::new(23, 25.0, &extractor.frames);
    let error = extract_reader(&reader, &extractor, &ExtractOptions::default(), None).unwrap_err();
    let Error::ShortVideo {
        seconds, needed, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((seconds, needed), (0.92, 1.0));
}

#[test]
fn a_video_that_ends_early_is_an_error() {
    let extractor = Means::new();
    let mut reader = Synthetic::new(400, 16.0, &extractor.frames);
    reader.ends_at = 200;
    let error = extract_reader(&reader, &extractor, &ExtractOptions::default(), None).unwrap_err();
    assert!(error.to_string().contains("ended before"), "{error}");
}

#[test]
fn a_caller_can_cancel() {
    let extractor = Means::new();
    let reader = Synthetic::new(500, 25.0, &extractor.frames);
    let options = ExtractOptions {
        clips_per_batch: 2,
        ..ExtractOptions::default()
    };
    let calls = AtomicUsize::new(0);
    let progress = |done: usize, total: usize| {
        calls.fetch_add(1, Ordering::SeqCst);
        assert_eq!(total, 20);
        done < 4
    };
    let error = extract_reader(&reader, &extractor, &options, Some(&progress)).unwrap_err();
    assert!(
        matches!(error, Error::Data(DataError::Cancelled)),
        "{error}"
    );
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn the_second_time_comes_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::open(dir.path().join("a/b")).unwrap();
    let extractor = Means::new();
    let options = ExtractOptions {
        cache: Some(&cache),
        ..ExtractOptions::default()
    };
    let video = dir.path().join("v.mp4");
    std::fs::copy(sample_clip(), &video).unwrap();
    let first = extract_video(&video, &extractor, &options, None).unwrap();
    assert_eq!(first.cache, CacheUse::Stored);
    let calls = extractor.calls.load(Ordering::SeqCst);

    // The same bytes under another name.
    let renamed = dir.path().join("w.mp4");
    std::fs::rename(&video, &renamed).unwrap();
    let second = extract_video(&renamed, &extractor, &options, None).unwrap();
    assert_eq!(second.cache, CacheUse::Hit);
    assert_eq!(extractor.calls.load(Ordering::SeqCst), calls);
    assert_eq!(first.matrix(), second.matrix());

    // Another sampling, and other bytes, are other entries.
    let plain = ExtractOptions {
        antialias: false,
        ..options.clone()
    };
    let third = extract_video(&renamed, &extractor, &plain, None).unwrap();
    assert_eq!(third.cache, CacheUse::Stored);
    let mut bytes = std::fs::read(&renamed).unwrap();
    bytes.extend(b"\0\0\0\x08free");
    std::fs::write(&renamed, bytes).unwrap();
    let fourth = extract_video(&renamed, &extractor, &options, None).unwrap();
    assert_eq!(fourth.cache, CacheUse::Stored);
}

fn entry(cache: &FeatureCache) -> (CacheKey, FeatureMatrix) {
    let media = hash_file(sample_clip()).unwrap();
    let key = CacheKey::new(&media, "tower", &ClipInput::one_per_second(224), true);
    let features = FeatureMatrix::new(3, 2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    cache.put(&key, &features).unwrap();
    (key, features)
}

#[test]
fn damaged_entries_are_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::open(dir.path()).unwrap();
    let (key, features) = entry(&cache);
    assert_eq!(cache.get(&key), Some(features.clone()));
    let path = cache.path(&key);
    let good = std::fs::read(&path).unwrap();
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert_eq!(cache.get(&key), None, "cut to {len} bytes");
    }
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        if let Some(found) = cache.get(&key) {
            assert_eq!(found, features, "byte {at} changed");
        }
    }
    // The entry of another key under this name.
    let other = CacheKey::new(
        &hash_file(sample_clip()).unwrap(),
        "other tower",
        &ClipInput::one_per_second(224),
        true,
    );
    cache.put(&other, &features).unwrap();
    std::fs::rename(cache.path(&other), &path).unwrap();
    assert_eq!(cache.get(&key), None);
    cache.put(&key, &features).unwrap();
    assert_eq!(cache.get(&key), Some(features));
}

#[test]
fn writers_at_the_same_time_leave_one_whole_entry() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::open(dir.path()).unwrap();
    let (key, _) = entry(&cache);
    let matrix = |v: f32| FeatureMatrix::new(500, 100, vec![v; 50_000]).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (cache, key) = (&cache, &key);
            scope.spawn(move || {
                for _ in 0..5 {
                    cache.put(key, &matrix(writer as f32)).unwrap();
                    let found = cache.get(key).expect("an entry is there and whole");
                    let first = found.values()[0];
                    assert!(found.values().iter().all(|v| *v == first));
                }
            });
        }
    });
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "temporary files are left: {names:?}");
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_features() {
    let dir = tempfile::tempdir().unwrap();
    let cache = FeatureCache::open(dir.path().join("cache")).unwrap();
    std::fs::remove_dir(dir.path().join("cache")).unwrap();
    let options = ExtractOptions {
        cache: Some(&cache),
        ..ExtractOptions::default()
    };
    let found = extract_video(sample_clip(), &Means::new(), &options, None).unwrap();
    assert!(matches!(found.cache, CacheUse::NotStored(_)));
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    assert!(matches!(
        FeatureCache::open(file),
        Err(Error::FeatureIo { .. })
    ));
}

struct Letters;

impl QueryFeatureExtractor for Letters {
    fn width(&self) -> usize {
        1
    }
    fn identity(&self) -> Result<String, HeadsError> {
        Ok("letters".into())
    }
    fn extract(&self, query: &str) -> Result<Tensor<2>, HeadsError> {
        Ok(Tensor::ones([query.len(), 1], &Device::flex()))
    }
}

#[test]
fn towers_answer_under_the_names_of_the_temporal_head() {
    let towers = TemporalTowers::new(
        std::sync::Arc::new(Means::new()),
        std::sync::Arc::new(Letters),
    );
    let video = extract_video(
        sample_clip(),
        &**towers.video.as_ref().unwrap(),
        &ExtractOptions::default(),
        None,
    );
    let found = TemporalFeatures {
        video: Some(video.unwrap().features),
        text: Some(towers.text.as_ref().unwrap().extract("when?").unwrap()),
    };
    let video = found.features(TEMPORAL_VIDEO_FEATURES).unwrap().unwrap();
    let text = found.features(TEMPORAL_TEXT_FEATURES).unwrap().unwrap();
    assert_eq!((video.dims()[1], text.dims()), (2, [5, 1]));
}

fn program() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tpo"));
    command.arg("features");
    command
}

#[test]
fn the_program_writes_features_that_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = |args: &[&str]| {
        let mut command = program();
        command
            .arg(sample_clip())
            .args(["--preset", "mini", "--device", "cpu"]);
        command.arg("--out").arg(&out).args(args).output().unwrap()
    };
    let cache = dir.path().join("cache");
    let cache = cache.to_str().unwrap();
    let output = run(&["--cache", cache]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("random"), "{text}");
    let file = out.join("bouncing_shapes.safetensors");
    let first = PrecomputedOptions::default().read(&[&file]).unwrap();
    assert_eq!(first.width(), InternVideo2Config::mini().clip_embed_dim);

    let output = run(&["--cache", cache, "--force"]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("cache"),
        "{output:?}"
    );
    assert_eq!(PrecomputedOptions::default().read(&[&file]).unwrap(), first);

    let help = program().arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for part in [
        "pth_to_safetensors",
        "one feature per second",
        "--cache",
        "Example",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
    let output = program()
        .args(["absent.mp4", "--preset", "mini"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}
