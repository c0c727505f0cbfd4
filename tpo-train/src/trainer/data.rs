//! What the trainer learns from, as a trait.

use std::any::Any;

use burn::tensor::Device;
use tpo_core::head::Sample;
use tpo_core::model::TpoBatch;

use crate::error::Result;

/// One micro-batch: what the model reads, and who it is from.
#[derive(Debug)]
pub struct TrainBatch {
    /// Ids, frames, labels and targets. Samples of several tasks may be mixed.
    pub batch: TpoBatch,
    /// One entry per row of the batch, in order.
    pub samples: Vec<Sample>,
}

/// What a data stream is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To learn from it: shuffled, with whatever the source changes at random.
    Train,
    /// To be judged by it: nothing is changed at random.
    Evaluate,
}

/// A deterministic, endless stream of micro-batches.
///
/// The stream goes on into the next epoch by itself, and what it gives depends on nothing but its
/// seed and its position: after [`TrainData::seek`] to a [`TrainData::cursor`] taken earlier it
/// gives the same batches again. That is what makes a resumed run equal to an uninterrupted one.
pub trait TrainData {
    /// The next micro-batch, on `device`.
    ///
    /// # Errors
    /// Whatever keeps the stream from going on. Rows that cannot be read are the source's own
    /// matter: it skips and counts them.
    fn next_batch(&mut self, device: &Device) -> Result<TrainBatch>;

    /// Shows the stream the model as it is before the next micro-batch. A source whose samples
    /// hold features of the model's own encoder takes them from here; most ignore it.
    fn see(&mut self, _model: &dyn Any) {}

    /// Micro-batches of one epoch; at least 1.
    fn batches_per_epoch(&self) -> u64;

    /// The position, to be given to [`TrainData::seek`].
    fn cursor(&self) -> serde_json::Value;

    /// Goes to a position.
    ///
    /// # Errors
    /// [`TrainError::Cursor`](crate::TrainError::Cursor) when it is not a position of this
    /// stream.
    fn seek(&mut self, cursor: &serde_json::Value) -> Result<()>;

    /// Passes over the next micro-batch. Sources that can do so without reading it override this.
    ///
    /// # Errors
    /// As [`TrainData::next_batch`].
    fn skip_batch(&mut self, device: &Device) -> Result<()> {
        self.next_batch(device).map(|_| ())
    }
}

/// The share of one of several workers: micro-batches `rank`, `rank + world`, … of a stream.
///
/// All workers open the same stream with the same seed; together they read it once.
#[derive(Debug)]
pub struct Sharded<D> {
    inner: D,
    rank: usize,
    world: usize,
}

impl<D: TrainData> Sharded<D> {
    /// The share of worker `rank` of `world`.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`](crate::TrainError::InvalidPlan) unless `rank < world`.
    pub fn new(inner: D, rank: usize, world: usize) -> Result<Self> {
        if rank >= world {
            return Err(crate::TrainError::InvalidPlan {
                problems: vec![format!("rank {rank} of {world} workers; must be below")],
            });
        }
        Ok(Self { inner, rank, world })
    }

    fn skip(&mut self, n: usize, device: &Device) -> Result<()> {
        (0..n).try_for_each(|_| self.inner.skip_batch(device))
    }
}

impl<D: TrainData> TrainData for Sharded<D> {
    fn next_batch(&mut self, device: &Device) -> Result<TrainBatch> {
        self.skip(self.rank, device)?;
        let batch = self.inner.next_batch(device)?;
        self.skip(self.world - 1 - self.rank, device)?;
        Ok(batch)
    }

    fn see(&mut self, model: &dyn Any) {
        self.inner.see(model);
    }

    fn batches_per_epoch(&self) -> u64 {
        self.inner
            .batches_per_epoch()
            .div_ceil(self.world as u64)
            .max(1)
    }

    fn cursor(&self) -> serde_json::Value {
        self.inner.cursor()
    }

    fn seek(&mut self, cursor: &serde_json::Value) -> Result<()> {
        self.inner.seek(cursor)
    }

    fn skip_batch(&mut self, device: &Device) -> Result<()> {
        self.skip(self.world, device)
    }
}
