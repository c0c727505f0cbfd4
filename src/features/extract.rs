//! From a video file to one feature per clip.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::threads::{beside, in_pool};
use tpo_data::sampling::{frame_indices, shown_indices};
use tpo_data::{
    DataError, FrameSampling, ImageTransform, MediaLimits, Progress, Rounding, TransformPlan,
    VideoReader, open_video,
};
use tpo_heads::HeadsError;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, ClipInput, FeatureMatrix, FrameRule, QueryFeatureExtractor,
};

use super::cache::{CacheKey, CacheUse, FeatureCache, hash_file, write_features};
use crate::error::{Error, Result};

/// Batches in memory at a time: one in the tower, one waiting, one being decoded.
const BATCHES_HELD: usize = 3;

/// How features are extracted.
#[derive(Debug, Clone)]
pub struct ExtractOptions<'a> {
    /// Bounds on what a media file may cost.
    pub limits: MediaLimits,
    /// Clips handed to the extractor at a time; frames of three times as many are held, because
    /// decoding runs ahead. Changes no value.
    pub clips_per_batch: usize,
    /// Whether resizing antialiases, as torchvision does by default since 0.17.
    pub antialias: bool,
    /// Where computed features are kept.
    pub cache: Option<&'a FeatureCache>,
}

impl Default for ExtractOptions<'_> {
    fn default() -> Self {
        Self {
            limits: MediaLimits::default(),
            clips_per_batch: 4,
            antialias: true,
            cache: None,
        }
    }
}

/// Features of a video.
#[derive(Debug, Clone)]
pub struct VideoFeatures {
    /// `[clips, width]` on the extractor's device without autodiff, f32.
    pub features: Tensor<2>,
    /// Seconds of video that one feature covers.
    pub seconds_per_feature: f64,
    /// Duration of the video in seconds. The last fraction of a clip has no feature.
    pub duration: f64,
    /// What the cache did.
    pub cache: CacheUse,
    matrix: FeatureMatrix,
}

impl VideoFeatures {
    /// The features in memory.
    pub fn matrix(&self) -> &FeatureMatrix {
        &self.matrix
    }

    /// Writes the features as the array `features` of a safetensors file, which
    /// [`PrecomputedOptions::read`] reads. The file appears whole or not at all.
    ///
    /// [`PrecomputedOptions::read`]: tpo_heads::temporal::features::PrecomputedOptions::read
    ///
    /// # Errors
    /// [`Error::FeatureIo`].
    pub fn save(&self, path: impl AsRef<Path>, extractor: &str) -> Result<()> {
        let values = self.matrix.values().iter();
        let data = values.flat_map(|v| v.to_le_bytes()).collect();
        let metadata = HashMap::from([
            ("extractor".to_string(), extractor.to_string()),
            (
                "seconds_per_feature".to_string(),
                self.seconds_per_feature.to_string(),
            ),
            ("duration".to_string(), self.duration.to_string()),
        ]);
        write_features(path.as_ref(), &self.matrix, data, metadata)
    }
}

/// Features of a video file, one per clip (per second in the reference), from the cache if it has
/// them.
///
/// Frames are decoded one after the other, on a thread of their own, and only those of a few
/// batches of [`ExtractOptions::clips_per_batch`] clips are held, however long the video is.
/// `progress` hears
/// (clips done, clips in total) and returns `false` to cancel.
///
/// # Errors
/// [`Error::ShortVideo`] for a video shorter than one clip; those of
/// [`open_video`](tpo_data::open_video), of decoding and of the extractor;
/// [`DataError::Cancelled`].
pub fn extract_video(
    path: impl AsRef<Path>,
    extractor: &dyn ClipFeatureExtractor,
    options: &ExtractOptions<'_>,
    progress: Option<Progress<'_>>,
) -> Result<VideoFeatures> {
    let path = path.as_ref();
    let reader = open_video(path, &options.limits)?;
    let Some(cache) = options.cache else {
        return extract_reader(&*reader, extractor, options, progress);
    };
    // Told from the container alone, before the file is hashed or the tower is.
    clip_indices(&*reader, extractor)?;
    let media = hash_file(path)?;
    let input = extractor.input();
    let identity = extractor.identity()?;
    let key = CacheKey::new(&media, &identity, input, options.antialias);
    if let Some(matrix) = cache.get(&key).filter(|m| m.width() == extractor.width()) {
        if let Some(progress) = progress {
            progress(matrix.rows(), matrix.rows());
        }
        let found = finish(matrix, &*reader, extractor);
        return Ok(VideoFeatures {
            cache: CacheUse::Hit,
            ..found
        });
    }
    let mut found = extract_reader(&*reader, extractor, options, progress)?;
    found.cache = stored(cache, &key, &found.matrix);
    Ok(found)
}

