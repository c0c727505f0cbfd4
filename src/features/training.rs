//! Features of the temporal head for the samples of a training run.

use std::any::Any;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use tpo_core::head::{FeatureSource, HeadSet, TaskCall};
use tpo_data::FrameSampling;
use tpo_data::feed::{ClipFrames, ClipSource, SampleFacts};
use tpo_data::sampling::{clip_frame_indices, frame_indices};
use tpo_data::schema::{MediaKind, resolve};
use tpo_heads::HeadsError;
use tpo_heads::temporal::feature_rows;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, FrameRule, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES,
};
use tpo_llm::tokenizer::Tokenizer;
use tpo_train::TrainError;
use tpo_train::trainer::FindFeatures;

use super::extract::{clips, transform};
use super::folder::{FeatureFolder, FeatureNeeds, SLACK, Seen};
use super::{ExtractOptions, FeatureCache, TemporalTowers, extract_query, extract_video};
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
    /// Of a model that reads parts of its own.
    own: Option<Own>,
    /// Those that are not parts of the model.
    frozen: Option<TemporalTowers>,
    /// All, as they are now.
    towers: Option<TemporalTowers>,
    /// Features that were computed before, of every source of the data.
    folders: Vec<Option<FeatureFolder>>,
    needs: FeatureNeeds,
    cache: Option<FeatureCache>,
    antialias: bool,
    heads: PhantomData<fn() -> H>,
}

#[derive(Debug)]
struct Own {
    tokenizer: Arc<Tokenizer>,
    config: TpoConfig,
}

impl<H: HeadSet> TrainingFeatures<H> {
    /// Features as a model of this configuration was made for. `towers` are those of a model that
    /// does not use its own parts; `folders`, one for every source of the data, are looked into first.
    /// `None` when neither is given and one is needed. `cache` keeps the features of frozen towers.
    pub fn new(
        config: &TpoConfig,
        tokenizer: &Arc<Tokenizer>,
        towers: Option<&TemporalTowers>,
        folders: Vec<Option<FeatureFolder>>,
        cache: Option<&FeatureCache>,
    ) -> Option<Self> {
        let own = config.features.own_text().then(|| Own {
            tokenizer: tokenizer.clone(),
            config: config.clone(),
        });
        if own.is_none() && towers.is_none() && folders.iter().all(Option::is_none) {
            return None;
        }
        let frozen = towers.filter(|_| config.features.own_clips().is_none());
        Some(Self {
            towers: frozen.filter(|_| own.is_none()).cloned(),
            frozen: frozen.cloned(),
            own,
            folders,
            needs: FeatureNeeds::of(config),
            cache: cache.cloned(),
            antialias: config.input.antialias,
            heads: PhantomData,
        })
    }

    /// Whether features of videos are of a tower that is no part of the model.
    fn frozen_video(&self) -> bool {
        let own = self.own.as_ref();
        own.is_none_or(|own| own.config.features.own_clips().is_none())
    }

    /// One of the towers, where the folder of a source does not hold `file`.
    fn tower<'a, T: ?Sized>(
        &'a self,
        pick: impl FnOnce(&'a TemporalTowers) -> Option<&'a Arc<T>>,
        file: impl FnOnce(&FeatureFolder) -> String,
        source: usize,
    ) -> Result<&'a T> {
        let folder = self.folder(source);
        let tower = self.towers.as_ref().and_then(pick).map(|tower| &**tower);
        tower.ok_or_else(|| match (self.frozen_video(), folder) {
            (true, Some(folder)) => Error::Heads(HeadsError::FeatureFile {
                path: file(folder).into(),
                why: "is not there, and the run has no towers (`train --towers DIR`)".into(),
            }),
            _ => Error::Config {
                problems: "the temporal head reads features of towers, and of these data there are none: \
                           of the model's own encoder, data must be shown a model of this build before the \
                           batch (TrainData::see); of InternVideo2-CLIP, give `train --towers DIR`"
                    .into(),
            },
        })
    }

    fn folder(&self, source: usize) -> Option<&FeatureFolder> {
        self.folders.get(source)?.as_ref()
    }

    fn video(&self, clip: &ClipFrames, duration: f64, source: usize) -> Result<Tensor<2>> {
        let rows = feature_rows(duration, self.needs.seconds);
        let media = Path::new(&clip.media.path);
        let seen = Seen {
            from: clip.view.range.map(|r| r.start.max(0.0)),
            duration,
        };
        let folder = self.folder(source);
        let read = folder.map(|f| f.video(media, seen, &self.needs));
        if let Some(read) = read.transpose()?.flatten() {
            return fitted(read, rows, clip);
        }
        let file = |f: &FeatureFolder| f.video_file(media);
        let tower = self.tower(|towers| towers.video.as_ref(), file, source)?;
        let plain = clip.view.range.is_none() && !clip.view.changes_pictures();
        let found = match &clip.source {
            ClipSource::Folder { root, limits }
                if self.frozen_video() && plain && clip.media.kind == MediaKind::Video =>
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

    fn query(&self, facts: &SampleFacts, query: &str) -> Result<Tensor<2>> {
        let source = facts.key.source;
        let read = self
            .folder(source)
            .map(|f| f.query(facts.query_id.as_deref(), query, &self.needs));
        if let Some(read) = read.transpose()?.flatten() {
            return Ok(read);
        }
        let file = |f: &FeatureFolder| f.query_file(facts.query_id.as_deref(), query);
        let tower = self.tower(|towers| towers.text.as_ref(), file, source)?;
        let cache = self.cache.as_ref().filter(|_| self.own.is_none());
        Ok(extract_query(query, tower, cache)?.0)
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

/// Exactly `rows` rows: what is too much is cut off, the last row stands for up to [`SLACK`] that are not there.
fn fitted(found: Tensor<2>, rows: usize, clip: &ClipFrames) -> Result<Tensor<2>> {
    let have = found.dims()[0];
    if have >= rows && rows > 0 {
        return Ok(found.narrow(0, 0, rows));
    }
    if have > 0 && have + SLACK >= rows {
        let last = found.clone().narrow(0, have - 1, 1);
        return Ok(Tensor::cat(vec![found, last.repeat_dim(0, rows - have)], 0));
    }
    Err(Error::Heads(HeadsError::Shape {
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
            let frozen = self.frozen.as_ref();
            let towers = TemporalTowers::read_by(model, &own.tokenizer, &own.config, frozen);
            self.towers = towers.ok().flatten();
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
        let found = self.video(clip, duration, facts.key.source);
        let rows = found.map_err(failed(facts))?;
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
        let rows = self.query(facts, query).map_err(failed(facts))?;
        Ok(source(TEMPORAL_TEXT_FEATURES, rows))
    }
}
