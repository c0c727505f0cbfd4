//! A stream of micro-batches that a function makes.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use tpo::train::trainer::TrainBatch;
use tpo::train::{Result, TrainData, TrainError};

/// Micro-batches made by a function of their index: a fixed list, or a synthetic world.
///
/// The cursor is the index.
pub struct GeneratedData<F> {
    make: F,
    per_epoch: u64,
    next: Position,
}

/// Cursor of [`GeneratedData`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    batch: u64,
}

impl<F> GeneratedData<F>
where
    F: FnMut(u64, &Device) -> Result<TrainBatch>,
{
    /// A stream of `per_epoch` micro-batches an epoch (at least 1). `make` gets the index in the
    /// stream, counted over all epochs.
    pub fn new(per_epoch: u64, make: F) -> Self {
        Self {
            make,
            per_epoch: per_epoch.max(1),
            next: Position { batch: 0 },
        }
    }
}

impl<F> TrainData for GeneratedData<F>
where
    F: FnMut(u64, &Device) -> Result<TrainBatch>,
{
    fn next_batch(&mut self, device: &Device) -> Result<TrainBatch> {
        let batch = (self.make)(self.next.batch, device)?;
        self.next.batch += 1;
        Ok(batch)
    }

    fn batches_per_epoch(&self) -> u64 {
        self.per_epoch
    }

    fn cursor(&self) -> serde_json::Value {
        serde_json::json!({ "batch": self.next.batch })
    }

    fn seek(&mut self, cursor: &serde_json::Value) -> Result<()> {
        self.next = Position::deserialize(cursor).map_err(|e| TrainError::Cursor {
            cursor: cursor.to_string(),
            why: e.to_string(),
        })?;
        Ok(())
    }

    fn skip_batch(&mut self, _: &Device) -> Result<()> {
        self.next.batch += 1;
        Ok(())
    }
}
