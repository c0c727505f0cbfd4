//! From items to one batch.

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::TargetSet;
use tpo_core::model::{IGNORE_LABEL, TokenBatch, TpoBatch};
use tpo_core::traits::{VisualInput, VisualShape};

use super::facts::SampleFacts;
use super::item::Item;
use super::order::Cursor;
use crate::DataError;
use crate::schema::RowError;

/// Id of padding, which the attention mask hides (reference: 0).
const PAD_ID: u32 = 0;

/// A batch on the host.
#[derive(Debug)]
pub struct Collated {
    /// Where it stands in the order.
    pub at: Cursor,
    /// Ids, visual slots and mask, padded on the right.
    pub tokens: TokenBatch,
    /// Labels `[batch][length]`.
    pub labels: Vec<Vec<i64>>,
    /// Each visual with its values and their shape `[frames, 3, height, width]`.
    pub visuals: Vec<(VisualShape, Vec<f32>, [usize; 4])>,
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
    /// Joins items, at least one.
    ///
    /// # Errors
    /// [`DataError::Core`] when the targets of a head differ in type.
    pub(super) fn new(
        at: Cursor,
        items: Vec<Item>,
        skipped: Vec<RowError>,
    ) -> Result<Self, DataError> {
        let (mut prompts, mut labels, mut boxes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut turns, mut samples, mut visuals) = (Vec::new(), Vec::new(), Vec::new());
        let mut targets = TargetSet::new();
        for item in items {
            visuals.extend(item.visuals);
            targets.append(item.targets)?;
            prompts.push(item.prompt);
            labels.push(item.labels);
            turns.push(item.packed_turns);
            boxes.push(item.boxes);
            samples.push(item.facts);
        }
        let mut tokens = TokenBatch::pad(&prompts, PAD_ID);
        let (_, length) = tokens.shape();
        if turns.iter().any(|row| !row.is_empty()) {
            turns.iter_mut().for_each(|row| row.resize(length, 0));
            tokens.turns = turns;
        }
        labels
            .iter_mut()
            .for_each(|row| row.resize(length, IGNORE_LABEL));
        Ok(Self {
            at,
            tokens,
            labels,
            visuals,
            boxes,
            targets,
            samples,
            skipped,
        })
    }

    /// Puts the batch on a device; the samples keep their own lazily read frames for it too.
    pub fn into_batch(self, device: &Device) -> (TpoBatch, Vec<SampleFacts>) {
        let mut batch = TpoBatch::new(self.tokens, device);
        let visuals = self.visuals.into_iter();
        let visuals = visuals.map(|(shape, values, dims)| VisualInput {
            pixels: Tensor::from_data(TensorData::new(values, dims), device),
            shape,
        });
        batch.visuals = visuals.collect();
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