fn stored(cache: &FeatureCache, key: &CacheKey, matrix: &FeatureMatrix) -> CacheUse {
    match cache.put(key, matrix) {
        Ok(()) => CacheUse::Stored,
        Err(e) => {
            tracing::warn!("features were not cached: {e}");
            CacheUse::NotStored(e.to_string())
        }
    }
}

/// Features of a query `[tokens, width]`, one per token: from the cache, on the CPU, if it has them, else as
/// the extractor gives them.
///
/// # Errors
/// Those of the extractor.
pub fn extract_query(
    query: &str,
    extractor: &dyn QueryFeatureExtractor,
    cache: Option<&FeatureCache>,
) -> Result<(Tensor<2>, CacheUse)> {
    let Some(cache) = cache else {
        return Ok((extractor.extract(query)?, CacheUse::None));
    };
    let key = CacheKey::query(query, &extractor.identity()?);
    if let Some(matrix) = cache.get(&key).filter(|m| m.width() == extractor.width()) {
        return Ok((matrix.to_tensor(&Device::flex()), CacheUse::Hit));
    }
    let rows = extractor.extract(query)?;
    let [tokens, width] = rows.dims();
    let values = rows.to_data().iter::<f32>().collect();
    let matrix = checked("QueryFeatureExtractor::extract", tokens, width, values)?;
    Ok((rows, stored(cache, &key, &matrix)))
}

/// Frame indices of every clip in order, a whole number of clips, at least one, and the number of
/// features there are of them. A clip of several features is filled up with its last frame, which
/// gives no feature.
fn clip_indices(
    reader: &dyn VideoReader,
    extractor: &dyn ClipFeatureExtractor,
) -> Result<(Vec<usize>, usize)> {
    let (info, input) = (reader.info(), extractor.input());
    input.validate()?;
    let rate = input.frames_per_second;
    let mut indices = match input.rule {
        FrameRule::Reference => {
            frame_indices(FrameSampling::Fps(rate), 0, info.frame_count, info.fps)?
        }
        FrameRule::Shown => shown_indices(rate, info.frame_count, info.fps)?,
    };
    let per_feature = input.frames_per_clip / input.features_per_clip;
    let rows = indices.len() / per_feature;
    indices.truncate(rows * per_feature);
    if let Some(&last) = indices.last() {
        indices.resize(indices.len().next_multiple_of(input.frames_per_clip), last);
    }
    if indices.is_empty() {
        return Err(Error::ShortVideo {
            path: reader.path().to_path_buf(),
            seconds: info.duration,
            needed: input.seconds_per_feature(),
        });
    }
    Ok((indices, rows))
}

/// As [`extract_video`] for a video that is already open, without a cache.
///
/// # Errors
/// As [`extract_video`].
pub fn extract_reader(
    reader: &dyn VideoReader,
    extractor: &dyn ClipFeatureExtractor,
    options: &ExtractOptions<'_>,
    progress: Option<Progress<'_>>,
) -> Result<VideoFeatures> {
    let (indices, rows) = clip_indices(reader, extractor)?;
    let (info, input) = (reader.info(), extractor.input());
    let plan = transform(input, options.antialias).plan(info.height, info.width)?;
    let total = indices.len() / input.frames_per_clip;
    let frames_per_batch = options.clips_per_batch.clamp(1, total) * input.frames_per_clip;
    // Four bytes per value.
    let held = frames_per_batch.saturating_mul(4 * BATCHES_HELD);
    reader
        .limits()
        .check_decoded(reader.path(), held, input.size, input.size)?;

    let (sender, receiver) = sync_channel(1);
    let mut features = std::thread::scope(|scope| {
        let indices = &indices;
        let decoder = std::thread::Builder::new()
            .name("feature frames".into())
            .spawn_scoped(scope, move || {
                send_batches(reader, &plan, indices, frames_per_batch, &sender)
            })
            .map_err(Error::feature_io(reader.path()))?;
        let extracted = receive_batches(&receiver, extractor, total, progress);
        // Stops the decoder at its next batch, if it has not ended.
        drop(receiver);
        let decoded = decoder
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A decoding error ends the batches early, so it comes first.
        decoded?;
        extracted
    })?;
    let width = extractor.width();
    if features.len() == total * input.features_per_clip * width {
        features.truncate(rows * width);
    }
    let matrix = checked("ClipFeatureExtractor::extract", rows, width, features)?;
    Ok(finish(matrix, reader, extractor))
}

