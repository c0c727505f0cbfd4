//! AdamW, and Muon for the matrices of groups that ask for it, over named parameters.
//!
//! Burn's own optimizers keep a state per parameter *identity*; here it is per *path*, so that a
//! run can be taken up by another process, and the arithmetic is PyTorch's to the rounding:
//! a parameter without gradient in a step is skipped (no decay, its own step counter stays), all
//! gradients are clipped by one norm, and narrow weights have a 32-bit master copy.

mod gradients;
mod muon;
mod state;
mod update;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;

pub use gradients::GradientSet;
pub use state::OptimizerState;

use crate::error::Result;
use crate::groups::ResolvedGroups;
use crate::stage::{AdamW, Muon};

/// Denominator guard of the clipping factor (PyTorch's `clip_grad_norm_`).
const CLIP_EPSILON: f64 = 1e-6;

/// A parameter's place in the groups.
#[derive(Debug, Clone, Copy)]
struct Slot {
    group: usize,
    decays: bool,
    muon: Option<Muon>,
}

/// Learning rate and weight decay of a group.
#[derive(Debug, Clone)]
struct GroupRates {
    name: String,
    learning_rate: f64,
    weight_decay: f64,
}

/// What the optimizer remembers of a parameter, all flat `[n]` in `f32`.
#[derive(Debug, Clone)]
struct Moments {
    steps: u64,
    /// The first moment, or Muon's momentum.
    first: Tensor<1>,
    /// Absent for a parameter that Muon moves.
    second: Option<Tensor<1>>,
    /// The weight itself, when the module holds it in fewer bits.
    master: Option<Tensor<1>>,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// L2 norm of all averaged gradients together, before clipping.
    pub grad_norm: f64,
    /// Factor that clipping put on them, 1 when it did nothing.
    pub clip_factor: f64,
    /// Parameters that moved.
    pub updated: usize,
}

/// AdamW and Muon with parameter groups, global-norm clipping and exact resumption.
///
/// State is kept by path; see [`Optimizer::state`].
#[derive(Debug, Clone)]
pub struct Optimizer {
    constants: AdamW,
    clip_norm: Option<f64>,
    groups: Vec<GroupRates>,
    slots: BTreeMap<String, Slot>,
    moments: BTreeMap<String, Moments>,
}

impl Optimizer {
    /// An optimizer of the trainable parameters of `groups`, without state.
    ///
    /// Weight decay applies to the parameters that [`decay`](crate::ResolvedParam::decays).
    pub fn new(groups: &ResolvedGroups, constants: AdamW, clip_norm: Option<f64>) -> Self {
        let mut slots = BTreeMap::new();
        for (group, resolved) in groups.groups.iter().enumerate() {
            for param in &resolved.params {
                let slot = Slot {
                    group,
                    decays: param.decays(),
                    muon: resolved.muon.filter(|_| resolved.moved_by_muon(param)),
                };
                slots.insert(param.path.clone(), slot);
            }
        }
        Self {
            constants,
            clip_norm,
            groups: groups
                .groups
                .iter()
                .map(|g| GroupRates {
                    name: g.name.clone(),
                    learning_rate: g.learning_rate,
                    weight_decay: g.weight_decay.unwrap_or(0.0),
                })
                .collect(),
            slots,
            moments: BTreeMap::new(),
        }
    }

    /// Learning rate of each group at a factor of the schedule.
    pub fn learning_rates(&self, factor: f64) -> Vec<(String, f64)> {
        self.groups
            .iter()
            .map(|g| (g.name.clone(), g.learning_rate * factor))
            .collect()
    }

    /// Moves every parameter that has a gradient. `factor` is the schedule's factor on the
    /// learning rate of every group.
    ///
    /// With a gradient norm that is not a number nothing is moved; look at
    /// [`UpdateReport::grad_norm`].
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`](crate::TrainError::OptimizerState) when imported state has
    /// another size than the parameter.
    pub fn step<M: Module>(
        &mut self,
        module: M,
        grads: GradientSet,
        factor: f64,
    ) -> Result<(M, UpdateReport)> {
        let grad_norm = grads.norm();
        let clip_factor = match self.clip_norm {
            Some(max) => (max / (grad_norm + CLIP_EPSILON)).min(1.0),
            None => 1.0,
        };
        let mut report = UpdateReport {
            grad_norm,
            clip_factor,
            updated: 0,
        };
        if !grad_norm.is_finite() {
            return Ok((module, report));
        }
        let (module, updated) = self.update(module, grads, clip_factor, factor)?;
        report.updated = updated;
        Ok((module, report))
    }
}

#[cfg(test)]
mod tests;
