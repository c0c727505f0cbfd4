//! What memory a training step takes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::shape::{ModelShape, PartShape};
use crate::adapters::is_factor;
use crate::groups::{ResolvedGroup, ResolvedGroups, ResolvedParam};
use crate::stage::{Precision, Stage};

/// Bytes of a training step.
///
/// The estimate against the peak of resident memory of two steps (`tpo train --measure`, the bench
/// rows `lora-step` and `lora-step-checkpointed`; CPU, 32 bits, allocator told to give memory back at
/// once with `MIMALLOC_PURGE_DELAY=0`), in MiB:
///
/// | what | estimate, measured | checkpointed |
/// |---|---|---|
/// | `recipes/nano`, region-head, batch 4 | 62, 66 | 51, 53 |
/// | the same, batch 64 | 338, 321 | 161, 149 |
/// | `recipes/nano`, co-training, batch 4 | 114, 116 | 92, 91 |
/// | the same, batch 64 | 754, 796 | 388, 340 |
/// | 2 layers of Mistral-7B, adapters, 512 tokens | 2124, 2118 | 1980, 1973 |
///
/// An allocator that keeps what was freed for a moment, as they do unless told otherwise, adds up
/// to a fifth in a process this small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// All parameters in the stage's precision.
    pub weights: u64,
    /// Gradients of the trainable ones, 32-bit.
    pub gradients: u64,
    /// Two moments per trainable value (one where Muon moves it), and in bf16 a 32-bit copy of the
    /// value.
    pub optimizer: u64,
    /// The program itself: threads, tokenizer, scratch of kernels and allocator.
    pub process: u64,
    /// What the backward pass of one micro-batch needs: input and output of every linear map from
    /// the first trainable part on, and what is in flight at the largest of them.
    pub activations: u64,
    /// The same when the blocks' activations are computed again
    /// ([`TrainOptions::gradient_checkpointing`](crate::TrainOptions::gradient_checkpointing)).
    pub checkpointed: u64,
}

impl MemoryEstimate {
    /// The sum, with the activations computed again or kept.
    pub fn total(&self, checkpointing: bool) -> u64 {
        let activations = if checkpointing {
            self.checkpointed
        } else {
            self.activations
        };
        self.weights
            .saturating_add(self.gradients)
            .saturating_add(self.optimizer)
            .saturating_add(self.process)
            .saturating_add(activations)
    }
}

/// Values that come and go while one linear map is run backwards, per value of its input and
/// output: their gradients, and those of the functions around it.
const IN_FLIGHT: u64 = 2;

/// Bytes of a training process besides its tensors, measured on the mini model.
const PROCESS: u64 = 28 << 20;

/// Estimates a step of `stage`.
pub(super) fn memory(stage: &Stage, groups: &ResolvedGroups, model: &ModelShape) -> MemoryEstimate {
    let (width, master) = match stage.precision {
        Precision::F32 => (4, 0),
        Precision::Bf16 => (2, 4),
    };
    let trainable = groups.num_trainable() as u64;
    let bytes_of = |p: &ResolvedParam| {
        let packed = model.quantized.get(&p.path).copied();
        packed.unwrap_or(p.num_values() as u64 * width)
    };
    // Gradients flow back to the first part that learns anything, and no further.
    let first = model
        .parts
        .iter()
        .position(|part| groups.trainable().any(|p| part.holds(&p.path)))
        .unwrap_or(model.parts.len());
    let (mut kept, mut checkpointed, mut in_flight) = (0_u64, 0_u64, 0_u64);
    for part in &model.parts[first..] {
        let flow = Flow::of(part, &model.params);
        kept = kept.saturating_add(flow.kept);
        checkpointed = checkpointed.saturating_add(flow.checkpointed);
        in_flight = in_flight.max(flow.in_flight);
    }
    let bytes = |values: u64| {
        values
            .saturating_add(in_flight)
            .saturating_mul(stage.batch_size as u64)
            .saturating_mul(width)
    };
    MemoryEstimate {
        weights: model.params.iter().map(bytes_of).sum(),
        gradients: trainable * 4,
        optimizer: moments(groups) + trainable * master,
        process: PROCESS,
        activations: bytes(kept),
        checkpointed: bytes(checkpointed),
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

/// Values of one sample in one part.
struct Flow {
    kept: u64,
    checkpointed: u64,
    in_flight: u64,
}

impl Flow {
    fn of(part: &PartShape, params: &[ResolvedParam]) -> Self {
        let (mut outside, mut in_flight) = (0_u64, 0_u64);
        // Kept values and narrowest width by block.
        let mut blocks: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for param in params.iter().filter(|p| part.holds(&p.path)) {
            let values = kept_per_row(param).saturating_mul(part.rows(&param.path));
            in_flight = in_flight.max(values.saturating_mul(IN_FLIGHT));
            match block(&param.path) {
                Some(name) => {
                    let entry = blocks.entry(name).or_insert((0, u64::MAX));
                    entry.0 = entry.0.saturating_add(values);
                    if let ([_, input], true) = (&param.shape[..], values > 0) {
                        let entered = part.rows(&param.path).saturating_mul(*input as u64);
                        entry.1 = entry.1.min(entered.max(1));
                    }
                }
                None => outside = outside.saturating_add(values),
            }
        }
        let all: u64 = blocks.values().map(|b| b.0).sum();
        let checkpointed = if part.checkpointed {
            // Of every block the input, and all of the one that is being run again.
            let inputs: u64 = blocks.values().map(|b| if b.0 > 0 { b.1 } else { 0 }).sum();
            inputs.saturating_add(blocks.values().map(|b| b.0).max().unwrap_or(0))
        } else {
            all
        };
        Self {
            kept: outside.saturating_add(all),
            checkpointed: outside.saturating_add(checkpointed),
            in_flight,
        }
    }
}

/// The block of a path: up to its first number.
fn block(path: &str) -> Option<&str> {
    let mut end = 0;
    for segment in path.split('.') {
        end += segment.len() + 1;
        if segment.bytes().all(|b| b.is_ascii_digit()) {
            return path.get(..end - 1);
        }
    }
    None
}

/// Values per row that the backward pass keeps of a linear map `[out, in]`: its input, and its
/// output for the norm, activation or attention behind it.
fn kept_per_row(param: &ResolvedParam) -> u64 {
    let [out, input] = param.shape[..] else {
        return 0;
    };
    let path = &param.path;
    if is_factor(path) {
        // The input of the pair is that of the layer it adapts, and what it gives is added to that
        // layer's output; between the two there are few values.
        if path.ends_with(".a") { out as u64 } else { 0 }
    } else if path.ends_with(".weight")
        && !path.contains("embed_tokens")
        && !path.contains("embeddings")
    {
        (out + input) as u64
    } else {
        0
    }
}
