//! What memory a training step takes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::flow::{Flow, Kept};
use super::shape::ModelShape;
use crate::groups::{ResolvedGroup, ResolvedGroups, ResolvedParam};
use crate::stage::{Precision, Stage};

/// Bytes of a training step. docs/TRAINING.md holds them against what was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// All parameters in the stage's precision.
    pub weights: u64,
    /// Gradients of the trainable ones, 32-bit.
    pub gradients: u64,
    /// Two moments per trainable value (one where Muon moves it), and in bf16 a 32-bit copy of the
    /// value.
    pub optimizer: u64,
    /// Copies of what learns and of the optimizer's memory that the next steps make while a checkpoint is
    /// being written; 0 where a stage writes none before its end.
    pub checkpoint: u64,
    /// The program itself: threads, tokenizer, scratch of kernels.
    pub process: u64,
    /// Decoded pictures: of the batch in use and of those that the data loader has ahead.
    pub batches: u64,
    /// What the backward pass of one micro-batch needs, and what is in flight at its largest layer.
    pub activations: u64,
    /// The same when the blocks' activations are computed again
    /// ([`TrainOptions::gradient_checkpointing`](crate::TrainOptions::gradient_checkpointing)).
    pub checkpointed: u64,
    /// What an accelerator takes besides, where Burn has no attention that takes gradients, and
    /// quantised weights are unpacked for a product: scores, and the largest of these weights.
    pub accelerator: u64,
    /// The same when the blocks' activations are computed again.
    pub accelerator_checkpointed: u64,
}

impl MemoryEstimate {
    /// The sum on a CPU, with the activations computed again or kept.
    pub fn total(&self, checkpointing: bool) -> u64 {
        self.learning()
            .saturating_add(self.process)
            .saturating_add(self.passing(checkpointing))
            .saturating_add(self.allocator(checkpointing))
    }

    /// Freed memory that the allocator has beside what is used on a CPU: what comes and goes in a step is of
    /// many sizes, and freed pages are kept for the next. With pages given back at once the peaks of
    /// the nano and the mini model are those of the other terms, with the program's setting 26 to 29 %
    /// of batches and activations more. Steps that take longer than pages are kept (ten seconds) have less.
    pub fn allocator(&self, checkpointing: bool) -> u64 {
        self.passing(checkpointing) / 4
    }

    /// What comes and goes in a step.
    fn passing(&self, checkpointing: bool) -> u64 {
        let activations = if checkpointing {
            self.checkpointed
        } else {
            self.activations
        };
        self.batches.saturating_add(activations)
    }

    /// The sum in the memory of an accelerator.
    pub fn total_on_accelerator(&self, checkpointing: bool) -> u64 {
        let (activations, more) = if checkpointing {
            (self.checkpointed, self.accelerator_checkpointed)
        } else {
            (self.activations, self.accelerator)
        };
        self.learning()
            .saturating_add(activations)
            .saturating_add(more)
    }

    /// Weights and what is kept of each that learns.
    fn learning(&self) -> u64 {
        self.weights
            .saturating_add(self.gradients)
            .saturating_add(self.optimizer)
            .saturating_add(self.checkpoint)
    }
}

/// Bytes of a training process besides its tensors: threads with their heaps, tokenizer, scratch of
/// kernels. The peaks of the nano and the mini model at batches of 1, 4 and 16 lead to 20 to 45 MiB at none.
pub(super) const PROCESS: u64 = 30 << 20;

/// Batches of decoded pictures in memory: one in use, two that the data loader has ahead.
const BATCHES: u64 = 3;

/// Estimates a step of `stage`; `writes` says whether checkpoints are written in the middle of it.
pub(super) fn memory(
    stage: &Stage,
    groups: &ResolvedGroups,
    model: &ModelShape,
    writes: bool,
) -> MemoryEstimate {
    let (width, master) = match stage.precision {
        Precision::F32 => (4, 0),
        Precision::Bf16 => (2, 4),
    };
    let batch = stage.batch_size as u64;
    let trainable = groups.num_trainable() as u64;
    let weight = |p: &ResolvedParam| {
        let packed = model.quantized.get(&p.path).copied();
        packed.unwrap_or(p.num_values() as u64 * width)
    };
    // Gradients flow back to the first part that learns anything, and no further.
    let learning: BTreeSet<&str> = groups.trainable().map(|p| p.path.as_str()).collect();
    let first = model
        .parts
        .iter()
        .position(|part| groups.trainable().any(|p| part.holds(&p.path)))
        .unwrap_or(model.parts.len());
    // Of one sample: what passes through before, what is kept from there on, what is in flight.
    let (mut passing, mut kept, mut busy) = (0_u64, Kept::default(), 0_u64);
    let (mut scores, mut unpacked) = (Kept::default(), 0_u64);
    for (place, part) in model.parts.iter().enumerate() {
        let flow = Flow::of(part, model, &learning, width);
        unpacked = unpacked.max(flow.unpacked);
        if place < first {
            passing = passing.max(flow.busy);
        } else {
            kept = kept + flow.kept;
            scores = scores + flow.scores;
            busy = busy.max(flow.busy);
        }
    }
    let activations = |kept: u64| {
        let of_step = kept.saturating_add(busy).max(passing);
        of_step.saturating_mul(batch).max(model.between)
    };
    let accelerator = |scores: u64| scores.saturating_mul(batch).saturating_add(unpacked);
    let optimizer = moments(groups) + trainable * master;
    MemoryEstimate {
        weights: model.params.iter().map(weight).sum(),
        gradients: trainable * 4,
        optimizer,
        checkpoint: if writes {
            optimizer + trainable * width
        } else {
            0
        },
        process: PROCESS,
        batches: (BATCHES * batch).saturating_mul(model.pixels * 4),
        activations: activations(kept.all),
        checkpointed: activations(kept.once),
        accelerator: accelerator(scores.all),
        accelerator_checkpointed: accelerator(scores.once),
    }
}

/// Bytes of the optimizer's moments.
fn moments(groups: &ResolvedGroups) -> u64 {
    let of = |group: &ResolvedGroup| -> u64 {
        let bytes = |p: &ResolvedParam| {
            if group.moved_by_muon(p) {
                4 * p.num_values() as u64
            } else {
                8 * p.num_values() as u64
            }
        };
        group.params.iter().map(bytes).sum()
    };
    groups.groups.iter().map(of).sum()
}
