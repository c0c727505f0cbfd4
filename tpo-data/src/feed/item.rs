//! One sample, from its row to ids, labels, pictures and targets.

use std::sync::Arc;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{Sample, TargetMaker, TargetSet, TaskCall};
use tpo_core::model::IGNORE_LABEL;
use tpo_core::prompt::{PromptIds, Visual};
use tpo_core::traits::VisualShape;

use super::augment::AugmentConfig;
use super::draw::{Draw, ItemSeed};
use super::facts::{ClipFrames, ClipSource, SampleFacts, row_name};
use super::order::SampleKey;
use super::source::{Row, Source};
use super::truth::place_truth;
use crate::prompts::{DialogueEncoder, PromptWriter};
use crate::schema::{MediaKind, RowError, RowFault};
use crate::video_frames::read_view;
use crate::{
    ClipConfig, DataError, FrameSampling, ImageTransform, MediaLimits, VideoReader, select_frames,
};

/// Which frames and at what size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FramesConfig {
    /// Rule that picks frames. `rand` draws anew every epoch, from the seed of the run. A rule
    /// that gives every video its own number of frames (`fpsX`) works with a batch of one only.
    pub sampling: FrameSampling,
    /// Frames of a video. Reference: 16.
    pub num_frames: usize,
    /// Transform of every frame.
    pub transform: ImageTransform,
}

impl Default for FramesConfig {
    fn default() -> Self {
        let clip = ClipConfig::default();
        Self {
            sampling: clip.sampling,
            num_frames: clip.num_frames,
            transform: clip.transform,
        }
    }
}

/// A finished sample on the host.
pub struct Item {
    /// Ids and visual slots.
    pub prompt: PromptIds,
    /// One label per position.
    pub labels: Vec<i64>,
    /// The turn of every position where turns do not see each other; else empty.
    pub packed_turns: Vec<u32>,
    /// The visual with its values and their shape `[frames, 3, height, width]`; `None` for text.
    pub visual: Option<(VisualShape, Vec<f32>, [usize; 4])>,
    /// Boxes of the questions in the order of their tokens.
    pub boxes: Vec<BoxXyxy>,
    /// Targets of the heads, each head's in the order of its tokens.
    pub targets: TargetSet,
    /// What else is known.
    pub facts: SampleFacts,
}

/// Makes items; threads share it.
pub struct ItemMaker {
    /// The sources of the mixture.
    pub sources: Vec<Arc<Source>>,
    /// Names of the groups, in the order of the plan.
    pub groups: Vec<String>,
    /// Seed of the run.
    pub seed: u64,
    /// Frames.
    pub frames: FramesConfig,
    /// Augmentation.
    pub augment: AugmentConfig,
    /// Limits on media files.
    pub limits: MediaLimits,
    /// Writes dialogues.
    pub writer: PromptWriter,
    /// Writes dialogues of textual sources.
    pub text_writer: PromptWriter,
    /// Encodes them.
    pub encoder: Arc<dyn DialogueEncoder>,
    /// Makes targets of annotations.
    pub heads: Arc<dyn TargetMaker>,
    /// Refuse rows without an answer.
    pub learn: bool,
}

/// Why there is no item.
pub enum ItemError {
    /// The row is at fault.
    Row(RowError),
    /// Something else is; going on makes no sense.
    Fatal(DataError),
}

impl ItemMaker {
    /// Makes the item of a key; every random choice depends on the key and the seed alone.
    ///
    /// # Errors
    /// [`ItemError`].
    pub fn item(&self, key: &SampleKey) -> Result<Item, ItemError> {
        let (Some(source), Some(group)) =
            (self.sources.get(key.source), self.groups.get(key.group))
        else {
            return Err(ItemError::Fatal(DataError::InvalidConfig {
                what: "sample key",
                reason: format!("{key:?}"),
            }));
        };
        let row = source
            .get(group, key.row, &self.limits)
            .map_err(|e| match e {
                DataError::Row(row) => ItemError::Row(row),
                other => ItemError::Fatal(other),
            })?;
        self.prepare(key, source, &row).map_err(|e| {
            let reason = e.to_string();
            let fault = match e {
                DataError::Prepare { .. } | DataError::Core(_) => RowFault::Prepare { reason },
                _ => RowFault::Media { reason },
            };
            ItemError::Row(source.row_error(row.line, fault))
        })
    }

