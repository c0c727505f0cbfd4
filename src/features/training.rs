//! Features of the temporal head for the samples of a training run.

use std::any::Any;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::Tensor;
use tpo_core::head::{FeatureSource, HeadSet, TaskCall};
use tpo_data::FrameSampling;
use tpo_data::feed::{ClipFrames, ClipSource, SampleFacts};
use tpo_data::sampling::{clip_frame_indices, frame_indices};
use tpo_data::schema::{MediaKind, resolve};
use tpo_heads::temporal::feature_rows;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, FrameRule, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES,
};
use tpo_llm::tokenizer::Tokenizer;
use tpo_train::TrainError;
use tpo_train::trainer::FindFeatures;

use super::extract::{clips, transform};
use super::{ExtractOptions, FeatureCache, OwnClips, TemporalTowers, extract_video};
use crate::error::{Error, Result};
use crate::model::{Tpo, TpoConfig};

/// Frames that are decoded and held at a time.
const FRAMES_HELD: usize = 64;

/// Names of the heads that read the video features.
pub(crate) fn readers<H: HeadSet>() -> Vec<String> {
    readers_of::<H>(TEMPORAL_VIDEO_FEATURES)
}

/// Names of the heads that read the features called `name`.
fn readers_of<H: HeadSet>(name: &str) -> Vec<String> {
    let heads = H::specs().into_iter().zip(H::features());
    heads
        .filter(|(_, features)| features.contains(&name))
        .map(|(spec, _)| spec.name)
        .collect()
}

/// Features for a [`FeedData`](tpo_train::trainer::FeedData): of frozen towers, or of the encoder
/// and the language model that are being trained, as they are at that step, without autodiff.
pub struct TrainingFeatures<H> {
    own: Option<OwnTowers>,
    towers: Option<TemporalTowers>,
    cache: Option<FeatureCache>,
    antialias: bool,
    clip_seconds: f64,
    heads: PhantomData<fn() -> H>,
}

#[derive(Debug)]
struct OwnTowers {
    tokenizer: Arc<Tokenizer>,
    size: usize,
    clips: OwnClips,
}

impl<H: HeadSet> TrainingFeatures<H> {
    /// Features as a model of this configuration was made for. `towers` are those of a model that
    /// does not use its own parts; `None` when they are needed and not given. `cache` keeps the
    /// video features of frozen towers.
    pub fn new(
        config: &TpoConfig,
        tokenizer: &Arc<Tokenizer>,
        towers: Option<&TemporalTowers>,
        cache: Option<&FeatureCache>,
    ) -> Option<Self> {
        let own = config.features.own_clips().map(|clips| OwnTowers {
            tokenizer: tokenizer.clone(),
            size: config.input.size,
            clips,
        });
        if own.is_none() {
            towers?;
        }
        Some(Self {
            towers: match own {
                Some(_) => None,
                None => towers.cloned(),
            },
            own,
            cache: cache.cloned(),
            antialias: config.input.antialias,
            clip_seconds: config.feature_seconds(),
            heads: PhantomData,
        })
    }

    fn towers(&self) -> Result<&TemporalTowers> {
        self.towers.as_ref().ok_or_else(|| Error::Config {
            problems: "the temporal head reads features of the model's own encoder, but the data \
                       were not shown a model of this build before the batch (TrainData::see)"
                .into(),
        })
    }

    fn video(&self, clip: &ClipFrames, duration: f64) -> Result<Tensor<2>> {
        let tower = &*self.towers()?.video;
        let rows = feature_rows(duration, self.clip_seconds);
        let plain = clip.view.range.is_none() && !clip.view.changes_pictures();
        let found = match &clip.source {
            ClipSource::Folder { root, limits }
                if self.own.is_none() && plain && clip.media.kind == MediaKind::Video =>
            {
                let options = ExtractOptions {
                    limits: limits.clone(),
                    antialias: self.antialias,
                    cache: self.cache.as_ref(),
                    ..ExtractOptions::default()
                };
                extract_video(resolve(root, &clip.media.path), tower, &options, None)?.features
            }
            _ => self.of_view(tower, clip, rows)?,
        };
        fitted(found, rows, clip)
    }

