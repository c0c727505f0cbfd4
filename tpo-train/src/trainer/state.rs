//! Where a run stands.

use std::collections::BTreeSet;

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
    /// Heads that learn and have had no loss in the stage so far; empty in states of before, whose
    /// runs go on unwatched.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub silent_heads: BTreeSet<String>,
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
        .fold(seed, tpo_core::seed::mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_before_are_read_and_silence_is_not_written() {
        let state = TrainState {
            stage: "a".into(),
            stage_index: 0,
            step: 3,
            run_step: 3,
            samples: 6,
            total_steps: 9,
            seed: 1,
            silent_heads: BTreeSet::new(),
            cursor: serde_json::json!({ "batch": 3 }),
            optimizer: OptimizerState::default(),
        };
        let text = serde_json::to_string(&state).unwrap();
        assert!(!text.contains("silent"), "{text}");
        assert_eq!(serde_json::from_str::<TrainState>(&text).unwrap(), state);
        let silent = TrainState {
            silent_heads: BTreeSet::from(["point".to_string()]),
            ..state
        };
        let text = serde_json::to_string(&silent).unwrap();
        assert_eq!(serde_json::from_str::<TrainState>(&text).unwrap(), silent);
    }
}