/// How frames are prepared for a tower.
pub(super) fn transform(input: &ClipInput, antialias: bool) -> ImageTransform {
    ImageTransform {
        size: Some([input.size; 2]),
        antialias,
        rounding: Rounding::Uint8,
        mean: input.mean,
        std: input.std,
    }
}

/// Frames `[clips * frames per clip, 3, size, size]` as a tower takes them.
pub(super) fn clips(values: Vec<f32>, input: &ClipInput, device: &Device) -> Tensor<5> {
    let (frames, size) = (input.frames_per_clip, input.size);
    let clips = values.len() / (frames * 3 * size * size);
    Tensor::from_data(
        TensorData::new(values, [clips, frames, 3, size, size]),
        device,
    )
}

/// Decodes and transforms the frames `indices` in order, and sends them `per_batch` at
/// a time, the last ones fewer. Ends when nobody listens any more.
fn send_batches(
    reader: &dyn VideoReader,
    plan: &TransformPlan,
    indices: &[usize],
    per_batch: usize,
    batches: &SyncSender<Vec<f32>>,
) -> Result<()> {
    let [height, width] = plan.output_size();
    let per_frame = 3 * height * width;
    let Some(&first) = indices.first() else {
        return Ok(());
    };
    let mut batch: Vec<f32> = Vec::new();
    let mut wanted = indices.iter().copied().peekable();
    let mut stream = reader.stream(first)?;
    while let Some(&index) = wanted.peek() {
        let frame = stream.next().ok_or_else(|| DataError::Decode {
            path: reader.path().to_path_buf(),
            frame: index,
            reason: "the video ended before the frame count its container states".into(),
        })??;
        // A video of fewer frames per second than sampled shows a frame more than once.
        while wanted.next_if_eq(&frame.index).is_some() {
            let start = batch.len();
            batch.resize(start + per_frame, 0.0);
            beside(|| plan.apply_into(&frame.frame, &mut batch[start..]))?;
            let full = batch.len() == per_batch * per_frame || wanted.peek().is_none();
            if full && batches.send(std::mem::take(&mut batch)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Extracts the features of every batch: `[total, width]`, fewer when the batches end early.
fn receive_batches(
    batches: &Receiver<Vec<f32>>,
    extractor: &dyn ClipFeatureExtractor,
    total: usize,
    progress: Option<Progress<'_>>,
) -> Result<Vec<f32>> {
    let device = extractor.device();
    let mut features = Vec::with_capacity(total * extractor.width());
    let mut done = 0;
    for batch in batches {
        let clips = clips(batch, extractor.input(), &device);
        done += clips.dims()[0];
        let found = in_pool(|| extractor.extract(clips))?;
        features.extend(found.into_data().iter::<f32>());
        if progress.is_some_and(|report| !report(done, total)) {
            return Err(DataError::Cancelled.into());
        }
    }
    Ok(features)
}

/// The features as a matrix, if the extractor gave as many as it promised, all finite.
fn checked(
    place: &'static str,
    rows: usize,
    width: usize,
    values: Vec<f32>,
) -> Result<FeatureMatrix> {
    if let Some(first) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::Heads(HeadsError::NotFinite {
            place,
            what: "its features".into(),
            count: values.iter().filter(|v| !v.is_finite()).count(),
            first,
        }));
    }
    let found = values.len();
    FeatureMatrix::new(rows, width, values).ok_or_else(|| {
        Error::Heads(HeadsError::Shape {
            place,
            what: "features",
            expected: format!("[{rows}, {width}]"),
            found: vec![found],
        })
    })
}

fn finish(
    matrix: FeatureMatrix,
    reader: &dyn VideoReader,
    extractor: &dyn ClipFeatureExtractor,
) -> VideoFeatures {
    VideoFeatures {
        features: matrix.to_tensor(&extractor.device()),
        seconds_per_feature: extractor.input().seconds_per_feature(),
        duration: reader.info().duration,
        cache: CacheUse::None,
        matrix,
    }
}
