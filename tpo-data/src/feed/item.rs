//! One sample, from its row to ids, labels, pictures and targets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::tensor::Device;
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{Sample, TargetMaker, TargetSet, TaskCall};
use tpo_core::model::IGNORE_LABEL;
use tpo_core::prompt::{PromptIds, Visual};
use tpo_core::token::TaskRegistry;
use tpo_core::traits::VisualShape;

use super::FeedConfig;
use super::draw::{Draw, ItemSeed};
use super::facts::{ClipFrames, SampleFacts, row_name};
use super::order::SampleKey;
use super::source::{Row, Source};
use super::truth::place_truth;
use super::view::View;
use crate::prompts::{AnswerStyle, LayoutEncoder, PromptWriter};
use crate::sampling::told_times;
use crate::schema::{MediaKind, RowFault};
use crate::video_frames::read_view;
use crate::{ClipConfig, DataError, FrameSampling, ImageTransform, VideoReader, select_frames};

/// What a model reads of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct FramesConfig {
    /// Frames of a video. Reference: 16.
    pub num_frames: usize,
    /// Which, where the mixture does not say.
    pub sampling: FrameSampling,
    /// Transform of every frame.
    pub transform: ImageTransform,
    /// Whether each of several images of a row goes on a square canvas ([`ImageTransform::squares`]); alone it is
    /// resized whole.
    pub squares: bool,
}

impl Default for FramesConfig {
    fn default() -> Self {
        let clip = ClipConfig::default();
        Self {
            num_frames: clip.num_frames,
            sampling: clip.sampling,
            transform: clip.transform,
            squares: false,
        }
    }
}

impl FramesConfig {
    /// Longer side of the frames in pixels; 0 where they keep their size.
    pub(super) fn side(&self) -> usize {
        self.transform.size.map_or(0, |[h, w]| h.max(w))
    }
}

/// A finished sample on the host.
pub(super) struct Item {
    /// Ids and visual slots.
    pub prompt: PromptIds,
    /// One label per position.
    pub labels: Vec<i64>,
    /// The turn of every position where turns do not see each other; else empty.
    pub packed_turns: Vec<u32>,
    /// The visuals with their values and their shapes `[frames, 3, height, width]`.
    pub visuals: Vec<(VisualShape, Vec<f32>, [usize; 4])>,
    /// Boxes of the questions in the order of their tokens.
    pub boxes: Vec<BoxXyxy>,
    /// Targets of the heads, each head's in the order of its tokens.
    pub targets: TargetSet,
    /// What else is known.
    pub facts: SampleFacts,
}

/// Makes items; threads share it.
pub(super) struct ItemMaker {
    /// The sources of the mixture.
    pub sources: Vec<Source>,
    /// Names of the groups, in the order of the plan.
    pub groups: Vec<&'static str>,
    pub config: FeedConfig,
    /// Tasks of the model.
    pub tasks: TaskRegistry,
    /// Lays dialogues out.
    pub encoder: LayoutEncoder,
    /// Makes targets of annotations.
    pub heads: Arc<dyn TargetMaker>,
}

impl ItemMaker {
    /// Makes the item of a key; every random choice depends on the key and the seed alone.
    ///
    /// # Errors
    /// [`DataError::Row`] where the row is at fault; with any other going on makes no sense.
    pub fn item(&self, key: &SampleKey) -> Result<Item, DataError> {
        let source = &self.sources[key.source];
        let made = || {
            let row = source.get(self.groups[key.group], key.row, &self.config.media)?;
            self.prepare(key, source, &row).map_err(|e| {
                let reason = e.to_string();
                let fault = match e {
                    DataError::Prepare { .. } | DataError::Core(_) => RowFault::Prepare { reason },
                    _ => RowFault::Media { reason },
                };
                source.row_error(row.line, fault)
            })
        };
        // A decoder that panics costs its row, not the run.
        catch_unwind(AssertUnwindSafe(made)).unwrap_or_else(|_| {
            let reason = format!("row {} of its group could not be prepared", key.row);
            Err(source.row_error(0, RowFault::Prepare { reason }))
        })
    }

