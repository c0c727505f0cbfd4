//! A batch as the model reads it. Ids, masks and labels stay on the host, where slots are found
//! without waiting for the device.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::error::{CoreError, Result};
use crate::geometry::BoxXyxy;
use crate::head::TargetSet;
use crate::prompt::PromptIds;
use crate::traits::{Instruction, TurnMap, VisualInput};

/// Label of a position that is not learned.
pub const IGNORE_LABEL: i64 = -100;

/// Padded token rows of equal length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids `[batch][length]`.
    pub ids: Vec<Vec<u32>>,
    /// Whether a position is a visual slot.
    pub visual: Vec<Vec<bool>>,
    /// Whether a position is real (not padding).
    pub mask: Vec<Vec<bool>>,
    /// The turn of every position where turns do not see each other ([`TurnMap`]); empty when every
    /// row is one dialogue. A row of zeros is one dialogue too.
    pub turns: Vec<Vec<u32>>,
}

impl TokenBatch {
    /// Prompts as rows of one length, padded on the right with `pad_id`.
    pub fn pad(prompts: &[PromptIds], pad_id: u32) -> Self {
        fn padded<T: Clone>(values: &[T], length: usize, with: T) -> Vec<T> {
            let mut row = values.to_vec();
            row.resize(length, with);
            row
        }
        let length = prompts.iter().map(PromptIds::len).max().unwrap_or(0);
        let mut batch = Self::default();
        for p in prompts {
            batch.ids.push(padded(&p.ids, length, pad_id));
            batch.visual.push(padded(&p.visual, length, false));
            batch.mask.push(padded(&vec![true; p.len()], length, false));
        }
        batch
    }

    /// `(batch, length)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.ids.len(), self.ids.first().map_or(0, Vec::len))
    }

    /// Checks that every row of every field has the same length and the batch is not empty.
    pub fn check(&self) -> Result<()> {
        let (batch, length) = self.shape();
        let even =
            |rows: &[Vec<bool>]| rows.len() == batch && rows.iter().all(|r| r.len() == length);
        let ids = self.ids.iter().all(|r| r.len() == length);
        let turns = self.turns.is_empty()
            || self.turns.len() == batch && self.turns.iter().all(|r| r.len() == length);
        if batch > 0 && length > 0 && ids && even(&self.visual) && even(&self.mask) && turns {
            return Ok(());
        }
        Err(CoreError::Shape {
            place: "TokenBatch",
            what: "ids, visual, mask and turns",
            expected: "at least one row and one position, all rows of equal length".into(),
            found: vec![
                self.ids.len(),
                self.visual.len(),
                self.mask.len(),
                self.turns.len(),
            ],
        })
    }

    /// The turns, if there are any that do not see each other.
    pub fn packed_turns(&self) -> Option<&TurnMap> {
        let any = self.turns.iter().flatten().any(|turn| *turn > 0);
        any.then_some(self.turns.as_slice())
    }

    /// Flat indices (`row * length + position`) of an id, row-major.
    pub fn positions_of(&self, id: u32) -> Vec<usize> {
        let (_, length) = self.shape();
        self.flat(length, &self.ids, |v| *v == id)
    }

    /// Flat indices of the visual slots, row-major.
    pub fn visual_slots(&self) -> Vec<usize> {
        let (_, length) = self.shape();
        self.flat(length, &self.visual, |v| *v)
    }

    /// Ids `[batch, length]` on a device.
    pub fn ids_tensor(&self, device: &Device) -> Tensor<2, Int> {
        let (b, s) = self.shape();
        let flat: Vec<i64> = self.ids.iter().flatten().map(|id| *id as i64).collect();
        Tensor::from_data(TensorData::new(flat, [b, s]), device)
    }

    fn flat<T>(&self, length: usize, rows: &[Vec<T>], pick: impl Fn(&T) -> bool) -> Vec<usize> {
        rows.iter()
            .enumerate()
            .flat_map(|(r, row)| {
                row.iter()
                    .enumerate()
                    .map(move |(c, v)| (r * length + c, v))
            })
            .filter(|(_, v)| pick(v))
            .map(|(at, _)| at)
            .collect()
    }
}

/// Everything one training step reads.
#[derive(Debug)]
pub struct TpoBatch {
    /// Ids, visual slots and mask.
    pub tokens: TokenBatch,
    /// Videos and images in the order of their slots.
    pub visuals: Vec<VisualInput>,
    /// Instruction for the connector.
    pub instruction: Option<Instruction>,
    /// Boxes of the question, per sample, in the order of their placeholders.
    pub boxes: Vec<Vec<BoxXyxy>>,
    /// Labels `[batch][length]`, [`IGNORE_LABEL`] where nothing is learned.
    pub labels: Option<Vec<Vec<i64>>>,
    /// Targets of the heads.
    pub targets: TargetSet,
    /// The device of the model.
    pub device: Device,
}

impl TpoBatch {
    /// A batch of text only; set the other fields as needed.
    pub fn new(tokens: TokenBatch, device: &Device) -> Self {
        Self {
            tokens,
            visuals: Vec::new(),
            instruction: None,
            boxes: Vec::new(),
            labels: None,
            targets: TargetSet::new(),
            device: device.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(ids: &[u32]) -> PromptIds {
        PromptIds {
            ids: ids.to_vec(),
            visual: ids.iter().map(|i| *i == 0).collect(),
        }
    }

    #[test]
    fn shorter_rows_are_padded_on_the_right() {
        let rows = [prompt(&[1, 0, 7]), prompt(&[1])];
        let batch = TokenBatch::pad(&rows, 9);
        assert_eq!(batch.ids[1], [1, 9, 9]);
        assert_eq!(batch.mask[1], [true, false, false]);
        assert_eq!(batch.visual_slots(), [1]);
        assert_eq!(batch.positions_of(1), [0, 3]);
        batch.check().unwrap();
        assert!(TokenBatch::default().check().is_err());
    }
}
