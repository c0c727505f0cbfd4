//! The optimizer's memory as named tensors.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use serde::{Deserialize, Serialize};

use super::{Moments, Optimizer};
use crate::error::{Result, TrainError};

/// Suffixes of the tensors of a parameter (PyTorch's names for the moments).
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";
const MASTER: &str = ".master";
/// Suffix of the one tensor of a parameter that Muon moves (PyTorch's name).
const MOMENTUM: &str = ".momentum_buffer";

/// Everything an [`Optimizer`] remembers, exact to the bit: counters, and flat `f32` tensors
/// called `{path}.exp_avg`, `{path}.exp_avg_sq` (`{path}.momentum_buffer` where Muon moves the
/// parameter) and, for weights that the module holds in fewer bits, `{path}.master`.
///
/// With serde the counters are written and the tensors are not: those go to a file of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OptimizerState {
    /// Updates so far, by path of the parameter. One that never had a gradient is absent.
    pub steps: BTreeMap<String, u64>,
    /// The tensors, sorted by name.
    #[serde(skip)]
    pub tensors: Vec<(String, TensorData)>,
}

impl Optimizer {
    /// A copy of the state on the host.
    pub fn state(&self) -> OptimizerState {
        let mut state = OptimizerState::default();
        for (path, moments) in &self.moments {
            if moments.steps > 0 {
                state.steps.insert(path.clone(), moments.steps);
                let pair = match &moments.second {
                    Some(second) => vec![(FIRST, &moments.first), (SECOND, second)],
                    None => vec![(MOMENTUM, &moments.first)],
                };
                for (suffix, tensor) in pair {
                    state
                        .tensors
                        .push((format!("{path}{suffix}"), tensor.to_data()));
                }
            }
            if let Some(master) = &moments.master {
                state
                    .tensors
                    .push((format!("{path}{MASTER}"), master.to_data()));
            }
        }
        state.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        state
    }

    /// Replaces the state by one that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] when a counter or tensor belongs to no parameter of this
    /// optimizer, a tensor is missing, is not `f32`, or the two moments differ in size.
    pub fn load_state(&mut self, state: OptimizerState, device: &Device) -> Result<()> {
        let device = device.clone().inner();
        let problem = |name: &str, why: String| TrainError::OptimizerState {
            name: name.to_string(),
            why,
        };
        let mut tensors: BTreeMap<String, TensorData> = state.tensors.into_iter().collect();
        let mut take = |path: &str, suffix: &str| -> Result<Option<Tensor<1>>> {
            let name = format!("{path}{suffix}");
            let Some(data) = tensors.remove(&name) else {
                return Ok(None);
            };
            if data.dtype() != DType::F32 {
                return Err(problem(
                    &name,
                    format!("is {:?}, must be F32", data.dtype()),
                ));
            }
            let n = data.shape().num_elements();
            let (bytes, _, dtype) = data.into_parts();
            let data = TensorData::from_bytes(bytes, [n], dtype);
            let flat = Tensor::<1>::from_data(data, &device);
            Ok(Some(flat))
        };
        let mut moments = BTreeMap::new();
        let mut counted = state.steps;
        for (path, slot) in &self.slots {
            let steps = counted.remove(path).unwrap_or(0);
            let muon = slot.muon.is_some();
            let (first, second) = if muon {
                (take(path, MOMENTUM)?, None)
            } else {
                (take(path, FIRST)?, take(path, SECOND)?)
            };
            let master = take(path, MASTER)?;
            let (first, second) = match (first, second) {
                (Some(a), None) if muon => (a, None),
                (Some(a), Some(b)) if a.dims() == b.dims() => (a, Some(b)),
                (Some(a), Some(b)) => {
                    return Err(problem(
                        path,
                        format!("moments of {} and {} values", a.dims()[0], b.dims()[0]),
                    ));
                }
                (None, None) if steps == 0 => match &master {
                    Some(master) => (master.zeros_like(), None),
                    None => continue,
                },
                _ => {
                    return Err(problem(
                        path,
                        format!("{steps} updates are counted, but a moment is missing"),
                    ));
                }
            };
            moments.insert(
                path.clone(),
                Moments {
                    steps,
                    first,
                    second,
                    master,
                },
            );
        }
        let unknown = counted.into_keys().next().or(tensors.into_keys().next());
        if let Some(name) = unknown {
            return Err(problem(
                &name,
                "belongs to no trainable parameter; is this the state of another stage or model?"
                    .into(),
            ));
        }
        self.moments = moments;
        Ok(())
    }
}