    fn prepare(&self, key: &SampleKey, source: &Source, row: &Row) -> Result<Item, DataError> {
        let sample = &row.sample;
        let seed = ItemSeed {
            seed: self.config.order.seed,
            epoch: key.epoch,
            index: key.index,
        };
        let mut known = Sample::named(row_name(source.path(), row.line));
        let mut clip: Option<ClipFrames> = None;
        // What the model looks at, with its frames and how they are seen.
        let mut seen: Vec<(Arc<dyn VideoReader>, Vec<usize>, View)> = Vec::new();
        let mut shapes: Vec<VisualShape> = Vec::new();
        let (mut truths, mut turn_boxes, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let (mixture, frames) = (&self.config.mixture, &self.config.frames);
        if let Some(media) = &sample.media {
            let opened = row.media.open(media)?;
            let info = opened.info();
            let view = match &mixture.augment {
                // Images that are compared stay as they are.
                Some(augment) if media.more.is_empty() => {
                    augment.view(sample, media, info, &mut Draw::new(seed, "view"))?
                }
                _ => View {
                    range: media.range,
                    ..View::default()
                },
            };
            let still = media.kind == MediaKind::Image;
            let sampling = match mixture.sampling.unwrap_or(frames.sampling) {
                _ if still => FrameSampling::Middle,
                FrameSampling::Random { .. } => FrameSampling::Random {
                    seed: Draw::new(seed, "frames").next_u64(),
                },
                fixed => fixed,
            };
            let clip_config = ClipConfig {
                sampling,
                num_frames: if still { 1 } else { frames.num_frames },
                range: if still { None } else { view.range },
                transform: frames.transform.clone(),
            };
            let mut indices = select_frames(info, &clip_config)?;
            // The reference repeats the last frame of a short video; a part of a video may be
            // short too.
            if let (false, Some(last)) = (still, indices.last().copied())
                && sampling.is_fixed()
            {
                indices.resize(frames.num_frames, last);
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
            shapes.push(VisualShape {
                kind: if still { Visual::Image } else { Visual::Video },
                size,
                pictures: indices.len(),
            });
            known.media = Some(media.path.clone());
            known.size = Some(size);
            known.duration = (!still).then_some(end - start);
            known.timestamps = times.iter().map(|t| (t - start).max(0.0)).collect();
            if !still {
                told = told_times(&indices, info.frame_count, info.fps, view.range)?;
            }
            let place = row.media.clone();
            seen.push((opened, indices.clone(), view));
            for other in media.others() {
                let opened = row.media.open(&other)?;
                let info = opened.info();
                shapes.push(VisualShape::image((info.width as u32, info.height as u32)));
                seen.push((opened, vec![0], View::default()));
            }
            let device = Device::flex();
            clip = Some(ClipFrames::new(media.clone(), place, indices, view, device));
        }
        let writer = PromptWriter {
            tasks: &self.tasks,
            style: if source.textual {
                AnswerStyle::Text
            } else {
                AnswerStyle::Heads
            },
        };
        let mut prompt = Draw::new(seed, "prompt");
        let mut dialogue = writer.write(&sample.turns, &turn_boxes, &truths, &mut prompt)?;
        dialogue.packed_turns = source.packed_turns;
        let encoded = self.encoder.encode(&shapes, &told, &dialogue)?;
        if encoded.labels.iter().all(|l| *l == IGNORE_LABEL) {
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
        let squares = frames.squares && shapes.len() > 1;
        let mut visuals = Vec::with_capacity(shapes.len());
        for (shape, (reader, indices, view)) in shapes.into_iter().zip(seen) {
            let (values, dims) = if squares {
                frames.transform.squares(&reader.read_frames(&indices)?)?
            } else {
                let read = read_view(&*reader, indices, &frames.transform, &view, None)?;
                (read.values, read.shape)
            };
            visuals.push((shape, values, dims));
        }
        Ok(Item {
            boxes: known.boxes.clone(),
            prompt: encoded.prompt,
            labels: encoded.labels,
            packed_turns: encoded.packed_turns,
            visuals,
            targets,
            facts: SampleFacts {
                key: *key,
                file: source.path().into(),
                line: row.line,
                query_id: sample.query_id().map(Into::into),
                clip,
                truths: called,
                sample: known,
            },
        })
    }
}
