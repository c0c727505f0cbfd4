//! From items to one batch.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::TargetSet;
use tpo_core::model::{IGNORE_LABEL, PaddingSide, TokenBatch, TpoBatch};

use super::facts::SampleFacts;
use super::item::Item;
use super::order::Cursor;
use super::targets::{AnyTarget, Targets};
use crate::DataError;
use crate::schema::RowError;

/// A batch on the host.
#[derive(Debug)]
pub struct Collated {
    /// Where it stands in the order.
    pub at: Cursor,
    /// Ids, visual slots and mask, padded on the right.
    pub tokens: TokenBatch,
    /// Labels `[batch][length]`.
    pub labels: Vec<Vec<i64>>,
    /// Values and shape `[clips, frames, 3, height, width]`.
    pub frames: Option<(Vec<f32>, [usize; 5])>,
    /// Boxes of the questions, per sample.
    pub boxes: Vec<Vec<BoxXyxy>>,
    /// Targets of the heads, each head's in the order of its tokens.
    pub targets: TargetSet,
    /// The samples.
    pub samples: Vec<SampleFacts>,
    /// Rows that were meant to be in the batch and could not be used.
    pub skipped: Vec<RowError>,
}

impl Collated {
    /// Joins items. `None` without items.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] when clips differ in shape.
    pub fn new(
        at: Cursor,
        items: Vec<Item>,
        skipped: Vec<RowError>,
        targets: &Targets,
        pad_id: u32,
    ) -> Result<Option<Self>, DataError> {
        if items.is_empty() {
            return Ok(None);
        }
        let (mut prompts, mut labels, mut boxes) = (Vec::new(), Vec::new(), Vec::new());
        let mut turns = Vec::new();
        let (mut samples, mut by_task) = (Vec::new(), BTreeMap::<String, Vec<AnyTarget>>::new());
        let (mut values, mut shape): (Vec<f32>, Option<[usize; 4]>) = (Vec::new(), None);
        let mut clips = 0;
        let batch = items.len();
        for item in items {
            if let Some((frames, found)) = item.frames {
                let expected = *shape.get_or_insert(found);
                if found != expected {
                    return Err(DataError::InvalidConfig {
                        what: "batch",
                        reason: format!(
                            "clips of {expected:?} and {found:?} [frames, channels, height, \
                             width]; use a sampling with a fixed number of frames and a \
                             transform with a size, or a batch of one"
                        ),
                    });
                }
                if values.is_empty() {
                    values = frames;
                    values.reserve_exact(values.len() * (batch - 1));
                } else {
                    values.extend_from_slice(&frames);
                }
                clips += 1;
            }
            for (task, target) in item.targets {
                by_task.entry(task).or_default().push(target);
            }
            prompts.push(item.prompt);
            labels.push(item.labels);
            turns.push(item.apart);
            boxes.push(item.boxes);
            samples.push(item.facts);
        }
        let mut tokens = TokenBatch::pad(&prompts, PaddingSide::Right, pad_id);
        let (_, length) = tokens.shape();
        if turns.iter().any(|row| !row.is_empty()) {
            turns.iter_mut().for_each(|row| row.resize(length, 0));
            tokens.turns = turns;
        }
        labels
            .iter_mut()
            .for_each(|row| row.resize(length, IGNORE_LABEL));
        Ok(Some(Self {
            at,
            tokens,
            labels,
            frames: shape.map(|[f, c, h, w]| (values, [clips, f, c, h, w])),
            boxes,
            targets: targets.gather(by_task),
            samples,
            skipped,
        }))
    }

    /// Puts the batch on a device; the samples keep their own lazily read frames for it too.
    pub fn into_batch(self, device: &Device) -> (TpoBatch, Vec<SampleFacts>) {
        let mut batch = TpoBatch::new(self.tokens, device);
        batch.frames = self
            .frames
            .map(|(values, shape)| Tensor::from_data(TensorData::new(values, shape), device));
        batch.boxes = self.boxes;
        batch.labels = Some(self.labels);
        batch.targets = self.targets;
        let mut samples = self.samples;
        for clip in samples.iter_mut().filter_map(|s| s.clip.as_mut()) {
            clip.frames.device = device.clone();
        }
        (batch, samples)
    }
}