    /// Features of what is seen of a clip.
    fn of_view(
        &self,
        tower: &dyn ClipFeatureExtractor,
        clip: &ClipFrames,
        rows: usize,
    ) -> Result<Tensor<2>> {
        let reader = clip.open()?;
        let (info, input) = (reader.info(), tower.input());
        let (per_clip, rate) = (input.frames_per_clip, input.frames_per_second);
        let mut indices = match (input.rule, clip.view.range) {
            (FrameRule::Shown, _) => {
                let (start, _) = clip.view.seconds(info);
                let last = info.frame_count.saturating_sub(1);
                // The last clip is filled up with its last frame.
                let clips = rows.div_ceil(input.features_per_clip);
                (0..clips * per_clip)
                    .map(|i| (((start + (i as f64 + 0.5) / rate) * info.fps) as usize).min(last))
                    .collect()
            }
            (FrameRule::Reference, None) => {
                frame_indices(FrameSampling::Fps(rate), 0, info.frame_count, info.fps)?
            }
            (FrameRule::Reference, Some(range)) => {
                let sampling = FrameSampling::Fps(rate);
                clip_frame_indices(sampling, 0, info.frame_count, info.fps, range)?
            }
        };
        indices.truncate(indices.len() / per_clip * per_clip);
        if indices.is_empty() {
            return Err(Error::ShortVideo {
                path: clip.media.path.clone().into(),
                seconds: info.duration,
                needed: input.seconds_per_clip(),
            });
        }
        let transform = transform(input, self.antialias);
        let held = (FRAMES_HELD / per_clip).max(1) * per_clip;
        let mut parts = Vec::new();
        for some in indices.chunks(held) {
            let read = clip.read(some.to_vec(), &transform)?;
            parts.push(tower.extract(clips(read.values, input, &tower.device()))?);
        }
        Ok(Tensor::cat(parts, 0))
    }
}

/// Exactly `rows` rows: the reference's rule may give one more or less than the duration says.
fn fitted(found: Tensor<2>, rows: usize, clip: &ClipFrames) -> Result<Tensor<2>> {
    let have = found.dims()[0];
    if have >= rows && rows > 0 {
        return Ok(found.narrow(0, 0, rows));
    }
    if have > 0 && have + 1 == rows {
        let last = found.clone().narrow(0, have - 1, 1);
        return Ok(Tensor::cat(vec![found, last], 0));
    }
    Err(Error::Heads(tpo_heads::HeadsError::Shape {
        place: "features of a training sample",
        what: "rows",
        expected: format!("{rows} of `{}`", clip.media.path),
        found: vec![have],
    }))
}

fn failed(facts: &SampleFacts) -> impl Fn(Error) -> TrainError + use<> {
    let what = format!("features of {}", facts.sample.id);
    move |source| TrainError::Data {
        what: what.clone(),
        source: Box::new(source),
    }
}

fn source(name: &str, rows: Tensor<2>) -> Option<Arc<dyn FeatureSource>> {
    Some(Arc::new(HashMap::from([(name.to_string(), rows)])))
}

impl<H: HeadSet> FindFeatures for TrainingFeatures<H> {
    fn see(&mut self, model: &dyn Any) {
        if let (Some(own), Some(model)) = (&self.own, model.downcast_ref::<Tpo<H>>()) {
            let towers = TemporalTowers::of_model(model, &own.tokenizer, own.size, own.clips);
            self.towers = towers.ok();
        }
    }

    fn release(&mut self) {
        // Parameters with a second owner are copied when the optimizer changes them.
        if self.own.is_some() {
            self.towers = None;
        }
    }

    fn of_sample(
        &mut self,
        facts: &SampleFacts,
        calls: &[TaskCall],
    ) -> tpo_train::Result<Option<Arc<dyn FeatureSource>>> {
        let readers = readers::<H>();
        let wanted = calls.iter().any(|c| readers.contains(&c.task));
        let (true, Some(clip), Some(duration)) = (wanted, &facts.clip, facts.sample.duration)
        else {
            return Ok(None);
        };
        let rows = self.video(clip, duration).map_err(failed(facts))?;
        Ok(source(TEMPORAL_VIDEO_FEATURES, rows))
    }

    fn of_call(
        &mut self,
        facts: &SampleFacts,
        call: &TaskCall,
    ) -> tpo_train::Result<Option<Arc<dyn FeatureSource>>> {
        let reads = readers_of::<H>(TEMPORAL_TEXT_FEATURES).contains(&call.task);
        let (true, Some(query)) = (reads, &call.query) else {
            return Ok(None);
        };
        let text = &self.towers().map_err(failed(facts))?.text;
        let rows = text.extract(query).map_err(|e| failed(facts)(e.into()))?;
        Ok(source(TEMPORAL_TEXT_FEATURES, rows))
    }
}