    fn prepare(&self, key: &SampleKey, source: &Source, row: &Row) -> Result<Item, DataError> {
        let sample = &row.sample;
        let seed = ItemSeed {
            seed: self.seed,
            epoch: key.epoch,
            index: key.index,
        };
        let mut known = Sample::named(row_name(source.path(), row.line));
        let mut clip_frames = None;
        let mut reader: Option<Arc<dyn VideoReader>> = None;
        let (mut truths, mut turn_boxes) = (Vec::new(), Vec::new());
        let mut visual: Option<VisualShape> = None;
        if let Some(media) = &sample.media {
            let place = match &row.video {
                Some(video) => ClipSource::Memory(video.clone()),
                None => ClipSource::Folder {
                    root: source.root().into(),
                    limits: self.limits.clone(),
                },
            };
            let opened = place.open(media)?;
            let info = opened.info();
            let mut draw = Draw::new(seed, "view");
            let view = self.augment.view(sample, media, info, &mut draw)?;
            let sampling = match self.frames.sampling {
                FrameSampling::Random { .. } => FrameSampling::Random {
                    seed: Draw::new(seed, "frames").next_u64(),
                },
                fixed => fixed,
            };
            let still = media.kind == MediaKind::Image;
            let clip = ClipConfig {
                sampling: if still {
                    FrameSampling::Middle
                } else {
                    sampling
                },
                num_frames: if still { 1 } else { self.frames.num_frames },
                range: if still { None } else { view.range },
                transform: self.frames.transform.clone(),
            };
            let mut indices = select_frames(info, &clip)?;
            // The reference repeats the last frame of a short video; a part of a video may be
            // short too.
            if let (false, Some(last)) = (still, indices.last().copied())
                && !matches!(sampling, FrameSampling::Fps(_))
            {
                indices.resize(self.frames.num_frames, last);
            }
            let times: Vec<f64> = indices
                .iter()
                .map(|i| info.timestamps.get(*i).copied().unwrap_or(0.0))
                .collect();
            let (start, end) = view.seconds(info);
            let mut draw = Draw::new(seed, "targets");
            for annotation in &sample.annotations {
                let seed = draw.next_u64();
                truths.push(place_truth(annotation, info, &view, &times, seed)?);
            }
            for turn in &sample.turns {
                let (w, h) = (info.width as u32, info.height as u32);
                let boxes = turn.boxes.iter().map(|b| {
                    let b = b.normalised(w, h).check("question")?;
                    Ok(view.map_box(b))
                });
                turn_boxes.push(boxes.collect::<Result<Vec<_>, DataError>>()?);
            }
            let [height, width] = view.size(info.height, info.width);
            let size = (width as u32, height as u32);
            visual = Some(VisualShape {
                kind: if still { Visual::Image } else { Visual::Video },
                size,
                pictures: indices.len(),
            });
            known.media = Some(media.path.clone());
            known.size = Some(size);
            known.duration = (!still).then_some(end - start);
            known.timestamps = times.iter().map(|t| (t - start).max(0.0)).collect();
            clip_frames = Some(ClipFrames::new(
                media.clone(),
                place,
                indices,
                view,
                Device::flex(),
            ));
            reader = Some(opened);
        }
        let writer = if source.textual() {
            &self.text_writer
        } else {
            &self.writer
        };
        let mut dialogue = writer.write(
            &sample.turns,
            &turn_boxes,
            &truths,
            &mut Draw::new(seed, "prompt"),
        )?;
        dialogue.packed_turns = source.packed_turns();
        let encoded = self
            .encoder
            .encode(visual.as_ref(), &known.timestamps, &dialogue)?;
        if self.learn && encoded.labels.iter().all(|l| *l == IGNORE_LABEL) {
            return Err(DataError::Prepare {
                reason: "the row has no answer to learn".into(),
            });
        }
        let asked = sample.annotations.iter().find_map(|a| a.query.clone());
        known.query = asked.or_else(|| dialogue.turns.first().map(|(q, _)| q.clone()));
        // Turns that did not fit take their boxes and calls with them.
        let fits = |turn: usize| turn < encoded.turns;
        let (mut targets, mut called) = (TargetSet::new(), Vec::new());
        for call in dialogue.calls.iter().filter(|c| fits(c.turn)) {
            let truth = &truths[call.annotation];
            self.heads.add_target(truth, &mut targets)?;
            called.push(truth.clone());
            let question = dialogue.turns.get(call.turn).map(|(q, _)| q.clone());
            let own = dialogue.boxes.iter().filter(|(turn, _)| *turn == call.turn);
            known.calls.push(TaskCall {
                task: truth.task.clone(),
                query: truth.query.clone().or(question),
                boxes: own.map(|(_, b)| *b).collect(),
                features: None,
            });
        }
        known.task = called.first().map_or_else(String::new, |t| t.task.clone());
        let boxes = dialogue.boxes.iter().filter(|(turn, _)| fits(*turn));
        known.boxes = boxes.map(|(_, b)| *b).collect();
        // Last, because it is the dear part.
        let visual = match (&reader, &clip_frames, visual) {
            (Some(reader), Some(clip), Some(visual)) => {
                let transform = &self.frames.transform;
                let read = read_view(&**reader, clip.indices.clone(), transform, &clip.view, None)?;
                Some((visual, read.values, read.shape))
            }
            _ => None,
        };
        Ok(Item {
            boxes: known.boxes.clone(),
            prompt: encoded.prompt,
            labels: encoded.labels,
            packed_turns: encoded.packed_turns,
            visual,
            targets,
            facts: SampleFacts {
                key: *key,
                file: source.path().into(),
                line: row.line,
                clip: clip_frames,
                truths: called,
                sample: known,
            },
        })
    }
}
