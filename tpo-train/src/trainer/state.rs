//! Where a run stands.

use serde::{Deserialize, Serialize};

use crate::optim::OptimizerState;

/// Everything besides the weights that a run needs to go on as if it had not been interrupted.
///
/// The generator of random numbers is not in it: it is seeded before every micro-batch from
/// `seed`, the stage, the step and the micro-batch ([`step_seed`]).
///
/// With serde everything is written but the optimizer's tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Name of the stage.
    pub stage: String,
    /// Its place in the plan, from 0.
    pub stage_index: usize,
    /// Optimizer steps done in it.
    pub step: u64,
    /// Optimizer steps done since the start of the run.
    pub run_step: u64,
    /// Samples seen in the stage, of all workers.
    pub samples: u64,
    /// Its steps in all.
    pub total_steps: u64,
    /// Seed of the stage.
    pub seed: u64,
    /// Position of the data stream.
    pub cursor: serde_json::Value,
    /// Memory of the optimizer.
    pub optimizer: OptimizerState,
}

/// Seed of the device's generator for one micro-batch: a pure function of where the run is, so
/// that dropout after a resumption is what it would have been. Workers in one process share the
/// generator: with several, dropout depends on how their threads interleave.
pub fn step_seed(seed: u64, stage: usize, step: u64, micro: u64, rank: usize) -> u64 {
    [stage as u64, step, micro, rank as u64]
        .into_iter()
        .fold(seed, tpo_core::recompute::mix)
}
